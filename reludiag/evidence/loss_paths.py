"""Loss paths: how much of a gradient came to a rectifier or a weight around the model's output.

A penalty on activations or on weights is a part of the loss that reads them itself. Its gradient
does not come from the output of the model. In the graph of the output every way from a rectifier's
result, or from a weight, to the output is known: what arrives there in the backward pass, less what
came on these ways, is exactly the gradient of such a part of the loss. Nothing is computed twice:
hooks of the graph's nodes see the gradients of the training's own backward pass. What is done to
the gradients later, as clipping, does not matter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

RECTIFIERS = frozenset(
    f"{name}Backward{number}"
    for name in ("Relu", "Threshold", "Hardtanh", "Clamp", "ClampMin", "Gelu", "Silu", "Hardswish")
    for number in (0, 1)
)
"""Nodes of elementwise functions with a region of zero gradient."""
LEAF = "torch::autograd::AccumulateGrad"
ROUNDING = 1e-5
"""A difference this small relative to the gradient is one of the order of a sum."""


@dataclass
class Push:
    """The gradient with respect to the mean pre-activation of each unit, `[unit]`, float64; where
    it is above 0, the step pushes the unit down.
    """

    through_output: Tensor
    around: Tensor
    """Of what reached the rectifier's result around the model's output."""
    spread: Tensor
    """Of what reached it around the output: its standard deviation over the places where the unit
    fires, over its mean; 0 for a penalty that is the same for all samples."""


@dataclass
class LossPaths:
    """What the backward passes of one step showed. Parameters are identified by `id`."""

    pushes: dict[int, list[Push]] = field(default_factory=dict)
    """By the weight of the last product before the rectifier."""
    penalties: dict[int, Tensor] = field(default_factory=dict)
    """By parameter: the part of its gradient that came around the output, of the watched rows."""
    totals: dict[int, Tensor] = field(default_factory=dict)
    """By parameter that has such a part: its gradient before clipping, of the same rows."""
    is_open: bool = True
    """Whether gradients are still taken."""
    error: Exception | None = None
    """That ended it: PyTorch must not see it in the middle of a backward pass."""

    def follow(self, outputs: Sequence[Tensor], watched: Mapping[int, slice]) -> None:
        """Watch the coming backward pass through these outputs of a forward pass.

        `watched` are rows, by the `id` of the parameter that has them.
        """
        roots = [out.grad_fn for out in outputs if out.grad_fn is not None]
        parents = _edges(roots)
        ends = set(roots)
        for node, edges in parents.items():
            name = node.name()
            # What is both an output and read inside the model has ways that are not known.
            if name in RECTIFIERS and (node not in ends or not edges):
                weight = _weight_before(node)
                if weight is not None:
                    self._watch_rectifier(node, edges, weight)
            elif name == LEAF and id(node.variable) in watched:
                self._watch_leaf(node, edges, watched[id(node.variable)])

    def _watch_rectifier(self, node: Any, edges: list[tuple[Any, int]], weight: Tensor) -> None:
        known = self._collect(edges, lambda gradient: gradient)

        def arrived(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            total, result = outputs[0], inputs[0]
            if total is None or result is None:
                return
            # Of an output of the model, all comes through it.
            push = _push(total, result, known() if edges else total, weight)
            if push is not None:
                self.pushes.setdefault(id(weight), []).append(push)

        node.register_hook(self._guarded(arrived))

    def _watch_leaf(self, node: Any, edges: list[tuple[Any, int]], rows: slice) -> None:
        # Copies, because PyTorch adds to a gradient in place only if nobody else holds it.
        known = self._collect(edges, lambda gradient: gradient[rows].clone())
        key = id(node.variable)

        def arrived(outputs: tuple[Any, ...]) -> None:
            through = known()
            if outputs[0] is None or through is None or outputs[0].is_sparse:
                return
            total = outputs[0][rows].clone()
            around = total - through
            if float(around.norm()) <= ROUNDING * float(total.norm()):
                return
            if key in self.penalties:
                self.penalties[key] += around
                self.totals[key] += total
            else:
                self.penalties[key], self.totals[key] = around, total

        node.register_prehook(self._guarded(arrived))

    def _collect(
        self, edges: list[tuple[Any, int]], part: Callable[[Tensor], Tensor]
    ) -> Callable[[], Tensor | None]:
        """A function that returns the sum of a part of what came on these ways, and forgets it."""
        arrived: list[Tensor] = []

        def watch(index: int) -> Callable[..., None]:
            def passed(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
                if inputs[index] is not None:
                    arrived.append(part(inputs[index]))

            return self._guarded(passed)

        for parent, index in edges:
            parent.register_hook(watch(index))

        def take() -> Tensor | None:
            parts = arrived[:]
            arrived.clear()
            return None if not parts else parts[0] if len(parts) == 1 else sum(parts)  # type: ignore

        return take

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            if not self.is_open:
                return
            try:
                with torch.no_grad():
                    hook(*args)
            except Exception as error:
                self.is_open, self.error = False, error

        return call


def _edges(roots: list[Any]) -> dict[Any, list[tuple[Any, int]]]:
    """Each node of a graph, and the nodes that pass a gradient to it, with the place of it."""
    parents: dict[Any, list[tuple[Any, int]]] = {root: [] for root in roots}
    waiting = list(parents)
    while waiting:
        node = waiting.pop()
        for index, (child, _) in enumerate(node.next_functions):
            if child is None:
                continue
            if child not in parents:
                parents[child] = []
                waiting.append(child)
            parents[child].append((node, index))
    return parents


def _weight_before(node: Any) -> Tensor | None:
    """The weight of the last product before a rectifier; of a norm between them, not its own."""
    waiting, seen = [node], 0
    while waiting and seen < 64:
        current = waiting.pop(0)
        for child, _ in current.next_functions:
            if child is None or child.name() in RECTIFIERS:
                continue
            if child.name() == LEAF:
                if child.variable.ndim > 1:
                    return child.variable  # type: ignore[no-any-return]
                continue
            waiting.append(child)
        seen += 1
    return None


def _push(total: Tensor, result: Tensor, through: Tensor | None, weight: Tensor) -> Push | None:
    """`total` reaches the output of a rectifier, `result` leaves its input."""
    axis = 1 if weight.ndim > 2 else -1
    units = result.shape[axis]
    result = result.movedim(axis, -1).reshape(-1, units)
    whole = result.sum(0, dtype=torch.float64)
    nothing = torch.zeros_like(whole)
    if through is None or through is total or through.data_ptr() == total.data_ptr():
        return Push(whole, nothing, nothing) if through is not None else None
    around = total - through
    if float(around.norm()) <= ROUNDING * float(total.norm()):
        return Push(whole, nothing, nothing)
    total = total.movedim(axis, -1).reshape(-1, units).double()
    around = around.movedim(axis, -1).reshape(-1, units).double()
    slope = torch.where(total != 0, result / total, 0.0)
    pushed = around * slope
    fires = (slope != 0).double()
    count = fires.sum(0).clamp(min=1)
    mean = (around * fires).sum(0) / count
    deviation = ((around - mean).square() * fires).sum(0).div(count).sqrt()
    spread = torch.where(mean != 0, deviation / mean.abs(), 0.0)
    return Push(whole - pushed.sum(0), pushed.sum(0), spread)

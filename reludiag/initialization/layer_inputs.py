"""Layer inputs: how similar the inputs of a layer are, and how far from centred.

Both decide how many units are born dead under any scheme: inputs that point the same way are all on
the same side of a unit's plane.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reludiag.capture.compiled import uncompiled
from reludiag.capture.model_state import preserve_state
from reludiag.initialization.chance_deaths import mean_cosine_of_sum
from reludiag.initialization.layers import LayerWeights
from reludiag.loading.arguments import BatchReader
from reludiag.loading.batch_contents import row_tensors, samples_in
from reludiag.measure.input_scales import input_scale
from reludiag.measure.structure import InputScale
from reludiag.sites.product_rules import SeenProduct
from reludiag.sites.provenance import ProvenanceMode
from reludiag.sites.readable import readable
from reludiag.sites.torch_internals import without_dispatch_modes


@dataclass(frozen=True)
class LayerInput:
    """The input of one layer, over all samples."""

    samples: int
    is_first: bool
    """Whether it is made from the model's input without weights."""
    gamma: float
    """Norm of its mean over norm of its standard deviation, both vectors over the features (of a
    convolution: over the channels); infinite if it is constant. NaN if it is not finite or the
    layer is not a first one.
    """
    cosine: float
    """Mean cosine of two samples; NaN if a sample is not one vector."""
    lengths: np.ndarray[Any, np.dtype[np.float64]]
    """Norms of the samples; empty if a sample is not one vector."""
    scale: InputScale | None
    """Of the first batch, if it is a first layer's and could be measured."""


def measure_inputs(
    model: nn.Module,
    batches: Sequence[Any],
    layers: Mapping[str, LayerWeights],
    dtype: torch.dtype | None = None,
) -> dict[str, LayerInput]:
    """Run the batches through `model` in eval mode and measure the inputs of `layers`, by path.

    Layers that are never called are left out. In the first batch the parameters require gradients:
    pass a copy that is not trained.
    """
    with preserve_state(model), uncompiled():
        model.eval()
        reader = BatchReader(model, dtype)
        with torch.no_grad():
            reader.settle(batches[0])
        args, kwargs = reader.arguments(batches[0])
        modules = {path: layer.module for path, layer in layers.items() if layer.module is not None}
        first = _first_layers(model, args, kwargs, modules)
        tallies = {path: _Tally(path, path in first) for path in layers}
        handles = [
            module.register_forward_pre_hook(partial(tallies[path].take, _kernel_axes(module)))
            for path, module in modules.items()
        ]
        plain = {
            layer.product.weight: tallies[path]
            for path, layer in layers.items()
            if layer.product is not None
        }
        try:
            with torch.no_grad():
                for batch in batches:
                    args, kwargs = reader.arguments(batch)
                    with _seeing_products(model, [*args, *kwargs.values()], plain):
                        model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
    return {
        path: LayerInput(
            samples=tally.samples,
            is_first=tally.is_first,
            gamma=tally.gamma(),
            cosine=tally.cosine(),
            lengths=np.concatenate([np.zeros(0), *tally.lengths]),
            scale=tally.scale,
        )
        for path, tally in tallies.items()
        if tally.samples
    }


class _Tally:
    """Sums over one layer's inputs."""

    def __init__(self, path: str, is_first: bool) -> None:
        self.path, self.is_first = path, is_first
        self.samples = 0
        self.scale: InputScale | None = None
        """Of the first input."""
        self._rows = self._vectors = 0
        self.lengths: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        self._total: Tensor | None = None
        self._square: Tensor | None = None
        self._directions: Tensor | None = None

    def take(self, kernel: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Add one input of a module, `[..., feature]`, or `[..., channel, *position]` if it has a
        kernel of as many axes.
        """
        x = readable(args[0]) if args and isinstance(args[0], Tensor) else None
        if x is None or not x.is_floating_point() or x.numel() == 0:
            return
        with without_dispatch_modes():
            if self.is_first and not self.samples:
                self.scale = input_scale(self.path, module, x)
            samples = len(x) if x.ndim > 1 + kernel else 1
            if x.ndim == 1 + kernel:
                x = x.unsqueeze(0)  # one sample without a batch axis
            rows = x.detach().movedim(x.ndim - 1 - kernel, -1)
            self._add(rows, samples, kernel == 0 and x.ndim == 2)

    def take_product(self, seen: SeenProduct) -> None:
        """Add the input of a product."""
        x, sample = seen.input.detach(), seen.sample
        if readable(x) is None or not x.is_floating_point() or x.numel() == 0:
            return
        self.is_first = seen.is_first and (self.is_first or not self.samples)
        samples = 1 if sample is None else sample.size
        if seen.product.convolution is not None:
            self._add(x.movedim(1, -1), samples, is_vector=False)
            return
        _, rows = seen.matrices()
        self._add(rows, samples, len(rows) == 1 and samples == rows.shape[1])

    def _add(self, rows: Tensor, samples: int, is_vector: bool) -> None:
        """Add `[..., feature]`; `is_vector` if each row is a sample."""
        self.samples += samples
        if not (self.is_first or is_vector):
            return
        rows = rows.flatten(0, -2).double().cpu()
        if self.is_first:
            self._rows += len(rows)
            self._total = _sum(self._total, rows)
            self._square = _sum(self._square, rows.square())
        if is_vector:
            lengths = rows.norm(dim=1)
            self.lengths.append(np.asarray(lengths.numpy()))
            rows = rows[lengths > 0] / lengths[lengths > 0, None]
            self._vectors += len(rows)
            self._directions = _sum(self._directions, rows)

    def gamma(self) -> float:
        """Norm of the mean / norm of the standard deviation; NaN if it was not measured."""
        if self._total is None or self._square is None or self._rows < 2:
            return math.nan
        mean = self._total / self._rows
        length = float(mean.norm())
        variance = float((self._square / self._rows - mean.square()).clamp(min=0).sum())
        if not math.isfinite(length + variance):
            return math.nan
        if variance == 0:
            return math.inf if length else 0.0
        return length / math.sqrt(variance)

    def cosine(self) -> float:
        """Mean cosine of two inputs; NaN if they are not vectors."""
        if self._directions is None:
            return math.nan
        return mean_cosine_of_sum(np.asarray(self._directions.numpy()), self._vectors)


def _kernel_axes(module: nn.Module) -> int:
    layer: Any = module
    return 0 if isinstance(module, nn.Linear) else len(layer.kernel_size)


@contextlib.contextmanager
def _seeing_products(
    model: nn.Module, inputs: list[Any], tallies: Mapping[str, _Tally]
) -> Iterator[None]:
    """While entered, the inputs of these weights, by name, are added to the tallies."""
    if not tallies:
        yield
        return

    def take(seen: SeenProduct) -> None:
        tally = tallies.get(seen.product.weight)
        if tally is not None:
            tally.take_product(seen)

    mode = ProvenanceMode(model, lambda *call: None, on_product=take)
    samples = samples_in(inputs)
    if samples is not None:
        mode.mark_inputs(row_tensors(inputs), samples)
    with mode:
        yield


def _sum(total: Tensor | None, rows: Tensor) -> Tensor:
    return rows.sum(0) if total is None else total + rows.sum(0)


def _first_layers(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layers: Mapping[str, nn.Module],
) -> set[str]:
    """The layers whose input depends on no parameter: it requires no gradient."""
    calls: dict[str, bool] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, path=path: calls.update(
                {path: calls.get(path, True) and not _needs_gradient(inputs)}
            )
        )
        for path, module in layers.items()
    ]
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {path for path, first in calls.items() if first}


def _needs_gradient(inputs: tuple[Any, ...]) -> bool:
    return any(isinstance(x, Tensor) and x.requires_grad for x in inputs)

"""Layer inputs: how similar the inputs of a layer are, and how far from centred.

Both decide how many units are born dead under any scheme: inputs that point the same way are all on
the same side of a unit's plane.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reludiag.capture.calls import Call
from reludiag.capture.capture import Capture
from reludiag.capture.compiled import uncompiled
from reludiag.capture.model_state import preserve_state
from reludiag.initialization.chance_deaths import mean_cosine_of_sum
from reludiag.loading.arguments import BatchReader
from reludiag.measure.input_scales import input_scale
from reludiag.measure.structure import InputScale
from reludiag.sites.readable import readable


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
    rectified: frozenset[str]
    """Keys of the sites that rectify this layer's output directly."""
    scale: InputScale | None
    """Of the first batch, if it is a first layer's and could be measured."""


def measure_inputs(
    model: nn.Module,
    batches: Sequence[Any],
    layers: Mapping[str, nn.Module],
    dtype: torch.dtype | None = None,
) -> dict[str, LayerInput]:
    """Run the batches through `model` in eval mode and measure the inputs of `layers` (by path).

    Layers that are never called are left out. In the first batch the parameters require gradients:
    pass a copy that is not trained.
    """
    with preserve_state(model), uncompiled():
        model.eval()
        reader = BatchReader(model, dtype)
        with torch.no_grad():
            reader.settle(batches[0])
        args, kwargs = reader.arguments(batches[0])
        first = _first_layers(model, args, kwargs, layers)
        rectified = _rectified_outputs(model, args, kwargs, layers)
        tallies = {path: _Tally(path, path in first) for path in layers}
        handles = [
            module.register_forward_pre_hook(tallies[path].take) for path, module in layers.items()
        ]
        try:
            with torch.no_grad():
                for batch in batches:
                    args, kwargs = reader.arguments(batch)
                    model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
    return {
        path: LayerInput(
            samples=tally.samples,
            is_first=path in first,
            gamma=tally.gamma(),
            cosine=tally.cosine(),
            lengths=np.concatenate([np.zeros(0), *tally.lengths]),
            rectified=frozenset(key for key, producer in rectified.items() if producer == path),
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

    def take(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Add one input, `[..., feature]` of a linear layer or `[..., channel, *position]`."""
        x = readable(args[0]) if args and isinstance(args[0], Tensor) else None
        if x is None or not x.is_floating_point() or x.numel() == 0:
            return
        weight = module.weight
        kernel = weight.ndim - 2 if isinstance(weight, Tensor) else 0  # 0 of a linear layer
        if self.is_first and not self.samples:
            self.scale = input_scale(self.path, module, x)
        self.samples += len(x) if x.ndim > 1 + kernel else 1
        if x.ndim == 1 + kernel:
            x = x.unsqueeze(0)  # one sample without a batch axis
        is_vector = kernel == 0 and x.ndim == 2
        if not (self.is_first or is_vector):
            return
        rows = x.detach().movedim(x.ndim - 1 - kernel, -1).flatten(0, -2).double().cpu()
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
        if self._total is None or self._square is None:
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


def _rectified_outputs(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layers: Mapping[str, nn.Module],
) -> dict[str, str]:
    """Site key -> the layer whose output it rectifies directly."""
    outputs: dict[str, Tensor] = {}
    producers: dict[int, str] = {}

    def keep(path: str, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[path] = output.detach().clone()

    def compare(call: Call) -> None:
        producer = capture.sites[call.site].producer
        output = outputs.get(producer or "")
        if producer is None or output is None:
            return
        rectified = call.view.of(call.output)
        if output.shape == rectified.shape and torch.equal(output.clamp(min=0), rectified):
            producers[call.site] = producer

    capture = Capture(model, compare)
    handles = [
        module.register_forward_hook(lambda _, __, output, path=path: keep(path, output))
        for path, module in layers.items()
    ]
    capture.attach()
    try:
        with torch.no_grad():
            capture.run(model, args, kwargs)
    finally:
        capture.detach()
        for handle in handles:
            handle.remove()
    return {capture.sites[index].key: producer for index, producer in producers.items()}

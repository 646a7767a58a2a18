"""Decomposition: a unit's mean pre-activation as a dot product, and what changed it.

A linear layer or a convolution, also followed by a BatchNorm in eval mode, is linear in its weights
and in its input. The mean pre-activation z of a unit, over all samples and positions of a probe, is
therefore w.x + b: x is the mean input of the weights (for a convolution the mean patch), w and b
are the weights and bias with the norm folded in. Between two states 0 and 1

    z1 - z0 = (w1 - w0).(x0 + x1)/2 + (w0 + w1)/2.(x1 - x0) + (b1 - b0)

exactly. The terms are the parts of the weights, the input and the bias (their Shapley values).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reludiag.sites.readable import readable
from reludiag.sites.torch_internals import convolve

Reals = np.ndarray[Any, np.dtype[np.float64]]
Weights = Mapping[str, Tensor]
"""Parameters and buffers of a model by name."""

# By type, not isinstance: the forward of a subclass may do anything.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = {
    nn.ConvTranspose1d: functional.conv_transpose1d,
    nn.ConvTranspose2d: functional.conv_transpose2d,
    nn.ConvTranspose3d: functional.conv_transpose3d,
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Folded:
    """The units of one layer as dot products; float64, exact except for rounding."""

    weight: Tensor
    """`[unit, factor]`."""
    bias: Tensor
    """`[unit]`."""
    mean_input: Tensor
    """`[unit, factor]`, or `[1, factor]` if it is the same for all units."""

    def mean(self) -> Tensor:
        """Mean pre-activation, `[unit]`."""
        return (self.weight * self.mean_input).sum(1) + self.bias

    def magnitude(self) -> Tensor:
        """The size against which rounding errors of the mean are compared, `[unit]`."""
        return (self.weight * self.mean_input).abs().sum(1) + self.bias.abs()


def drift(start: Folded, end: Folded) -> tuple[Reals, Reals, Reals]:
    """The parts of the weights, of the input and of the bias, each `[unit]`."""
    x, w = start.mean_input + end.mean_input, start.weight + end.weight
    weights = ((end.weight - start.weight) * x).sum(1) / 2
    inputs = ((end.mean_input - start.mean_input) * w).sum(1) / 2
    return weights.cpu().numpy(), inputs.cpu().numpy(), (end.bias - start.bias).cpu().numpy()


@dataclass(frozen=True)
class Layer:
    """A layer that can be decomposed, with the norm after it."""

    path: str
    module: nn.Module
    norm_path: str | None
    norm: nn.Module | None

    @classmethod
    def of(cls, model: nn.Module, path: str | None, norm: str | None) -> "Layer | None":
        """The layer at `path` with the norm at `norm`; None if their kinds are not supported."""
        modules = dict(model.named_modules())
        module, normalizing = modules.get(path or ""), modules.get(norm or "") if norm else None
        if path is None or type(module) not in (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED):
            return None
        if norm is not None and type(normalizing) not in _NORMS:
            return None
        assert module is not None
        return cls(path, module, norm, normalizing)

    def fold(self, weights: Weights, inputs: "InputSums") -> Folded | None:
        """The layer as dot products, with these weights and this input.

        None if it ran more than once in a pass (shared weights), or if its weights are computed
        from other parameters.
        """
        weight, bias = weights.get(f"{self.path}.weight"), weights.get(f"{self.path}.bias")
        mean_input = inputs.mean()
        biased = getattr(self.module, "bias", None) is not None
        if weight is None or mean_input is None or inputs.shared or biased != (bias is not None):
            return None
        rows = _rows(self.module, weight.detach().double())
        mean_input = _rows(self.module, mean_input) if mean_input.ndim > 1 else mean_input[None]
        shift = rows.new_zeros(len(rows)) if bias is None else bias.detach().double()
        if self.norm is None:
            return Folded(rows, shift, mean_input)
        scaled = self._scale_and_shift(weights)
        if scaled is None:
            return None
        scale, offset = scaled
        return Folded(rows * scale[:, None], shift * scale + offset, mean_input)

    def _scale_and_shift(self, weights: Weights) -> tuple[Tensor, Tensor] | None:
        """The factor and the offset of a BatchNorm in eval mode, `[unit]`."""
        mean, variance, gamma, beta = (
            weights[name].detach().double() if name in weights else None
            for name in (
                f"{self.norm_path}.{last}"
                for last in ("running_mean", "running_var", "weight", "bias")
            )
        )
        if mean is None or variance is None:
            return None
        scale = torch.rsqrt(variance + float(getattr(self.norm, "eps", 0.0)))
        scale = scale if gamma is None else scale * gamma
        return scale, -mean * scale if beta is None else beta - mean * scale


class InputSums:
    """The inputs of a layer in the passes over the probe, summed over samples."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._axes = layer.get_parameter("weight").ndim
        self.shared = False
        """Whether it ran more than once in a pass, or its input could not be read."""
        self._ran = False
        self._sums: dict[tuple[int, ...], tuple[Tensor, int]] = {}

    def begin(self) -> None:
        """A pass begins."""
        self._ran = False

    def take(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook: of `[batch, channel, *position]`, or `[*, feature]`."""
        x = readable(args[0]) if args and isinstance(args[0], Tensor) else None
        if self._ran or x is None or not x.is_floating_point():
            self.shared = True
            return
        self._ran = True
        x = x.detach()
        if isinstance(self.layer, nn.Linear):
            x = x.reshape(-1, x.shape[-1])
        elif x.ndim < self._axes:  # a single sample
            x = x.unsqueeze(0)
        total, previous_sum = x.double().sum(0), 0
        shape = tuple(total.shape)
        if shape in self._sums:
            earlier, previous_sum = self._sums[shape]
            total = total + earlier
        self._sums[shape] = total, previous_sum + len(x)

    def mean(self) -> Tensor | None:
        """Mean input of the weights over samples and positions.

        `[feature]` for a linear layer, otherwise the shape of the weights; None if it never ran.
        """
        total: Tensor | None = None
        positions = 0
        for summed, samples in self._sums.values():
            patches, count = _patches(self.layer, summed)
            total = patches if total is None else total + patches
            positions += samples * count
        return None if total is None or not positions else total / positions


def _patches(layer: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The sum of each weight's inputs over output positions, and the number of positions.

    It is the gradient of the summed output with respect to the weights, so stride, padding,
    dilation and groups are handled as in the layer.
    """
    if isinstance(layer, nn.Linear):
        return x, 1
    convolution: Any = layer
    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.zeros_like(layer.get_parameter("weight"), dtype=x.dtype, requires_grad=True)
        x = x.clone().unsqueeze(0)
        if isinstance(layer, _CONVOLUTIONS):
            out = convolve(layer, x, weight)
        else:
            out = _TRANSPOSED[type(convolution)](
                x,
                weight,
                None,
                convolution.stride,
                convolution.padding,
                convolution.output_padding,
                convolution.groups,
                convolution.dilation,
            )
        (patches,) = torch.autograd.grad(out.sum(), weight)
    return patches.detach(), out[0, 0].numel()


def _rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight, or its input, as `[unit, factor]`."""
    if type(layer) in _TRANSPOSED:  # [input, unit of its group, *kernel]
        groups = int(getattr(layer, "groups", 1))
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)

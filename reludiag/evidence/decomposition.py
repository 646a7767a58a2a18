"""Decomposition: a unit's mean pre-activation as a dot product, and what changed it.

A linear layer or a convolution, of a module or of plain parameters, also followed by a BatchNorm in
eval mode, is linear in its weights and in its input. The mean pre-activation z of a unit, over all
samples and positions of a probe, is therefore w.x + b: x is the mean input of the weights (for a
convolution the mean patch), w and b are the weights and bias with the norm folded in. Between two
states 0 and 1

    z1 - z0 = (w1 - w0).(x0 + x1)/2 + (w0 + w1)/2.(x1 - x0) + (b1 - b0)

exactly. The terms are the parts of the weights, the input and the bias (their Shapley values).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reludiag.sites.product_rules import SeenProduct
from reludiag.sites.products import Convolution, Product
from reludiag.sites.readable import readable
from reludiag.sites.site import Site

Reals = np.ndarray[Any, np.dtype[np.float64]]
Weights = Mapping[str, Tensor]
"""Parameters and buffers of a model by name."""

# By type, not isinstance: the forward of a subclass may do anything.
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
    """A product that can be decomposed, with the norm after it."""

    product: Product
    norm_path: str | None
    norm: nn.Module | None

    @classmethod
    def of(cls, model: nn.Module, site: Site) -> "Layer | None":
        """The layer that feeds a site; None if several do, or its kind is not supported."""
        if len(site.products) != 1 or not site.products[0].weight:
            return None
        norm = None if site.norm is None else dict(model.named_modules()).get(site.norm)
        if site.norm is not None and type(norm) not in _NORMS:
            return None
        return cls(site.products[0], site.norm, norm)

    def fold(self, weights: Weights, seen: "InputSums") -> Folded | None:
        """The layer as dot products, with these weights and this input.

        None if it ran more than once in a pass (shared weights), or if its bias is computed from
        other parameters.
        """
        rows, mean_input = seen.rows(), seen.mean()
        if rows is None or mean_input is None or seen.shared:
            return None
        shift = rows.new_zeros(len(rows))
        if self.product.bias is not None:
            bias = weights.get(self.product.bias)
            if bias is None or bias.numel() != len(rows):
                return None
            shift = bias.detach().double().flatten()
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
    """A product in the passes over the probe: its weight, and its inputs summed over samples."""

    def __init__(self) -> None:
        self.shared = False
        """Whether it ran more than once in a pass, in a way that is not known, or unreadably."""
        self._ran = False
        self._convolution: Convolution | None = None
        self._weight: Tensor | None = None
        self._sums: dict[tuple[int, ...], tuple[Tensor, int]] = {}

    def begin(self) -> None:
        """A pass begins."""
        self._ran = False

    def take(self, seen: SeenProduct) -> None:
        """Add one input."""
        is_read = readable(seen.input) is not None and seen.input.is_floating_point()
        if self._ran or not is_read or not seen.is_known:
            self.shared = True
            return
        self._ran = True
        x = seen.input.detach()
        self._convolution = seen.product.convolution
        if self._convolution is None:
            weight, x = seen.matrices()
            x = x.detach().transpose(0, 1)
        else:
            weight = seen.weight
        # The weight as the forward used it: what it was computed from need not be known.
        self._weight = weight.detach().double()
        total, previous_sum = x.double().sum(0), 0
        shape = tuple(total.shape)
        if shape in self._sums:
            earlier, previous_sum = self._sums[shape]
            total = total + earlier
        self._sums[shape] = total, previous_sum + len(x)

    def rows(self) -> Tensor | None:
        """The weight, `[unit, factor]`; None if it never ran."""
        if self._weight is None or self._convolution is None:
            return None if self._weight is None else self._weight.flatten(0, 1)
        return _rows(self._convolution, self._weight)

    def mean(self) -> Tensor | None:
        """Mean input of the weights over samples and positions: `[unit, factor]`, or `[1, factor]`
        if it is the same for all units; None if it never ran.
        """
        total: Tensor | None = None
        positions, weight, convolution = 0, self._weight, self._convolution
        if weight is None:
            return None
        for summed, samples in self._sums.values():
            patches, count = (summed, 1)
            if convolution is not None:
                patches, count = summed_patches(convolution, weight, summed)
            total = patches if total is None else total + patches
            positions += samples * count
        if total is None or not positions:
            return None
        mean = total / positions
        if convolution is not None:
            return _rows(convolution, mean)
        return mean if len(mean) == 1 else mean.repeat_interleave(weight.shape[1], dim=0)


def summed_patches(convolution: Convolution, weight: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """The sum of each weight's inputs over output positions, and the number of positions.

    It is the gradient of the summed output with respect to the weights, so stride, padding,
    dilation and groups are handled as in the layer.
    """
    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.zeros_like(weight, requires_grad=True)
        out = torch.convolution(
            x.clone().unsqueeze(0),
            weight,
            None,
            convolution.stride,
            convolution.padding,
            convolution.dilation,
            convolution.transposed,
            convolution.output_padding,
            convolution.groups,
        )
        (patches,) = torch.autograd.grad(out.sum(), weight)
    return patches.detach(), out[0, 0].numel()


def _rows(convolution: Convolution, weight: Tensor) -> Tensor:
    """A weight, or its input, as `[unit, factor]`."""
    if convolution.transposed:  # [input, unit of its group, *kernel]
        weight = weight.reshape(convolution.groups, -1, *weight.shape[1:])
        weight = weight.transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)

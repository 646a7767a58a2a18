"""Masks: weights that are multiplied by zeros and ones, as pruning does.

`torch.nn.utils.prune`, a parametrization, and a forward of the user's own keep the mask in a buffer
beside the weight that it is multiplied with.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from reludiag.sites.torch_internals import buffers_of, parameters_of

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def masked_units(module: nn.Module, weight: Tensor, transposed: bool) -> Mask | None:
    """`[unit]`: all of its weights are masked; None if no unit is.

    `weight` is that of the layer, `[unit, input, *kernel]`, or `[input, unit, *kernel]` if
    `transposed`.
    """
    units = torch.zeros(weight.shape[int(transposed)], dtype=torch.bool)
    for mask in _masks_of(module, weight.shape, transposed).values():
        by_unit = mask.swapaxes(0, 1) if transposed and mask.ndim > 1 else mask
        units |= ~by_unit.detach().bool().flatten(1).any(1).cpu()
    return units.numpy() if units.any() else None


def unmasked_weight(module: nn.Module) -> Tensor | None:
    """The weight before its mask; None if it is stored as the layer's weight itself."""
    parameter = parameters_of(module).get("weight_orig")
    if parameter is None and parametrize.is_parametrized(module, "weight"):
        parametrizations: Any = module.parametrizations
        parameter = getattr(parametrizations.weight, "original", None)
    return None if parameter is None else parameter.detach()


def remove_masks(model: nn.Module) -> None:
    """Set all masks to 1, and make the weights of `torch.nn.utils.prune` plain ones, so that they
    can be drawn again.

    A parametrization stays: its class has the weight, and the model that this is a copy of shares
    the class.
    """
    for module in list(model.modules()):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            continue
        masks = _masks_of(module, weight.shape, False) | _masks_of(module, weight.shape, True)
        for mask in masks.values():
            mask.fill_(1)
        if "weight_mask" in masks and prune.is_pruned(module):
            prune.remove(module, "weight")  # type: ignore[no-untyped-call]


def _masks_of(
    module: nn.Module, shape: torch.Size | tuple[int, ...], transposed: bool
) -> dict[str, Tensor]:
    """The buffers that can be a mask of a weight of this shape, with their names: they hold zeros
    and ones, for each weight or for each unit.
    """
    own = {name: buffer for name, buffer in buffers_of(module).items() if buffer is not None}
    if parametrize.is_parametrized(module, "weight"):
        of_weight: Any = module.parametrizations
        prefix = "parametrizations.weight."
        own |= {prefix + name: each for name, each in of_weight.weight.named_buffers()}
    per_unit = [1] * len(shape)
    per_unit[int(transposed)] = shape[int(transposed)]
    masks = {}
    for name, buffer in own.items():
        if tuple(buffer.shape) not in {tuple(shape), tuple(per_unit)} or buffer.numel() < 2:
            continue
        if bool(((buffer == 0) | (buffer == 1)).all()) and bool((buffer == 0).any()):
            masks[name] = buffer
    return masks

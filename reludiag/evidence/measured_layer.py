"""Measured layer: what the measured steps have shown of one layer that feeds a rectifier."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from reludiag.sites.site import Site

MEASURED = 2**15
"""Of a layer with more weights than this, evenly spread units are measured: a step of the training
costs more than this split, whatever the size of the layer.
"""
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class MeasuredLayer:
    """What was measured until now of one site and its layer. Arrays are `[unit]`."""

    site: Site
    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: nn.Parameter | None
    """The weight of the BatchNorm in between."""
    shift: nn.Parameter | None
    """And its bias."""
    has_norm: bool
    rows: slice
    """The measured units."""
    start: Floats
    """Size of the weights of each measured unit at the beginning; of its norm's, if it has one."""
    start_weight: Floats
    """The same of the layer's own weights."""
    width: int
    life: Floats
    """`[term, unit]`: the drift by fresh gradient, momentum and decay, summed over steps."""
    last: Floats
    """The same of the last measured step in which it had a gradient."""
    drift: Floats
    """The same of the last measured step."""
    shrinkage: Floats
    """By decay, then by penalties, summed over steps: `[2, unit]`."""
    largest: Floats
    """The largest update by gradients, relative to `start_weight`."""
    rate: Floats
    """The same of the last measured step."""
    through: Floats
    """Sum of the pushes (`loss_paths`) through the model's output; of all units, as the next."""
    through_size: Floats
    """Sum of their sizes."""
    around: Floats
    """Sum of the pushes around the output."""
    spread: Floats
    """The largest spread of one."""
    pushes: int = 0
    """Number of pushes."""
    step: int = 0
    """The last measured step."""
    before: dict[str, tuple[nn.Parameter, Tensor, bool]] = field(default_factory=dict)
    """In a measured step: each parameter, its rows before it, and whether it had a momentum."""


def measured_layer(model: nn.Module, site: Site) -> MeasuredLayer | None:
    """The layer of a site as it is now; None if it is not one whose update can be split."""
    if not site.rectifier.can_die or len(site.products) != 1 or not site.units:
        return None
    product, parameters = site.products[0], dict(model.named_parameters())
    weight = parameters.get(product.weight)
    is_transposed = product.convolution is not None and product.convolution.transposed
    if weight is None or product.units != (0,) or not product.is_whole or is_transposed:
        return None
    if len(weight) != site.units:
        return None
    rows = slice(0, len(weight), -(-weight.numel() // MEASURED) or 1)
    scale = None if site.norm is None else parameters.get(f"{site.norm}.weight")
    shift = None if site.norm is None else parameters.get(f"{site.norm}.bias")
    bias = None if product.bias is None else parameters.get(product.bias)
    width, n = len(weight), len(range(*rows.indices(len(weight))))
    return MeasuredLayer(
        site=site,
        weight=weight,
        bias=bias,
        scale=scale,
        shift=shift,
        has_norm=site.norm is not None,
        rows=rows,
        start=row_norms(weight if scale is None else scale, rows),
        start_weight=row_norms(weight, rows),
        largest=np.zeros(n),
        width=width,
        life=np.zeros((3, n)),
        last=np.full((3, n), np.nan),
        drift=np.zeros((3, n)),
        shrinkage=np.zeros((2, n)),
        rate=np.zeros((2, n)),
        through=np.zeros(width),
        through_size=np.zeros(width),
        around=np.zeros(width),
        spread=np.zeros(width),
    )


def row_norms(weight: Tensor, rows: slice) -> Floats:
    """Norms of these rows of a weight."""
    part = weight.detach()[rows].double()
    # A copy, because an array of a tensor keeps the tensor.
    norms: Floats = part.reshape(len(part), -1).norm(dim=1).cpu().numpy().copy()
    return norms

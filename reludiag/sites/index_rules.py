"""Where axes go when a tensor is indexed by tensors, as in `x[mask]` and `x[:, i, j]`."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reludiag.sites.axes import Axes, Coordinate

Indices = Sequence[Tensor | None]
"""One entry for each axis, or for several that a Boolean mask covers; None for all of an axis."""


def indexed(coordinate: Coordinate, indices: Indices, ndim: int) -> Axes | None:
    """A coordinate of `x`, of `ndim` axes, in `x[indices]`; None along an axis that is indexed."""
    axis = _axes_after(indices, ndim)[0][coordinate.axis]
    return None if axis is None else (replace(coordinate, axis=axis),)


def assigned(coordinate: Coordinate, indices: Indices, ndim: int, values_ndim: int) -> Axes | None:
    """A coordinate of `values` in `x`, of `ndim` axes, after `x[indices] = values`."""
    after, result_ndim = _axes_after(indices, ndim)
    axis = coordinate.axis + result_ndim - values_ndim  # they are broadcast
    return (replace(coordinate, axis=after.index(axis)),) if axis in after else None


def indexed_axes(indices: Indices, ndim: int) -> set[int]:
    """The axes of `x`, of `ndim` axes, along which `x[indices]` chooses elements."""
    return {axis for axis, to in enumerate(_axes_after(indices, ndim)[0]) if to is None}


def _axes_after(indices: Indices, ndim: int) -> tuple[list[int | None], int]:
    """For each axis of `x` its axis in `x[indices]`, None if it is indexed; and the number there.

    The axes of the indices, broadcast, stand where the first index is, or in front if there is a
    slice between two indices.
    """
    covered: list[bool] = []
    width = 0
    for index in indices:
        if index is None:
            covered.append(False)
            continue
        is_mask = index.dtype in (torch.bool, torch.uint8)
        covered += [True] * (index.ndim if is_mask else 1)
        width = max(width, 1 if is_mask else index.ndim)
    covered += [False] * (ndim - len(covered))
    places = [axis for axis, is_covered in enumerate(covered) if is_covered]
    adjacent = bool(places) and places[-1] - places[0] == len(places) - 1
    front = places[0] if adjacent else 0
    kept = [axis for axis, is_covered in enumerate(covered) if not is_covered]
    after = {axis: place + (place >= front) * width for place, axis in enumerate(kept)}
    return [after.get(axis) for axis in range(ndim)], len(kept) + width

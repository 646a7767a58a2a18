"""Labels: which unit of a site, or which sample, each element of a tensor depends on, and what
operators do to them.

Labels of a tensor are integers with as many axes as it has: a number, -1 for none. An axis along
which all are the same has length 1 in the labels, whatever it has in the tensor, so that they stay
small. What only moves elements moves labels in the same way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reludiag.sites.axes import Axes

LARGEST = 2**24
"""Labels of more elements are not looked through."""


class MixedError(Exception):
    """An element would depend on several units, or samples."""


def of_units(shape: Sequence[int], units: Axes) -> Tensor:
    """The labels of a site's output."""
    ndim = max(len(shape), units[-1].axis + 1)  # one number per sample: a single unit
    if units[-1].axis == len(shape):
        return torch.zeros((1,) * (ndim - 1), dtype=torch.int64)
    labels = torch.zeros((1,) * ndim, dtype=torch.int64)
    for unit in units:
        index = torch.arange(shape[unit.axis]) // unit.inner % unit.size
        side = [-1 if axis == unit.axis else 1 for axis in range(ndim)]
        labels = labels * unit.size + index.view(side)
    return labels


def varying(labels: Tensor) -> set[int]:
    """The axes along which units differ."""
    return {axis for axis, length in enumerate(labels.shape) if length != 1}


def compact(labels: Tensor) -> Tensor:
    """Cut axes along which nothing changes to length 1."""
    for axis in range(labels.ndim):  # of what was expanded, none need be looked at
        if labels.shape[axis] > 1 and labels.stride(axis) == 0:
            labels = labels.narrow(axis, 0, 1)
    if labels.numel() <= LARGEST:
        for axis in range(labels.ndim):
            first = labels.narrow(axis, 0, min(1, labels.shape[axis]))
            if labels.shape[axis] > 1 and bool((labels == first).all()):
                labels = first
    return labels


def aligned(labels: Tensor, ndim: int) -> Tensor:
    """The labels, with axes added to match the result of a broadcast."""
    return labels.reshape((1,) * (ndim - labels.ndim) + tuple(labels.shape))


def merged(first: Tensor, second: Tensor) -> Tensor:
    """Of elements that depend on what both say. Raises MixedError if these are two."""
    if first is second:
        return first
    if bool(((first >= 0) & (second >= 0) & (first != second)).any()):
        raise MixedError
    return torch.where(first < 0, second, first)


def moved(
    run: Callable[..., Any], labels: Tensor, shape: Sequence[int], rest: Sequence[Any], **keys: Any
) -> list[Tensor]:
    """After an operator that only moves the elements of its first argument, of this shape."""
    results = run(labels.expand(tuple(shape)), *rest, **keys)
    tensors = list(results) if isinstance(results, list | tuple) else [results]
    return [compact(result) for result in tensors]


def reshaped(labels: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """After a reshape: only the axes that are torn or joined are written out."""
    shape: list[int] = []
    axes: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):
        # The shortest stretches of old and new axes that hold the same elements.
        a, b = i, j
        old_count = new_count = 1
        while i < len(old) or j < len(new):
            if old_count <= new_count and i < len(old):
                old_count, i = old_count * old[i], i + 1
            elif j < len(new):
                new_count, j = new_count * new[j], j + 1
            else:
                old_count, i = old_count * old[i], i + 1
            if old_count == new_count and (i > a and j > b):
                break
        plain = all(length == 1 for length in labels.shape[a:i])
        axes += [1 if plain else length for length in old[a:i]]
        shape += [1 if plain else length for length in new[b:j]]
    return compact(labels.expand(axes).reshape(shape))


def joined(parts: Sequence[Tensor | None], shapes: Sequence[Sequence[int]], dim: int) -> Tensor:
    """Side by side along `dim`; None for a part that depends on no unit."""
    present = [part for part in parts if part is not None]
    if varying(present[0]) - {dim} and all(
        part.shape[dim] == 1 and part.shape == present[0].shape and bool((part == present[0]).all())
        for part in present
    ):
        # Along an axis of positions: the other parts are at the same units, or at none.
        return present[0]
    sides = [
        1 if all(part.shape[axis] == 1 for part in present) else shapes[0][axis]
        for axis in range(len(shapes[0]))
    ]
    pieces = []
    for part, shape in zip(parts, shapes, strict=True):
        target = [*sides[:dim], shape[dim], *sides[dim + 1 :]]
        none = torch.full((1,) * len(shape), -1)
        pieces.append((none if part is None else part).expand(target))
    return compact(torch.cat(pieces, dim))


def reduced(labels: Tensor, dims: set[int], keepdim: bool) -> Tensor:
    """Summed over these axes. Raises MixedError if units lie along one of them."""
    if varying(labels) & dims:
        raise MixedError
    return labels if keepdim else labels.squeeze(tuple(dims))


def padded(labels: Tensor, widths: Sequence[int]) -> Tensor:
    """After `constant_pad_nd`; along an axis without units, what is added is at no unit."""
    if not varying(labels):
        return labels
    for axis, (front, back) in zip(
        reversed(range(labels.ndim)), zip(widths[::2], widths[1::2], strict=True), strict=False
    ):
        if labels.shape[axis] > 1:
            around = [0, 0] * (labels.ndim - 1 - axis) + [front, back]
            labels = torch.nn.functional.pad(labels, around, value=-1)
    return labels

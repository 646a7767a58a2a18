"""Coordinates: where units and samples are in a tensor, and how operators change that.

A coordinate that an operator splits is lost (None).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

Move = Callable[["Coordinate"], "Coordinate | None"]


@dataclass(frozen=True)
class Coordinate:
    """One coordinate of a tensor's elements: `index // inner % size`, of the index along `axis`.

    A plain axis has inner 1. After `flatten(1)` of `[batch, channel, height, width]` the channel
    is the coordinate `(axis=1, size=channels, inner=height * width)`.
    """

    axis: int
    size: int
    inner: int = 1

    def __str__(self) -> str:
        return str(self.axis) if self.inner == 1 else f"{self.axis}//{self.inner}"


@dataclass(frozen=True)
class Origin:
    """The origin of a tensor: its unit and sample coordinates and its producer."""

    unit: Coordinate | None = None
    sample: Coordinate | None = None
    producer: str | None = None
    """Path of the module whose weight produced it; None if there is none."""
    norm: str | None = None
    """Path of the BatchNorm that scaled it since."""
    order: int = 0
    """Number of earlier products: the later of two producers wins."""


UNKNOWN = Origin()


def reshaped(coordinate: Coordinate, old: Sequence[int], new: Sequence[int]) -> Coordinate | None:
    """The same coordinate after a reshape, which keeps the order of the elements, or None.

    Both shapes hold the same elements in the same order, so a coordinate of the flat index,
    `flat // stride % size`, does not change; it exists in `new` if one axis holds it.
    """
    stride = coordinate.inner * math.prod(old[coordinate.axis + 1 :])
    for axis, length in enumerate(new):
        new_stride = math.prod(new[axis + 1 :])
        if new_stride == 0 or stride % new_stride:
            continue
        inner = stride // new_stride
        if length % (inner * coordinate.size) == 0 and length > 0:
            return Coordinate(axis, coordinate.size, inner)
    return None


def moved(origin: Origin, move: Move) -> Origin:
    """`origin` with both coordinates moved; a coordinate for which `move` returns None is lost."""
    return replace(
        origin,
        unit=move(origin.unit) if origin.unit else None,
        sample=move(origin.sample) if origin.sample else None,
    )


def without(coordinate: Coordinate, dim: int) -> Coordinate | None:
    if coordinate.axis == dim:
        return None
    return replace(coordinate, axis=coordinate.axis - (coordinate.axis > dim))


def resized(coordinate: Coordinate, old: Sequence[int], new: Sequence[int]) -> Coordinate | None:
    """After a slice along some axis: a whole axis may shrink, a coordinate inside one is lost."""
    if new[coordinate.axis] == old[coordinate.axis]:
        return coordinate
    if coordinate.inner == 1 and coordinate.size == old[coordinate.axis]:
        return replace(coordinate, size=new[coordinate.axis])
    return None


def concatenated(
    parts: list[tuple[Origin, tuple[int, ...]]], dim: int, shape: Sequence[int]
) -> Origin:
    """After a concatenation along `dim`: the coordinates that all parts share, larger if along
    `dim`.
    """

    def joined(coordinates: list[Coordinate | None]) -> Coordinate | None:
        present = [c for c in coordinates if c is not None]
        if len(present) < len(coordinates):
            return None
        if all(c.axis == dim and c.inner == 1 for c in present):
            whole = all(c.size == old[dim] for c, (_, old) in zip(present, parts, strict=True))
            return Coordinate(dim, shape[dim]) if whole else None
        return present[0] if len({*present}) == 1 and present[0].axis != dim else None

    return replace(
        max((origin for origin, _ in parts), key=lambda origin: origin.order),
        unit=joined([origin.unit for origin, _ in parts]),
        sample=joined([origin.sample for origin, _ in parts]),
    )


def reduced(origin: Origin, dim: int | Sequence[int], ndim: int, out: Tensor) -> Origin:
    """After a sum over `dim`: one axis, several, or all if empty."""
    dims = [dim] if isinstance(dim, int) else dim
    axes = {d % ndim for d in dims} or set(range(ndim))
    keepdim = out.ndim == ndim

    def move(coordinate: Coordinate) -> Coordinate | None:
        if coordinate.axis in axes:
            return None
        shift = 0 if keepdim else sum(d < coordinate.axis for d in axes)
        return replace(coordinate, axis=coordinate.axis - shift)

    return moved(origin, move)


def broadcast(parts: list[tuple[Origin, tuple[int, ...]]], shape: Sequence[int]) -> Origin:
    """After an element-wise operator: shapes align from the right; broadcast axes carry no
    coordinate.
    """

    def aligned(
        origin: Origin, coordinate: Coordinate | None, old: tuple[int, ...]
    ) -> tuple[int, Coordinate] | None:
        if coordinate is None or old[coordinate.axis] != shape[coordinate.axis - len(old)]:
            return None
        return origin.order, replace(coordinate, axis=coordinate.axis + len(shape) - len(old))

    def agreed(candidates: list[tuple[int, Coordinate] | None]) -> Coordinate | None:
        present = [c for c in candidates if c]
        return present[0][1] if len({c for _, c in present}) == 1 else None

    latest = max((origin for origin, _ in parts), key=lambda origin: origin.order)
    return replace(
        latest,
        unit=agreed([aligned(o, o.unit, s) for o, s in parts]),
        sample=agreed([aligned(o, o.sample, s) for o, s in parts]),
    )

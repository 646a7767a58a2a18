"""Coordinates: where units and samples are in a tensor, and how operators change that.

A coordinate that an operator mixes with others is lost (None).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from reludiag.sites.products import Product, producers_in_words


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

    def spans(self, shape: Sequence[int]) -> bool:
        """Whether it is all there is on its axis, but for blocks of the same index."""
        return self.size * self.inner == shape[self.axis]


Axes = tuple[Coordinate, ...]
"""The coordinates that together number the units, the most significant first.

The features of several heads in `[batch, head, token, feature]` are at `(1, 3)`: unit
`head * features + feature` is row `head * features + feature` of the weight that produced them.
"""

UnitAxes = Mapping[str, int | tuple[int, ...]]
"""Where the user says that units are: site -> axis, or axes, the most significant first."""

Move = Callable[[Coordinate], Axes | None]
"""From one coordinate to what it becomes: several where its axis is split, none where it is summed
over or only one index of it is selected, None where it is mixed with other coordinates."""


def size_of(axes: Axes) -> int:
    """Number of units."""
    return math.prod(coordinate.size for coordinate in axes)


def coordinates_of(given: int | Sequence[int], shape: Sequence[int]) -> Axes | None:
    """An axis that a user gave, or several; None if a tensor of this shape does not have them."""
    axes = [given] if isinstance(given, int) else list(given)
    if not axes or not all(-len(shape) <= axis < len(shape) for axis in axes):
        return None
    coordinates = tuple(Coordinate(a % len(shape), shape[a]) for a in axes)
    return coordinates if len({*coordinates}) == len(coordinates) else None


def label_of(axes: Axes) -> str:
    """How reports show them: `1`, `1//49`, or `1,3` for several."""
    return ",".join(map(str, axes))


@dataclass(frozen=True)
class Origin:
    """The origin of a tensor: its unit and sample coordinates and its producer."""

    unit: Axes | None = None
    sample: Coordinate | None = None
    products: tuple[Product, ...] = ()
    """The products that it was made of, the earliest first; several if branches were joined."""
    is_exact: bool = False
    """Whether it is one product, maybe with its bias, to which nothing else was done."""
    rectifier: str = ""
    """Path of the rectifier that it came through since."""
    norm: str | None = None
    """Path of the BatchNorm that scaled it since."""
    order: int = 0
    """Number of earlier products: the later of two producers wins."""
    is_ranked: bool = False
    """Whether it is the largest of the units: each index is a rank, and no unit."""

    @property
    def producer(self) -> str | None:
        """What made it, for a reader; None if that is not known."""
        return producers_in_words(self.products)

    @property
    def sample_axes(self) -> Axes | None:
        """The sample coordinate as a tuple, as units have them."""
        return None if self.sample is None else (self.sample,)


UNKNOWN = Origin()


def are_samples(axes: Axes | None, origin: Origin | None) -> bool:
    """Whether one of these axes is that of the samples, so that it cannot be one of units."""
    sample = None if origin is None else origin.sample
    return sample is not None and any(each.axis == sample.axis for each in axes or ())


def reshaped(coordinate: Coordinate, old: Sequence[int], new: Sequence[int]) -> Axes | None:
    """The same coordinate after a reshape, which keeps the order of the elements, or None.

    Both shapes hold the same elements in the same order, so a coordinate of the flat index,
    `flat // stride % size`, does not change. It exists in `new` if every axis holds all or an even
    part of it.
    """
    if 0 in new:
        return None
    strides = [math.prod(new[axis + 1 :]) for axis in range(len(new))]
    stride = coordinate.inner * math.prod(old[coordinate.axis + 1 :])
    if coordinate.size == 1:
        fits = (a for a, s in enumerate(strides) if stride % s == 0 and new[a] % (stride // s) == 0)
        axis = next(fits, None)
        return None if axis is None else (Coordinate(axis, 1, stride // strides[axis]),)
    pieces: list[Coordinate] = []
    left = coordinate.size
    for axis in reversed(range(len(new))):
        begin, end = strides[axis], strides[axis] * new[axis]
        if left == 1 or not begin <= stride < end:
            continue
        size = min(left, end // stride)
        if stride % begin or left % size or new[axis] % (stride // begin * size):
            return None
        pieces.append(Coordinate(axis, size, stride // begin))
        stride, left = stride * size, left // size
    return tuple(reversed(pieces)) if left == 1 else None


def moved(origin: Origin, move: Move) -> Origin:
    """`origin` with both coordinates moved; a coordinate for which `move` returns None is lost."""
    sample = move(origin.sample) if origin.sample else None
    return replace(
        origin,
        unit=moved_axes(origin.unit, move),
        sample=sample[0] if sample and len(sample) == 1 else None,
    )


def moved_axes(axes: Axes | None, move: Move) -> Axes | None:
    """The coordinates of units, each moved; None if one is lost, or nothing is left."""
    results: list[Coordinate] = []
    for coordinate in axes or ():
        pieces = move(coordinate)
        if pieces is None:
            return None
        for piece in pieces:
            last = results[-1] if results else None
            if last and last.axis == piece.axis and last.inner == piece.inner * piece.size:
                results[-1] = replace(piece, size=last.size * piece.size)
            else:
                results.append(piece)
    # Of an axis of length one there is nothing to tell, unless there is nothing else.
    return tuple(c for c in results if c.size > 1) or tuple(results[-1:]) or None


def shifted(coordinate: Coordinate, by: int) -> Axes:
    return (replace(coordinate, axis=coordinate.axis + by),)


def without(coordinate: Coordinate, dim: int) -> Axes | None:
    """After an axis is gone: a sum over it, or one index of it."""
    if coordinate.axis == dim:
        return ()
    return shifted(coordinate, -(coordinate.axis > dim))


def resized(coordinate: Coordinate, old: Sequence[int], new: Sequence[int]) -> Axes | None:
    """After a slice along some axis: a whole axis may shrink, a coordinate inside one is lost."""
    if new[coordinate.axis] == old[coordinate.axis]:
        return (coordinate,)
    if coordinate.inner == 1 and coordinate.spans(old):
        return (replace(coordinate, size=new[coordinate.axis]),)
    return None


def concatenated(
    parts: list[tuple[Origin, tuple[int, ...]]], dim: int, shape: Sequence[int]
) -> Origin:
    """After a concatenation along `dim`: the coordinates that all parts share, larger if along
    `dim`.
    """

    def joined(parts_axes: list[Axes | None], may_miss: bool = False) -> Axes | None:
        grown: set[Axes] = set()
        # A part without samples, such as zeros, says nothing of those that it stands beside.
        along_dim = any(c.axis == dim for axes in parts_axes for c in axes or ())
        for axes, (_, old) in zip(parts_axes, parts, strict=True):
            if axes is None and may_miss and not along_dim:
                continue
            along = [c for c in axes or () if c.axis == dim]
            if axes is None or (along and not (len(along) == 1 and along[0].spans(old))):
                return None
            grown.add(
                tuple(replace(c, size=shape[dim] // c.inner) if c.axis == dim else c for c in axes)
            )
        return grown.pop() if len(grown) == 1 else None

    sample = joined([origin.sample_axes for origin, _ in parts], may_miss=True)
    return replace(
        max((origin for origin, _ in parts), key=lambda origin: origin.order),
        unit=joined([origin.unit for origin, _ in parts]),
        sample=sample[0] if sample else None,
    )


def stacked(parts: list[Origin], count: int, dim: int) -> Origin:
    """After tensors are stacked along a new axis.

    What different modules produced are different units. What one module produced is the same units
    again: steps of time, say.
    """
    latest = max(parts, key=lambda origin: origin.order)
    origin = moved(latest, lambda c: shifted(c, c.axis >= dim))
    producers = {part.producer for part in parts} - {None}
    if origin.unit is None or len(producers) < count or any(p.unit != latest.unit for p in parts):
        return origin
    return replace(origin, unit=(Coordinate(dim, count), *origin.unit))


def summed(origin: Origin, axis: int) -> Origin:
    """The origin of a factor of a product that sums over this axis."""
    return moved(origin, lambda c: () if c.axis == axis else (c,))


def reduced(origin: Origin, dim: int | Sequence[int], ndim: int, out: Tensor) -> Origin:
    """After a sum over `dim`: one axis, several, or all if empty."""
    dims = [dim] if isinstance(dim, int) else dim
    axes = {d % ndim for d in dims} or set(range(ndim))
    keepdim = out.ndim == ndim

    def move(coordinate: Coordinate) -> Axes | None:
        if coordinate.axis in axes:
            return ()
        return shifted(coordinate, 0 if keepdim else -sum(d < coordinate.axis for d in axes))

    return moved(origin, move)


def broadcast(parts: list[tuple[Origin, tuple[int, ...]]], shape: Sequence[int]) -> Origin:
    """After an element-wise operator: shapes align from the right; broadcast axes carry no
    coordinate.
    """

    def aligned(axes: Axes | None, old: tuple[int, ...]) -> Axes | None:
        if axes is None or any(old[c.axis] != shape[c.axis - len(old)] for c in axes):
            return None
        return tuple(replace(c, axis=c.axis + len(shape) - len(old)) for c in axes)

    def agreed(candidates: list[Axes | None]) -> Axes | None:
        # What all share, or the one that has the units of the others and more: a shared part that
        # is added to each of several members.
        most = max((axes for axes in candidates if axes), key=len, default=None)
        return most if all(set(axes or ()) <= set(most or ()) for axes in candidates) else None

    aligned_units = [aligned(origin.unit, old) for origin, old in parts]
    unit = agreed(aligned_units)
    # The producer is that of the units that are kept, the latest of several (a residual sum).
    with_unit = [o for (o, _), axes in zip(parts, aligned_units, strict=True) if axes == unit]
    latest = max(with_unit or [o for o, _ in parts], key=lambda origin: origin.order)
    sample = agreed([aligned(o.sample_axes, s) for o, s in parts])
    is_ranked = all(origin.is_ranked for origin, _ in parts)
    return replace(latest, unit=unit, sample=sample[0] if sample else None, is_ranked=is_ranked)

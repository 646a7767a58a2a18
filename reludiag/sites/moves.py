"""Moves: operators that move, repeat or choose elements of their first input, or mix some of its
axes, and where these put each coordinate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reludiag.sites.axes import Axes, Coordinate, Move, reshaped, resized, shifted, without
from reludiag.sites.index_rules import indexed

Shape = tuple[int, ...]
Rule = Callable[[Mapping[str, Any], Shape, Shape], Move]
"""From the arguments of an operator by name and the shapes of its first input and of its result."""

# Operators that keep every axis in place; sizes of position axes may change.
_KEEP_AXES = (
    "max_pool",
    "avg_pool",
    "adaptive_",
    "fractional_max_pool",
    "upsample",
    "constant_pad_nd",
    "reflection_pad",
    "replication_pad",
    "grid_sampler",
    "scaled_dot_product",
    "softmax",
    "log_softmax",
    "roi_align",
    "roi_pool",
)


def move_of(name: str, arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move | None:
    """What an operator does to a coordinate of its first input; None for other operators."""
    rule = _RULES.get(name)
    if rule is not None:
        return rule(arguments, old, new)
    if name.startswith(_KEEP_AXES):
        return lambda c: (c,) if len(new) == len(old) and new[c.axis] == old[c.axis] else None
    return None


def _reshape(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    return lambda c: reshaped(c, old, new)


def _permute(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    order = list(range(len(old)))
    if "dims" in arguments:
        order = [dim % len(old) for dim in arguments["dims"]]
    elif len(old) > 1:
        first, second = arguments.get("dim0", 0), arguments.get("dim1", 1)
        order[first], order[second] = order[second], order[first]
    return lambda c: (replace(c, axis=order.index(c.axis)),)


def _add_axes(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    return lambda c: shifted(c, len(new) - len(old))


def _drop_axis(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    return lambda c: without(c, arguments["dim"] % len(old))


def _slice(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    return lambda c: resized(c, old, new)


def _choose(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    """Other elements at each index along `dim`."""
    dim = arguments["dim"] % max(len(old), 1)
    return lambda c: (
        None if c.axis == dim or new[c.axis : c.axis + 1] != old[c.axis : c.axis + 1] else (c,)
    )


def _index(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    return lambda c: indexed(c, arguments["indices"], len(old))


def _unfold(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    dim = arguments["dimension"] % len(old)
    return lambda c: None if c.axis == dim else (c,)


def _windows(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    """Each channel becomes a block of the places in a window."""
    if len(old) != 4:
        return lambda c: None
    blocks = new[1] // old[1]
    return lambda c: (
        (replace(c, inner=c.inner * blocks),) if c.axis == 1 else (c,) if c.axis == 0 else None
    )


def _overlap(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    """The opposite: windows are added up."""
    if len(old) != 3:
        return lambda c: None
    blocks = old[1] // new[1]
    return lambda c: (
        (replace(c, inner=c.inner // blocks),)
        if c.axis == 1 and c.inner % blocks == 0
        else (c,)
        if c.axis == 0
        else None
    )


def _transform(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    """A Fourier transform mixes the axes along which it goes."""
    dims = {dim % len(old) for dim in arguments["dim"]}
    return lambda c: () if c.axis in dims else (c,)


def _shuffle_pixels(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    *front, _, height, width = old
    r, channels, n = arguments["upscale_factor"], new[-3], len(front)
    split = *front, channels, r, r, height, width
    joint = *front, channels, height, r, width, r
    return _through(old, split, [n, n + 3, n + 1, n + 4, n + 2], n, joint, new)


def _gather_pixels(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    *front, channels, _, _ = old
    r, n, height, width = arguments["downscale_factor"], len(front), new[-2], new[-1]
    split = *front, channels, height, r, width, r
    joint = *front, channels, r, r, height, width
    return _through(old, split, [n, n + 2, n + 4, n + 1, n + 3], n, joint, new)


def _shuffle_channels(arguments: Mapping[str, Any], old: Shape, new: Shape) -> Move:
    batch, channels, *rest = old
    groups = arguments["groups"]
    split = batch, groups, channels // groups, *rest
    joint = batch, channels // groups, groups, *rest
    return _through(old, split, [2, 1, *range(3, len(split))], 1, joint, new)


def _through(
    old: Shape, split: Shape, order: Sequence[int], front: int, joint: Shape, new: Shape
) -> Move:
    """A reshape to `split`, a permutation of what is after `front` axes, and a reshape to `new`."""
    whole = [*range(front), *order]

    def move(coordinate: Coordinate) -> Axes | None:
        pieces = reshaped(coordinate, old, split)
        results: list[Coordinate] = []
        for piece in pieces or ():
            last = reshaped(replace(piece, axis=whole.index(piece.axis)), joint, new)
            if last is None:
                return None
            results += last
        return None if pieces is None else tuple(results)

    return move


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("view", "unsafe_view", "reshape", "reshape_alias", "squeeze", "unsqueeze", "alias"),
            *("detach", "clone", "to_copy", "contiguous", "lift_fresh", "flatten"),
        ),
        _reshape,
    ),
    **dict.fromkeys(("permute", "transpose", "t", "movedim"), _permute),
    **dict.fromkeys(("expand", "repeat"), _add_axes),
    **dict.fromkeys(("select", "unbind"), _drop_axis),
    **dict.fromkeys(
        (
            *("slice", "split", "split_with_sizes", "chunk", "narrow", "tensor_split"),
            *("unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"),
        ),
        _slice,
    ),
    **dict.fromkeys(("gather", "sort", "topk", "kthvalue"), _choose),
    "index_select": lambda arguments, old, new: lambda c: resized(c, old, new),
    **dict.fromkeys(("index", "unsafe_index"), _index),
    "unfold": _unfold,
    "im2col": _windows,
    "col2im": _overlap,
    **dict.fromkeys(("fft_r2c", "fft_c2r", "fft_c2c"), _transform),
    "pixel_shuffle": _shuffle_pixels,
    "pixel_unshuffle": _gather_pixels,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _shuffle_channels),
    "view_as_real": lambda arguments, old, new: lambda c: (c,),
    "view_as_complex": lambda arguments, old, new: lambda c: (c,) if c.axis < len(new) else None,
}

"""Which part of a parameter a view, a slice or a cast of it covers."""

from dataclasses import replace

from torch import Tensor

from reludiag.sites.operation import RESHAPES, Operation, Weight


def view_of(call: Operation, weight: Weight, shape: tuple[int, ...], output: Tensor) -> Weight:
    """Which part of a parameter a view, a slice or a cast of it covers."""
    name, arguments, ndim = call.name, call.arguments, len(shape)
    assert weight.axes is not None
    axes, new = list(weight.axes), tuple(output.shape)
    if name in {"t", "transpose", "permute"}:
        order = list(range(ndim))
        if name == "permute":
            order = [dim % ndim for dim in arguments["dims"]]
        elif ndim > 1:
            first, second = arguments.get("dim0", 0) % ndim, arguments.get("dim1", 1) % ndim
            order[first], order[second] = order[second], order[first]
        return replace(weight, axes=tuple(axes[old] for old in order))
    if name in RESHAPES:
        # Axes of length 1 come and go; others must stay as they are.
        if [n for n in shape if n != 1] != [n for n in new if n != 1]:
            return replace(weight, axes=None)
        long_axes = iter([axis for axis, length in zip(axes, shape, strict=True) if length != 1])
        return replace(weight, axes=tuple(None if n == 1 else next(long_axes) for n in new))
    if name == "expand":
        more = len(new) - ndim
        added: list[int | None] = [None] * more
        sides = zip(added + axes, (1,) * more + shape, new, strict=True)
        same = [axis if old == length else None for axis, old, length in sides]
        return replace(weight, axes=tuple(same))
    if name in {"slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind"}:
        return _sliced(call, weight, axes, shape, output)
    return replace(weight, axes=None)


def _sliced(
    call: Operation,
    weight: Weight,
    axes: list[int | None],
    shape: tuple[int, ...],
    output: Tensor,
) -> Weight:
    dim = call.arguments.get("dim", 0) % len(shape)
    own = axes[dim]
    source = next(iter(call.inputs.values())).tensor
    stride = source.stride(dim)
    if own is None or call.arguments.get("step", 1) != 1 or stride == 0:
        return replace(weight, axes=None)
    begin = (output.storage_offset() - source.storage_offset()) // stride
    drops_axis = call.name in {"select", "unbind"}
    length = 1 if drops_axis else output.shape[dim]
    low = weight.bounds[own][0] + begin
    bounds = tuple(
        (low, low + length) if axis == own else bound for axis, bound in enumerate(weight.bounds)
    )
    view_axes = [axis for place, axis in enumerate(axes) if not (drops_axis and place == dim)]
    return replace(weight, axes=tuple(view_axes), bounds=bounds)

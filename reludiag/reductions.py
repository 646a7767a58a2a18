"""The reductions that statistics are made of, over activations as `Call.output` gives them.

An activation is `[sample, unit, position]`, or `[sample, unit]` where there is one position; it is
not empty nor in a graph. On the CPU each reduction is one read by compiled code (`_kernels.cpp`).
Elsewhere, where that was not compiled, or where memory is laid out otherwise, PyTorch's operators
do the same; none of them makes a device wait.
"""

import torch
from torch import Tensor

try:
    from reludiag import _kernels
except ImportError:  # installed without a C++ compiler
    _kernels = None  # type: ignore[assignment]

ACTIVE, FIRED, TOTAL, SQUARE, ABSOLUTE = range(5)
"""Rows of the sums: positions at which a unit fired; samples in which it did, at one position or
more; sum of the activations; of their squares; and, where they can be negative, of their absolute
values."""

SEEN_FIRING, SEEN_NONFINITE = 1, 2
"""Bits of a unit's state."""

_Read = tuple[int, int, int, int, int, int, int, int, int]
_KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def add_sums(x: Tensor, signed: bool, sums: Tensor, maximum: Tensor, minimum: Tensor) -> None:
    """Add one call to `sums`, float64 `[row, unit]`, and to the extremes, `[unit]`.

    `signed` says that a unit also fires where it is negative. A NaN does not fire; it makes the
    extremes and `TOTAL` NaN.
    """
    read = _read(x, sums)
    # What is read from doubles is written to doubles; a model may change its type on the way.
    if read is not None and (x.dtype == torch.float64) == (maximum.dtype == torch.float64):
        _kernels.count(*read, signed, sums.data_ptr(), maximum.data_ptr(), minimum.data_ptr())
        return
    x = x if x.ndim == 3 else x.unsqueeze(2)
    firing = (x != 0) & ~x.isnan() if signed else x > 0
    where = (0, 2)
    rows = [
        firing.sum(where),
        firing.any(2).sum(0),
        x.sum(where, dtype=torch.float64),
        torch.linalg.vector_norm(x, 2, where, dtype=torch.float64).square_(),
    ]
    if signed:
        rows.append(torch.linalg.vector_norm(x, 1, where, dtype=torch.float64))
    sums.add_(torch.stack([row.double() for row in rows]))
    raise_to(maximum, _highest(x))
    torch.minimum(minimum, _lowest(x).to(minimum.dtype), out=minimum)


def note_firing(x: Tensor, signed: bool, states: Tensor, highest: Tensor) -> bool:
    """Note which units fired in one call, exactly. Returns whether all are known to have by now.

    A unit that fired is not read again: nothing that it does later can make it dead. What was seen
    is in either of `states`, uint8 of the bits above, and `highest`, the largest magnitude seen,
    NaN once one was.
    """
    read = _read(x, states)
    if read is not None:
        return bool(_kernels.watch(*read, signed, states.data_ptr()) == 0)
    largest = _highest(x)
    raise_to(highest, torch.maximum(largest, -_lowest(x)) if signed else largest)
    return False  # asking a GPU would make the step wait


def note_highest(x: Tensor, running: Tensor, fired: Tensor | None) -> None:
    """Raise the running maxima, float32 `[unit]`; only of units whose `fired` is 0, if given.

    Those of other units are then of no meaning.
    """
    read = _read(x, running)
    if read is not None:
        _kernels.raise_maximum(*read, 0 if fired is None else fired.data_ptr(), running.data_ptr())
    else:
        raise_to(running, _highest(x))


def highest_of(x: Tensor, fired: Tensor | None = None) -> Tensor:
    """The maxima that `note_highest` notes, of one call alone."""
    running = torch.full((x.shape[1],), -float("inf"), device=x.device)
    note_highest(x, running, fired)
    return running


def raise_to(running: Tensor, highest: Tensor) -> None:
    """Take a call's maxima, `[unit]`, into the running ones; a NaN stays."""
    torch.maximum(running, highest.to(running.dtype), out=running)


def _read(x: Tensor, into: Tensor) -> _Read | None:
    """Address, kind, shape, strides and number of threads; None for what is not read so.

    `into` is one of the accumulators, `[..., unit]`.
    """
    kind = _KINDS.get(x.dtype)
    if _kernels is None or kind is None or type(x) is not Tensor or not x.is_cpu:
        return None
    if not into.is_cpu or into.shape[-1] != x.shape[1]:
        return None
    if x.ndim == 2:
        samples, units, positions = *x.shape, 1
        by_sample, by_unit, by_position = *x.stride(), 1
    else:
        samples, units, positions = x.shape
        by_sample, by_unit, by_position = x.stride()
    if by_unit != 1 and by_position != 1:
        return None
    threads = torch.get_num_threads()
    shape, strides = (samples, units, positions), (by_sample, by_unit, by_position)
    return x.data_ptr(), kind, *shape, *strides, threads


def _highest(x: Tensor) -> Tensor:
    """Maximum of each unit, NaN where there is one."""
    if x.ndim == 2:
        return x.amax(dim=0)
    if x.stride(2) == 1:  # positions first, then samples: two to three times as fast as at once
        return x.amax(dim=2).amax(dim=0)
    return x.amax(dim=(0, 2))


def _lowest(x: Tensor) -> Tensor:
    return -_highest(-x)

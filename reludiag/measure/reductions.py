"""The reductions that statistics are made of, over the activations of one call.

An activation is `[sample, unit, position]`, or `[sample, unit]` where there is one position; or any
tensor with a `UnitView`, which sees it so. It is not empty nor in a graph. On the CPU each
reduction is one read by compiled code (`native/`). Elsewhere, where that was not compiled, or where
memory is laid out otherwise, PyTorch's operators do the same; none of them makes a device wait.
"""

import warnings

import torch
from torch import Tensor

from reludiag.capture.calls import UnitView
from reludiag.measure import compiled

_problem = compiled.check()
if not _problem:
    from reludiag import _kernels

    try:
        _kernels.attach(torch.Tensor)
    except ImportError as error:
        _problem = f"reludiag's compiled part cannot be used: {error}. {compiled.COST}"
if _problem:
    _kernels = None  # type: ignore[assignment]

ACTIVE, FIRED, TOTAL, SQUARE, ABSOLUTE = range(5)
"""Rows of the sums: positions at which a unit fired; samples in which it did, at one position or
more; sum of the activations; of their squares; and, where they can be negative, of their absolute
values."""

SEEN_FIRING, SEEN_NONFINITE = 1, 2
"""Bits of a unit's state."""


def add_sums(
    x: Tensor,
    reading: UnitView | None,
    signed: bool,
    sums: Tensor,
    maximum: Tensor,
    minimum: Tensor,
) -> None:
    """Add one call to `sums`, float64 `[row, unit]`, and to the extremes, `[unit]`.

    `signed` says that a unit also fires where it is negative. A NaN does not fire; it makes the
    extremes and `TOTAL` NaN.
    """
    if reading is not None:
        if _kernels and _kernels.count(x, reading.plan, signed, sums, maximum, minimum):
            return
        x = reading.of(x)
    if _kernels and _kernels.count(x, None, signed, sums, maximum, minimum):
        return
    _warn_once(x)
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
    _raise_to(maximum, _highest(x))
    torch.minimum(minimum, _lowest(x).to(minimum.dtype), out=minimum)


def note_firing(
    x: Tensor, reading: UnitView | None, signed: bool, states: Tensor, highest: Tensor
) -> bool:
    """Note which units fired in one call, exactly. Returns whether all are known to have by now.

    A unit that fired is not read again: nothing that it does later can make it dead. What was seen
    is in either of `states`, uint8 of the bits above, and `highest`, float32, the largest magnitude
    seen, NaN once one was; that may be of no length, to save memory at the cost of more operators.
    """
    left: int | None = None
    if _kernels and reading is not None:
        left = _kernels.watch(x, reading.plan, signed, states)
    if left is None:
        x = x if reading is None else reading.of(x)
        left = _kernels.watch(x, None, signed, states) if _kernels else None
    if left is not None:
        return left == 0
    _warn_once(x)
    largest = _highest(x)
    if signed:
        largest = torch.maximum(largest, -_lowest(x))
    # What is too small for float32, or too large, must not be rounded on the way.
    if len(highest) and x.dtype != torch.float64:
        _raise_to(highest, largest)
    else:
        states |= (largest > 0) * SEEN_FIRING | ~largest.isfinite() * SEEN_NONFINITE
    return False  # asking a GPU would make the step wait


def note_highest(
    x: Tensor, reading: UnitView | None, running: Tensor, fired: Tensor | None
) -> None:
    """Raise the running maxima, float32 `[unit]`; only of units whose `fired` is 0, if given.

    Those of other units are then of no meaning.
    """
    if reading is not None:
        if _kernels and _kernels.raise_maximum(x, reading.plan, fired, running):
            return
        x = reading.of(x)
    if not (_kernels and _kernels.raise_maximum(x, None, fired, running)):
        _warn_once(x)
        _raise_to(running, _highest(x))


def all_finite(x: Tensor) -> bool:
    """Whether no value of a floating-point tensor is NaN or infinite."""
    finite = _kernels.all_finite(x) if _kernels else None
    if finite is not None:
        return finite
    _warn_once(x)
    # A sum is finite only if all of it is, and costs a tenth of asking each.
    return bool(x.sum().isfinite() or x.isfinite().all())


def _warn_once(x: Tensor) -> None:
    """Say what is wrong with the compiled part, the first time that it would have been used."""
    global _problem
    if _problem and x.device.type == "cpu":
        problem, _problem = _problem, ""
        warnings.warn(problem, RuntimeWarning, stacklevel=3)


def _raise_to(running: Tensor, highest: Tensor) -> None:
    """Take a call's maxima, `[unit]`, into the running ones; a NaN stays."""
    torch.maximum(running, highest.to(running.dtype), out=running)


def _highest(x: Tensor) -> Tensor:
    """Maximum of each unit, NaN where there is one."""
    if x.ndim == 2:
        return x.amax(dim=0)
    if x.stride(2) == 1:  # positions first, then samples: two to three times as fast as at once
        return x.amax(dim=2).amax(dim=0)
    return x.amax(dim=(0, 2))


def _lowest(x: Tensor) -> Tensor:
    return -_highest(-x)

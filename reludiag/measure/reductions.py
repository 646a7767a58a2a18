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
from reludiag.measure import extension

_problem = extension.check()
if not _problem:
    from reludiag import _kernels

    try:
        _kernels.attach(torch.Tensor)
    except ImportError as error:
        _problem = f"reludiag's compiled part cannot be used: {error}. {extension.COST}"
if _problem:
    _kernels = None  # type: ignore[assignment]

ACTIVE, FIRED, TOTAL, SQUARE, ABSOLUTE = range(5)
"""Rows of the sums: number of positions at which a unit fired; number of samples in which it fired;
sum of the activations, of their squares and, if they can be negative, of their absolute values.
"""

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

    With `signed` a unit also fires if it is negative. A NaN does not fire; it makes the
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
    """Note exactly which units fired in one call.

    Returns whether all units are known to have fired. A unit that has fired is not read again,
    because nothing later can make it dead. The result is in `states` (uint8, the bits above) or in
    `highest` (float32, the largest magnitude, NaN after a NaN); `highest` may be empty, which saves
    memory and takes more operators.
    """
    silent: int | None = None
    if _kernels and reading is not None:
        silent = _kernels.watch(x, reading.plan, signed, states)
    if silent is None:
        x = x if reading is None else reading.of(x)
        silent = _kernels.watch(x, None, signed, states) if _kernels else None
    if silent is not None:
        return silent == 0
    _warn_once(x)
    largest = _highest(x)
    if signed:
        largest = torch.maximum(largest, -_lowest(x))
    # Values too small or too large for float32 must not be rounded.
    if len(highest) and x.dtype != torch.float64:
        _raise_to(highest, largest)
    else:
        states |= (largest > 0) * SEEN_FIRING | ~largest.isfinite() * SEEN_NONFINITE
    return False  # reading from a GPU would make the step wait


def note_highest(
    x: Tensor, reading: UnitView | None, running: Tensor, fired: Tensor | None
) -> None:
    """Raise the running maxima, float32 `[unit]`; only for units whose `fired` is 0, if given.

    The maxima of other units then have no meaning.
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
    # A sum is finite only if every value is, and costs a tenth of checking each value.
    return bool(x.sum().isfinite() or x.isfinite().all())


def _warn_once(x: Tensor) -> None:
    """Say what is wrong with the compiled part, the first time that it would have been used."""
    global _problem
    if _problem and x.device.type == "cpu":
        problem, _problem = _problem, ""
        warnings.warn(problem, RuntimeWarning, stacklevel=3)


def _raise_to(running: Tensor, highest: Tensor) -> None:
    """Merge a call's maxima, `[unit]`, into the running ones; a NaN stays."""
    torch.maximum(running, highest.to(running.dtype), out=running)


def _highest(x: Tensor) -> Tensor:
    """Maximum of each unit; NaN if it has a NaN."""
    if x.ndim == 2:
        return x.amax(dim=0)
    if x.stride(2) == 1:  # positions first, then samples: two to three times as fast as at once
        return x.amax(dim=2).amax(dim=0)
    return x.amax(dim=(0, 2))


def _lowest(x: Tensor) -> Tensor:
    return -_highest(-x)

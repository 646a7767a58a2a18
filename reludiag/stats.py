"""What is accumulated per unit, on the model's device, and how two windows of it merge.

Counts and sums are float64, exact up to 2**53: float32 counters stop at 2**24. Nothing here waits
for a GPU, and no activation is kept. A unit takes 44 bytes (52 if it can be negative; 12 more in
double precision), and 4 more (8) while its liveness is watched.
"""

import operator
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PIECE = 2**17  # elements; 512 KiB of float32 stays in a core's cache
_FEW = 16  # a gather pays where at most one unit in so many is left to watch

Counts = np.ndarray[Any, np.dtype[np.int64]]
Reals = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

# Rows of the sums.
_ACTIVE, _FIRED, _TOTAL, _SQUARE, _ABSOLUTE = range(5)


@dataclass
class UnitStats:
    """Running statistics of one site's units. Tensors have shape `[unit]`, but for `sums`."""

    samples: int
    positions: int
    """Positions per unit, over all samples."""
    calls: int
    signed: bool
    """Whether a unit also fires where it is negative, as a hard-swish does."""
    passes: bool
    """Whether it passes its pre-activation on where it fires, as a ReLU does and a ReLU6 not."""
    sums: Tensor
    """float64 `[row, unit]`: positions at which the unit fired; samples in which it did, at one
    position or more; sum of the activations; of their squares; and, where they can be negative,
    of their absolute values."""
    maximum: Tensor
    """-inf before the first sample, NaN once one was seen."""
    minimum: Tensor
    """Where nothing is negative, only of units that fired at every position: of the rest it
    is 0."""
    before_maximum: Tensor
    """float32: of the pre-activations; -inf where none could be read."""

    @classmethod
    def empty(
        cls,
        units: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        signed: bool = False,
        passes: bool = False,
    ) -> "UnitStats":
        """Before the first sample of activations of `dtype`."""
        fine, inf = _fine(dtype), float("inf")
        with torch.inference_mode(False):  # they are written to outside as well
            return cls(
                samples=0,
                positions=0,
                calls=0,
                signed=signed,
                passes=passes,
                sums=torch.zeros((4 + signed, units), dtype=torch.float64, device=device),
                maximum=torch.full((units,), -inf, dtype=fine, device=device),
                minimum=torch.full((units,), inf, dtype=fine, device=device),
                before_maximum=torch.full((units,), -inf, dtype=torch.float32, device=device),
            )

    def update(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Add one call's output, which is not empty nor in a graph.

        It is `[sample, unit, position]`, or `[sample, unit]` where there is one position.
        `before` is its pre-activation, of the same shape, where it can be had. Returns the
        largest magnitude of each unit in this call, NaN where one was seen.
        """
        samples, positions = len(x), 1 if x.ndim == 2 else x.shape[2]
        self.calls += 1
        self.samples += samples
        self.positions += samples * positions
        highest: Tensor | None = None
        lowest: Tensor | None = None
        for piece in _pieces(x):
            part, high, low = _reduced(piece, self.signed)
            self.sums.add_(part)
            highest = high if highest is None else torch.maximum(highest, high)
            if low is not None:
                lowest = low if lowest is None else torch.minimum(lowest, low)
        assert highest is not None
        _raise(self.maximum, highest)
        if lowest is None and (x.is_cuda or self._always_on()):
            lowest = _lowest(x)
        if lowest is not None:
            torch.minimum(self.minimum, lowest.to(self.minimum.dtype), out=self.minimum)
        if before is not None:
            self._note_before(before)
        return torch.maximum(highest, -lowest) if self.signed and lowest is not None else highest

    @property
    def asks(self) -> bool:
        """Whether it makes use of pre-activations: not where they are those that were passed on."""
        return not self.passes or self.sums.is_cuda or len(self._silent()) > 0

    def _silent(self) -> Tensor:
        return torch.from_numpy(np.flatnonzero(self.sums[_FIRED].numpy() == 0))

    def _note_before(self, before: Tensor) -> None:
        if self.passes and not before.is_cuda:
            silent = self._silent()
            if len(silent) * _FEW <= before.shape[1]:
                if len(silent):
                    seen = self.before_maximum[silent]
                    _raise(seen, highest_of(_chosen(before, silent)))
                    self.before_maximum[silent] = seen
                return
        _raise(self.before_maximum, highest_of(before))

    def _always_on(self) -> bool:
        """Whether a unit fired at every position."""
        return bool(self.sums[_ACTIVE].cpu().numpy().max(initial=0.0) == self.positions)

    def counts(self) -> "UnitCounts":
        """The same as plain arrays in the host's memory; every sample was watched."""
        sums = self.sums.cpu().numpy().copy()
        maximum, minimum, before_maximum = (
            tensor.cpu().numpy().astype(np.float64)
            for tensor in (self.maximum, self.minimum, self.before_maximum)
        )
        counts = sums[: _FIRED + 1]
        if np.isnan(maximum).any():  # a NaN is no number of samples
            counts = np.nan_to_num(counts)
        active, fired = counts.astype(np.int64)
        if self.passes:
            before_maximum = np.where(fired > 0, maximum, before_maximum)
        if not self.signed:
            minimum = np.where(active < self.positions, np.fmin(minimum, 0.0), minimum)
        observed = self.samples > 0
        return UnitCounts(
            samples=self.samples,
            counted=self.samples,
            positions=self.positions,
            calls=self.calls,
            silent=fired == 0,
            nonfinite=~(np.isfinite(maximum) & np.isfinite(minimum)) & observed,
            fired=fired,
            active=active,
            total=sums[_TOTAL],
            total_absolute=sums[_ABSOLUTE if self.signed else _TOTAL],
            total_square=sums[_SQUARE],
            maximum=maximum,
            minimum=minimum,
            before_maximum=before_maximum,
        )


class Liveness:
    """Which units have not fired since the window began: exact, and of every batch.

    A unit that fired once is discharged: nothing that it does later in the window can make it
    dead. So the running maximum of all units is taken until few are left, then of those alone,
    and then of none.
    """

    def __init__(
        self, units: int, device: torch.device | str, dtype: torch.dtype, signed: bool
    ) -> None:
        self.signed = signed
        self.done = False
        """Whether every unit has fired."""
        with torch.inference_mode(False):
            self._highest = torch.zeros(units, dtype=_fine(dtype), device=device)
        """Largest magnitude seen, NaN once one was seen; of discharged units a lower bound."""
        self._left: Tensor | None = None  # the units to watch, all of them while None
        self._of_left = self._highest
        self._calls = 0

    def observe(self, x: Tensor) -> None:
        """Add one call's output, as `UnitStats.update` takes it."""
        if self._left is not None:
            x = _chosen(x, self._left)
        _raise(self._of_left, _magnitude(x, self.signed))
        self._count()

    def note(self, highest: Tensor) -> None:
        """The same from the largest magnitudes of a call, `[unit]`."""
        if self._left is not None:
            highest = highest.index_select(0, self._left)
        _raise(self._of_left, highest)
        self._count()

    def _count(self) -> None:
        self._calls += 1
        often = self._calls <= 8 or self._calls & (self._calls - 1) == 0
        # Asking a GPU which are left would make the step wait; there all units are read.
        if not often or self._highest.device.type != "cpu":
            return
        seen = self._of_left.numpy()
        left = np.flatnonzero(~(seen > 0))
        self.done = len(left) == 0
        if self.done or len(left) * _FEW > len(self._highest) or len(left) == len(seen):
            return
        self._write_back()
        chosen = torch.from_numpy(left)
        self._left = chosen if self._left is None else self._left[chosen]
        self._of_left = self._of_left[chosen]

    def _write_back(self) -> None:
        if self._left is not None:
            self._highest.index_copy_(0, self._left, self._of_left)

    def mask(self) -> tuple[Mask, Mask]:
        """(silent, not finite) of each unit."""
        self._write_back()
        highest = self._highest.cpu().numpy()
        return ~(highest > 0), ~np.isfinite(highest)


def _chosen(x: Tensor, units: Tensor) -> Tensor:
    """Some units of what `UnitStats.update` takes."""
    if x.ndim == 3 and x.stride(2) != 1:  # picked out of the last axis, it is eight times as fast
        return x.transpose(1, 2).index_select(2, units).transpose(1, 2)
    return x.index_select(1, units)


def _raise(running: Tensor, highest: Tensor) -> None:
    """Take a call's maxima, `[unit]`, into the running ones."""
    if highest.dtype != running.dtype:
        highest = highest.to(running.dtype)
    torch.maximum(running, highest, out=running)


def _either(a: Mask, b: Mask) -> Mask:
    return a | b


def _both(a: Mask, b: Mask) -> Mask:
    return a & b


@dataclass(frozen=True)
class UnitCounts:
    """One site's statistics as arrays of shape `[unit]`, each with how two windows merge."""

    samples: int = field(metadata={"merge": operator.add})
    """Samples of which it is known whether a unit fired in one of them."""
    counted: int = field(metadata={"merge": operator.add})
    """Of these, the samples that all that follows but `silent` and `nonfinite` is of."""
    positions: int = field(metadata={"merge": operator.add})
    calls: int = field(metadata={"merge": operator.add})
    silent: Mask = field(metadata={"merge": _both})
    """It fired in none of all samples."""
    nonfinite: Mask = field(metadata={"merge": _either})
    """A NaN or an infinity was seen."""
    fired: Counts = field(metadata={"merge": operator.add})
    active: Counts = field(metadata={"merge": operator.add})
    total: Reals = field(metadata={"merge": operator.add})
    total_absolute: Reals = field(metadata={"merge": operator.add})
    total_square: Reals = field(metadata={"merge": operator.add})
    maximum: Reals = field(metadata={"merge": np.maximum})
    minimum: Reals = field(metadata={"merge": np.minimum})
    before_maximum: Reals = field(metadata={"merge": np.maximum})

    @classmethod
    def nothing(cls, units: int) -> "UnitCounts":
        """Of a site that was not called."""
        return UnitStats.empty(units).counts()

    def merged(self, other: "UnitCounts") -> "UnitCounts":
        """The counts of both windows together."""
        return UnitCounts(
            **{
                f.name: f.metadata["merge"](getattr(self, f.name), getattr(other, f.name))
                for f in fields(self)
            }
        )


def highest_of(x: Tensor) -> Tensor:
    """Maximum of each unit, NaN where there is one; of what `UnitStats.update` takes."""
    if x.ndim == 2:
        return x.amax(dim=0)
    if x.stride(2) == 1:  # positions first, then samples: two to three times as fast as at once
        return x.amax(dim=2).amax(dim=0)
    return x.amax(dim=(0, 2))


def _lowest(x: Tensor) -> Tensor:
    if x.ndim == 2:
        return x.amin(dim=0)
    return x.amin(dim=2).amin(dim=0) if x.stride(2) == 1 else x.amin(dim=(0, 2))


def _magnitude(x: Tensor, signed: bool) -> Tensor:
    """The largest magnitude of each unit."""
    if x.dtype in _HALVES and x.device.type == "cpu" and not signed:
        # Floats that are not negative order as their bits do, and integers are vectorised.
        bits = x.view(torch.int16)
        highest = highest_of(bits)
        lowest = _lowest(bits)
        if bool((lowest == -(2**15)).any()):  # -0.0, which hides the NaN below
            return highest_of(x.float())
        odd = lowest < 0  # a NaN with its sign set
        highest = highest.clamp_(min=0).view(x.dtype).float()
        return highest.masked_fill_(odd, float("nan"))
    highest = highest_of(x)
    return torch.maximum(highest, -_lowest(x)) if signed else highest


_HALVES = (torch.float16, torch.bfloat16)


def _fine(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """`x` cut along its samples so that a piece stays in the cache while it is read again."""
    if x.device.type != "cpu" or x.numel() <= _PIECE:
        return iter((x,))
    return iter(torch.split(x, max(1, _PIECE * len(x) // x.numel())))


class _Scratch(threading.local):
    """Memory that is written again and again: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._memory: dict[tuple[torch.dtype, int], Tensor] = {}
        self._views: dict[tuple[torch.dtype, int, torch.Size], Tensor] = {}

    def like(self, x: Tensor, index: int, dtype: torch.dtype) -> Tensor:
        """Memory of the shape of `x`, of which every element will be written."""
        if x.device.type != "cpu" or x.numel() > 4 * _PIECE:
            return torch.empty(x.shape, dtype=dtype, device=x.device)
        key = (dtype, index, x.shape)
        view = self._views.get(key)
        if view is None:
            memory = self._memory.get((dtype, index))
            if memory is None:
                with torch.inference_mode(False):
                    memory = torch.empty(4 * _PIECE, dtype=dtype)
                self._memory[dtype, index] = memory
            if len(self._views) > 256:  # of shapes that are never the same
                self._views.clear()
            view = self._views[key] = memory[: x.numel()].view(x.shape)
        return view


_scratch = _Scratch()


def _reduced(x: Tensor, signed: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows of sums of one piece, its maxima and, if signed, minima.

    Within a piece float32 is fine: its counts are exact up to 2**24. But of values that cancel it
    would leave its rounding.
    """
    rows_only = x.ndim == 2
    dim = 0 if rows_only else 2
    if not rows_only and x.stride(2) != 1:
        x, dim = x.transpose(1, 2), 1  # where units lie together, they are the last axis
    if x.dtype in _HALVES:
        x = _scratch.like(x, 0, torch.float32).copy_(x)
    work = _scratch.like(x, 1, x.dtype)
    # By the sign: it beats a mask by five times, since no reduction is vectorised for bytes.
    marks = torch.sign(x, out=work)
    active = (marks.abs_() if signed else marks).sum(dim=dim)
    total = x.sum(dim=dim, dtype=torch.float64 if signed else None)
    absolute = torch.abs(x, out=work).sum(dim=dim) if signed else None
    if rows_only or dim == 1:
        square = torch.mul(x, x, out=work).sum(dim=dim)
    else:
        square = torch.linalg.vector_norm(x, dim=dim).square_()
    highest = x.amax(dim=dim)
    lowest = x.amin(dim=dim) if signed else None
    if rows_only:
        fired = active
    else:
        fired = torch.sign(highest if lowest is None else torch.maximum(highest, -lowest))
    rows = torch.stack([active, fired, total, square, *([] if absolute is None else [absolute])])
    if not rows_only:
        rows = rows.sum(dim=1, dtype=torch.float64)
        highest = highest.amax(dim=0)
        lowest = None if lowest is None else lowest.amin(dim=0)
    return rows, highest, lowest

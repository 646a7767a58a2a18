"""What is accumulated per unit, on the model's device, and how two windows of it merge.

Counts are int64 and sums are float64: float32 counters stop at 2**24. Nothing here waits for a
GPU, and no activation is kept. A unit takes 44 bytes (52 if it can be negative; 60 and 68 in
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


@dataclass
class UnitStats:
    """Running statistics of one site's units. Tensors have shape `[unit]`."""

    samples: int
    positions: int
    """Positions per unit, over all samples."""
    calls: int
    signed: bool
    """Whether a unit also fires where it is negative, as a hard-swish does."""
    fired: Tensor
    """int64: samples in which the unit fired at one position or more."""
    active: Tensor
    """int64: positions at which it fired."""
    total: Tensor
    """float64: sum of the activations."""
    total_absolute: Tensor
    """float64: sum of their absolute values; the same tensor as `total` where nothing is
    negative."""
    total_square: Tensor
    """float64: sum of their squares."""
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
    ) -> "UnitStats":
        """Before the first sample of activations of `dtype`."""

        def full(value: float, kind: torch.dtype) -> Tensor:
            with torch.inference_mode(False):  # it is written to outside as well
                return torch.full((units,), value, dtype=kind, device=device)

        count, real, inf = torch.int64, torch.float64, float("inf")
        fine = _fine(dtype)
        total = full(0, real)
        return cls(
            samples=0,
            positions=0,
            calls=0,
            signed=signed,
            fired=full(0, count),
            active=full(0, count),
            total=total,
            total_absolute=full(0, real) if signed else total,
            total_square=full(0, real),
            maximum=full(-inf, fine),
            minimum=full(inf, fine),
            before_maximum=full(-inf, torch.float32),
        )

    @torch.no_grad()
    def update(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Add one call's output, `[sample, unit, position]`, which is not empty.

        `before` is its pre-activation, of the same shape, where it can be had. Returns the
        largest magnitude of each unit in this call, NaN where one was seen.
        """
        samples, _, positions = x.shape
        self.calls += 1
        self.samples += samples
        self.positions += samples * positions
        highest: Tensor | None = None
        lowest: Tensor | None = None
        active = torch.zeros_like(self.total)
        for piece in _pieces(x):
            part = _reduced(piece, self.signed)
            highest = part.maximum if highest is None else torch.maximum(highest, part.maximum)
            if part.minimum is not None:
                lowest = part.minimum if lowest is None else torch.minimum(lowest, part.minimum)
            active += part.active
            self.fired += part.fired
            self.total += part.total
            self.total_square += part.square
            if self.signed:
                self.total_absolute += part.absolute
        assert highest is not None
        self.active += active.long()
        torch.maximum(self.maximum, highest.to(self.maximum.dtype), out=self.maximum)
        if lowest is None and (x.is_cuda or bool((self.active == self.positions).any())):
            lowest = _lowest(x)
        if lowest is not None:
            torch.minimum(self.minimum, lowest.to(self.minimum.dtype), out=self.minimum)
        if before is not None:
            torch.maximum(self.before_maximum, highest_of(before).float(), out=self.before_maximum)
        return torch.maximum(highest, -lowest) if self.signed and lowest is not None else highest

    def counts(self) -> "UnitCounts":
        """The same as plain arrays in the host's memory; every sample was watched."""

        def array(tensor: Tensor) -> Any:
            return (
                tensor.double().cpu().numpy()
                if tensor.is_floating_point()
                else (tensor.cpu().numpy())
            )

        fired, active = array(self.fired), array(self.active)
        maximum, minimum = array(self.maximum), array(self.minimum)
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
            total=array(self.total),
            total_absolute=array(self.total_absolute),
            total_square=array(self.total_square),
            maximum=maximum,
            minimum=minimum,
            before_maximum=array(self.before_maximum),
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
        self.samples = 0
        self.signed = signed
        with torch.inference_mode(False):
            self.highest = torch.zeros(units, dtype=_fine(dtype), device=device)
        """Largest magnitude seen, NaN once one was seen; of discharged units a lower bound."""
        self._left: Tensor | None = None  # the units to watch, all of them while None
        self._calls = 0
        self.done = False

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add one call's output, `[sample, unit, position]`."""
        if self._left is None:
            self.note(_magnitude(x, self.signed))
            return
        part = x.index_select(1, self._left)
        seen = torch.maximum(
            self.highest.index_select(0, self._left),
            _magnitude(part, self.signed).to(self.highest.dtype),
        )
        self.highest.index_copy_(0, self._left, seen)
        self._count()

    def note(self, highest: Tensor) -> None:
        """The same from the largest magnitudes of a call, `[unit]`."""
        torch.maximum(self.highest, highest.to(self.highest.dtype), out=self.highest)
        self._count()

    def _count(self) -> None:
        self._calls += 1
        # Asking a GPU which are left would make the step wait; there all units are read.
        if self._calls & (self._calls - 1) or self.highest.device.type != "cpu":
            return
        left = (~(self.highest > 0)).nonzero()[:, 0]
        self.done = len(left) == 0
        if len(left) * _FEW <= len(self.highest):
            self._left = left

    def mask(self) -> tuple[Mask, Mask]:
        """(silent, not finite) of each unit."""
        highest = self.highest.double().cpu().numpy()
        return ~(highest > 0), ~np.isfinite(highest)


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
    """Maximum of `[sample, unit, position]` for each unit, NaN where there is one."""
    if x.shape[2] == 1:
        return x[..., 0].amax(dim=0)
    if x.stride(2) == 1:  # positions first, then samples: two to three times as fast as at once
        return x.amax(dim=2).amax(dim=0)
    return x.amax(dim=(0, 2))


def _lowest(x: Tensor) -> Tensor:
    if x.shape[2] == 1:
        return x[..., 0].amin(dim=0)
    return x.amin(dim=2).amin(dim=0) if x.stride(2) == 1 else x.amin(dim=(0, 2))


def _magnitude(x: Tensor, signed: bool) -> Tensor:
    """The largest magnitude of each unit."""
    if x.dtype in _HALVES and x.device.type == "cpu" and not signed:
        # Floats that are not negative order as their bits do, and integers are vectorised.
        bits = x.view(torch.int16)
        highest = highest_of(bits)
        lowest = _lowest(bits)
        # A negative integer is a NaN with its sign set, but for the lowest, which is -0.0.
        odd = (lowest < 0) & (lowest != -(2**15))
        highest = highest.clamp_(min=0).view(x.dtype).float()
        return highest.masked_fill_(odd, float("nan"))
    highest = highest_of(x)
    return torch.maximum(highest, -_lowest(x)) if signed else highest


_HALVES = (torch.float16, torch.bfloat16)


def _fine(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class _Part:
    """What one piece of a call adds, each `[unit]`."""

    fired: Tensor
    active: Tensor
    total: Tensor
    square: Tensor
    absolute: Tensor
    maximum: Tensor
    minimum: Tensor | None


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """`x` cut along its samples so that a piece stays in the cache while it is read again."""
    if x.device.type != "cpu":
        return iter((x,))
    return iter(torch.split(x, max(1, _PIECE * len(x) // x.numel())))


class _Scratch(threading.local):
    """Memory that is written again and again: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self.given: dict[tuple[torch.dtype, int], Tensor] = {}

    def like(self, x: Tensor, index: int, dtype: torch.dtype) -> Tensor:
        """Memory of the shape of `x`, of which every element will be written."""
        if x.device.type != "cpu" or x.numel() > 4 * _PIECE:
            return torch.empty(x.shape, dtype=dtype, device=x.device)
        found = self.given.get((dtype, index))
        if found is None:
            with torch.inference_mode(False):
                found = self.given[dtype, index] = torch.empty(4 * _PIECE, dtype=dtype)
        return found[: x.numel()].view(x.shape)


_scratch = _Scratch()


def _reduced(x: Tensor, signed: bool) -> _Part:
    """The sums and extremes of one piece, `[sample, unit, position]`.

    Within a piece float32 is fine: its counts are exact up to 2**24.
    """
    positions, dim = x.shape[2], 2
    if positions > 1 and x.stride(2) != 1:
        x, dim = x.transpose(1, 2), 1  # where units lie together, they are the last axis
    if x.dtype in _HALVES:
        x = _scratch.like(x, 0, torch.float32).copy_(x)
    work = _scratch.like(x, 1, x.dtype)
    if positions == 1:
        return _reduced_rows(x[..., 0], work[..., 0], signed)
    active = _marked(x, work, signed).sum(dim=dim)
    highest = x.amax(dim=dim)
    lowest = x.amin(dim=dim) if signed else None
    fires = highest if lowest is None else torch.maximum(highest, -lowest)
    # Of values that cancel, float32 would leave its rounding.
    total = x.sum(dim=dim, dtype=torch.float64 if signed else None).sum(dim=0, dtype=torch.float64)
    absolute = total
    if signed:
        absolute = torch.abs(x, out=work).sum(dim=dim).sum(dim=0, dtype=torch.float64)
    return _Part(
        fired=(fires > 0).sum(dim=0),
        active=active.sum(dim=0, dtype=torch.float64),
        total=total,
        square=torch.linalg.vector_norm(x, dim=dim).double().square_().sum(dim=0),
        absolute=absolute,
        maximum=highest.amax(dim=0),
        minimum=None if lowest is None else lowest.amin(dim=0),
    )


def _reduced_rows(x: Tensor, work: Tensor, signed: bool) -> _Part:
    """The same of `[sample, unit]`."""
    active = _column_sums(_marked(x, work, signed))
    total = x.sum(dim=0, dtype=torch.float64) if signed else _column_sums(x)
    return _Part(
        fired=active.long(),
        active=active,
        total=total,
        square=_column_sums(torch.mul(x, x, out=work)),
        absolute=_column_sums(torch.abs(x, out=work)) if signed else total,
        maximum=x.amax(dim=0),
        minimum=x.amin(dim=0) if signed else None,
    )


def _marked(x: Tensor, work: Tensor, signed: bool) -> Tensor:
    """1 where a unit fires, else 0.

    By the sign: it beats a mask by five times, since no reduction is vectorised for bytes.
    """
    sign = torch.sign(x, out=work)
    return sign.abs_() if signed else sign


def _column_sums(x: Tensor) -> Tensor:
    """Sums of the columns of `[row, unit]`, in float64."""
    exact = torch.get_float32_matmul_precision() == "highest"
    if x.device.type != "cpu" or not exact or torch.is_autocast_enabled("cpu"):
        return x.sum(dim=0, dtype=torch.float64)
    # A product beats a sum by two times, where it is not made in a lesser precision.
    return (torch.ones(1, len(x), dtype=x.dtype) @ x)[0].double()

"""What is accumulated per unit, on the model's device, and how two windows of it merge.

Counts and sums are float64, exact up to 2**53: float32 counters stop at 2**24. Nothing here waits
for a GPU, and no activation is kept. A unit takes 44 bytes (52 if it can be negative; 8 more in
double precision), and 5 more (1 in double precision) while its liveness is watched.
"""

import operator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reludiag.capture.calls import Reading
from reludiag.measure.reductions import (
    ABSOLUTE,
    ACTIVE,
    FIRED,
    SEEN_FIRING,
    SEEN_NONFINITE,
    SQUARE,
    TOTAL,
    add_sums,
    note_firing,
    note_highest,
)

Counts = np.ndarray[Any, np.dtype[np.int64]]
Reals = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


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
    """float64 `[row, unit]`: the rows of reductions.py, the last only if signed."""
    maximum: Tensor
    """-inf before the first sample, NaN once one was seen."""
    minimum: Tensor
    """Likewise from inf."""
    before_maximum: Tensor
    """float32: of the pre-activations; -inf where none could be read. If they are passed on, only
    of units that never fired."""
    asks: bool = True
    """Whether it makes use of pre-activations: not where they are those that were passed on."""

    def __post_init__(self) -> None:
        # To ask for it in each call would take as long as to read a small activation.
        self._fired = self.sums[FIRED] if self.passes else None

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

    def update(
        self, x: Tensor, before: Tensor | None = None, reading: Reading | None = None
    ) -> None:
        """Add one call's output and, where it can be had, its pre-activation, of the same shape.

        Without a `reading` both are `[sample, unit, position]`, or `[sample, unit]`.
        """
        if reading is not None:
            samples, positions = reading.rows, reading.positions
        else:
            samples, positions = x.shape[0], 1 if x.ndim == 2 else x.shape[2]
        self.calls += 1
        self.samples += samples
        self.positions += samples * positions
        add_sums(x, reading, self.signed, self.sums, self.maximum, self.minimum)
        if not self.asks:
            return
        if before is not None:
            self.note_before(before, reading)
        # Looking costs as much as a small call: at the first, second, fourth, eighth, ...
        if self.passes and self.calls & (self.calls - 1) == 0 and self.sums.is_cpu:
            self.asks = not self.sums[FIRED].numpy().all()

    def note_before(self, before: Tensor, reading: Reading | None = None) -> None:
        """Add a pre-activation alone, before what is made of it overwrites it."""
        note_highest(before, reading, self.before_maximum, self._fired)

    def counts(self) -> "UnitCounts":
        """The same as plain arrays in the host's memory; every sample was watched."""
        sums = self.sums.cpu().numpy().copy()
        maximum, minimum, before_maximum = (
            tensor.cpu().numpy().astype(np.float64)
            for tensor in (self.maximum, self.minimum, self.before_maximum)
        )
        fired, active = sums[FIRED].astype(np.int64), sums[ACTIVE].astype(np.int64)
        if self.passes:
            before_maximum = np.where(fired > 0, maximum, before_maximum)
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
            total=sums[TOTAL],
            total_absolute=sums[ABSOLUTE if self.signed else TOTAL],
            total_square=sums[SQUARE],
            maximum=maximum,
            minimum=minimum,
            before_maximum=before_maximum,
        )


class Liveness:
    """Which units have not fired since the window began: exact, and of every batch.

    A unit that fired once is discharged: nothing that it does later in the window can make it
    dead, and it is not read again.
    """

    def __init__(
        self, units: int, device: torch.device | str, dtype: torch.dtype, signed: bool
    ) -> None:
        self.signed = signed
        self.done = False
        """Whether it is known that every unit has fired."""
        with torch.inference_mode(False):
            self._states = torch.zeros(units, dtype=torch.uint8, device=device)
            # In double precision it would be 8 bytes a unit: that is then noted in the states.
            kept = 0 if dtype == torch.float64 else units
            self._highest = torch.zeros(kept, dtype=torch.float32, device=device)

    def observe(self, x: Tensor, reading: Reading | None = None) -> None:
        """Add one call's output, as `UnitStats.update` takes it."""
        if not self.done:
            self.done = note_firing(x, reading, self.signed, self._states, self._highest)

    def mask(self) -> tuple[Mask, Mask]:
        """(silent, not finite) of each unit; the latter as far as one that fired was read."""
        states, highest = self._states.cpu().numpy(), self._highest.cpu().numpy()
        fired, nonfinite = states & SEEN_FIRING > 0, states & SEEN_NONFINITE > 0
        if len(highest):
            fired, nonfinite = fired | (highest > 0), nonfinite | ~np.isfinite(highest)
        return ~fired, nonfinite


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


def _fine(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32

"""Statistics accumulated per unit, on the model's device.

Counts and sums are float64, exact up to 2**53: float32 counters stop at 2**24. Nothing here waits
for a GPU, and no activation is kept. A unit takes 44 bytes (52 if it can be negative; 8 more in
double precision), and 5 more (1 in double precision) while its liveness is watched.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reludiag.capture.calls import UnitView
from reludiag.measure.reductions import (
    ABSOLUTE,
    ACTIVE,
    FIRED,
    SQUARE,
    TOTAL,
    add_sums,
    note_highest,
)
from reludiag.measure.unit_counts import UnitCounts


@dataclass
class UnitStats:
    """Running statistics of one site's units. Tensors have shape `[unit]`, except `sums`."""

    samples: int
    positions: int
    """Positions per unit, over all samples."""
    calls: int
    signed: bool
    """Whether a unit also fires if its output is negative, as for hard-swish."""
    passes_input: bool
    """Whether the output equals the pre-activation where the unit fires, as for ReLU but not ReLU6.
    """
    sums: Tensor
    """float64 `[row, unit]`: the rows of reductions.py, the last only if signed."""
    maximum: Tensor
    """-inf before the first sample, NaN once one was seen."""
    minimum: Tensor
    """The same for the minimum, from inf."""
    before_maximum: Tensor
    """float32 maximum of the pre-activations; -inf if none could be read.

    If they are passed on, only for units that never fired.
    """
    asks: bool = True
    """Whether it reads pre-activations: not if they equal the outputs."""

    def __post_init__(self) -> None:
        # Computing it in each call would take as long as reading a small activation.
        self._fired = self.sums[FIRED] if self.passes_input else None

    @classmethod
    def empty(
        cls,
        units: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        signed: bool = False,
        passes_input: bool = False,
    ) -> "UnitStats":
        """Before the first sample of activations of `dtype`."""
        fine, inf = _fine(dtype), float("inf")
        with torch.inference_mode(False):  # they are written to outside as well
            return cls(
                samples=0,
                positions=0,
                calls=0,
                signed=signed,
                passes_input=passes_input,
                sums=torch.zeros((4 + signed, units), dtype=torch.float64, device=device),
                maximum=torch.full((units,), -inf, dtype=fine, device=device),
                minimum=torch.full((units,), inf, dtype=fine, device=device),
                before_maximum=torch.full((units,), -inf, dtype=torch.float32, device=device),
            )

    def update(
        self, x: Tensor, pre_activation: Tensor | None = None, view: UnitView | None = None
    ) -> None:
        """Add one call's output and, if available, its pre-activation with the same shape.

        Without a `view` both are `[sample, unit, position]`, or `[sample, unit]`.
        """
        if view is not None:
            samples, positions = view.rows, view.positions
        else:
            samples, positions = x.shape[0], 1 if x.ndim == 2 else x.shape[2]
        self.calls += 1
        self.samples += samples
        self.positions += samples * positions
        add_sums(x, view, self.signed, self.sums, self.maximum, self.minimum)
        if not self.asks:
            return
        if pre_activation is not None:
            self.note_pre_activation(pre_activation, view)
        # This check costs as much as a small call, so it runs at the first, second, fourth, eighth,
        # ...
        if self.passes_input and self.calls & (self.calls - 1) == 0 and self.sums.is_cpu:
            self.asks = not self.sums[FIRED].numpy().all()

    def note_pre_activation(self, x: Tensor, view: UnitView | None = None) -> None:
        """Add only a pre-activation, before an in-place rectifier overwrites it."""
        note_highest(x, view, self.before_maximum, self._fired)

    def counts(self) -> "UnitCounts":
        """The same as plain arrays in host memory; every sample was watched."""
        sums = self.sums.cpu().numpy().copy()
        maximum, minimum, before_maximum = (
            tensor.cpu().numpy().astype(np.float64)
            for tensor in (self.maximum, self.minimum, self.before_maximum)
        )
        fired, active = sums[FIRED].astype(np.int64), sums[ACTIVE].astype(np.int64)
        if self.passes_input:
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


def _fine(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32

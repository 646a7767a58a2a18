"""Liveness: which units have fired, checked in every batch at low cost."""

import numpy as np
import torch
from torch import Tensor

from reludiag.capture.calls import UnitView
from reludiag.measure.reductions import SEEN_FIRING, SEEN_NONFINITE, note_firing
from reludiag.measure.unit_counts import Mask


class Liveness:
    """Which units have not fired since the window began, checked exactly in every batch.

    A unit that has fired is not read again, because nothing later in the window can make it dead.
    """

    def __init__(
        self, units: int, device: torch.device | str, dtype: torch.dtype, signed: bool
    ) -> None:
        self.signed = signed
        self.done = False
        """Whether every unit is known to have fired."""
        with torch.inference_mode(False):
            self._states = torch.zeros(units, dtype=torch.uint8, device=device)
            # In double precision this would take 8 bytes per unit, so it is stored in the states
            # instead.
            length = 0 if dtype == torch.float64 else units
            self._highest = torch.zeros(length, dtype=torch.float32, device=device)

    def observe(self, x: Tensor, view: UnitView | None = None) -> None:
        """Add one call's output, as `UnitStats.update` takes it."""
        if not self.done:
            self.done = note_firing(x, view, self.signed, self._states, self._highest)

    def mask(self) -> tuple[Mask, Mask]:
        """(silent, not finite) for each unit; units are not read any more once they have fired."""
        states, highest = self._states.cpu().numpy(), self._highest.cpu().numpy()
        fired, nonfinite = states & SEEN_FIRING > 0, states & SEEN_NONFINITE > 0
        if len(highest):
            fired, nonfinite = fired | (highest > 0), nonfinite | ~np.isfinite(highest)
        return ~fired, nonfinite

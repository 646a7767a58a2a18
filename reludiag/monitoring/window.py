"""Window: what the training batches since the last snapshot showed of one site."""

from dataclasses import replace

import torch
from torch import Tensor

from reludiag.capture.calls import Call, Reading
from reludiag.measure.liveness import Liveness
from reludiag.measure.unit_counts import UnitCounts
from reludiag.measure.unit_stats import UnitStats
from reludiag.sites.site import Site


class Window:
    """What is known of one site since the last snapshot."""

    def __init__(self, site: Site, device: torch.device, dtype: torch.dtype) -> None:
        units, signed = site.units or 0, site.rectifier.signed
        self._stats = UnitStats.empty(units, device, dtype, signed, site.rectifier.passes)
        self._liveness = Liveness(units, device, dtype, signed) if site.rectifier.can_die else None
        self.samples = 0

    @property
    def done(self) -> bool:
        """Whether nothing more is to be learned of liveness."""
        return self._liveness is None or self._liveness.done

    def add(self, call: Call, counting: bool, asks: bool) -> None:
        """One call in training: liveness always, all statistics where `counting`.

        Of the pre-activation where it `asks`.
        """
        live, x, reading = self._liveness, call.output, call.reading
        self.samples += reading.rows
        if self.done and not counting:
            return
        before = call.before() if asks else None
        if x.device != self._stats.sums.device:  # the model was moved meanwhile
            x = x.to(self._stats.sums.device)
            before = None if before is None else before.to(x.device)
        if counting:
            self._stats.update(x, before, reading)
        if live is not None:
            live.observe(x, reading)

    def note_before(self, before: Tensor, reading: Reading) -> None:
        """A pre-activation that is about to be overwritten."""
        self._stats.note_before(before.to(self._stats.sums.device), reading)

    def counts(self) -> UnitCounts:
        """On the host, for the recording."""
        counts = self._stats.counts()
        if self._liveness is None:
            return replace(counts, samples=self.samples)
        silent, nonfinite = self._liveness.mask()
        return replace(
            counts,
            samples=self.samples,
            silent=silent,
            nonfinite=nonfinite | counts.nonfinite,
        )

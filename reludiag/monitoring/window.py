"""Window: counts of one site in the training batches since the last snapshot."""

from dataclasses import replace

import torch
from torch import Tensor

from reludiag.capture.calls import Call, UnitView
from reludiag.measure.liveness import Liveness
from reludiag.measure.unit_counts import UnitCounts
from reludiag.measure.unit_stats import UnitStats
from reludiag.sites.site import Site


class Window:
    """The counts of one site since the last snapshot."""

    def __init__(self, site: Site, device: torch.device, dtype: torch.dtype) -> None:
        units, signed = site.units or 0, site.rectifier.signed
        self._device = device
        self._stats = UnitStats.empty(units, device, dtype, signed, site.rectifier.passes_input)
        self._liveness = Liveness(units, device, dtype, signed) if site.rectifier.can_die else None
        self.samples = 0
        self.in_passes = 0
        """Number of samples in the passes that called it: more than its own where rows are lost."""

    @property
    def done(self) -> bool:
        """Whether liveness is completely known."""
        return self._liveness is None or self._liveness.done

    def add(self, call: Call, counting: bool, asks: bool) -> None:
        """Add one call in training: liveness always, all statistics if `counting`, the
        pre-activation if it `asks`.
        """
        live, x, view = self._liveness, call.output, call.view
        samples = call.samples  # None but for a site that is called more than once
        if samples is None or samples.is_first:
            self.samples += view.rows
            self.in_passes += view.samples or 1
            if self._stats.span is not None:
                self._stats.end_samples()
        if not counting and (live is None or live.done):
            return
        pre_activation = call.pre_activation() if asks else None
        signal = call.signal
        if x.device != self._device:  # the model was moved to another device
            x = x.to(self._device)
            if pre_activation is not None:
                pre_activation = pre_activation.to(x.device)
            if signal is not None:
                signal = signal.to(x.device)
        if counting:
            self._stats.update(x, pre_activation, view, samples, signal)
        if live is not None:
            live.observe(x if signal is None else signal, view)

    def note_pre_activation(self, x: Tensor, view: UnitView) -> None:
        """Add a pre-activation that will be overwritten."""
        self._stats.note_pre_activation(x.to(self._device), view)

    def counts(self) -> UnitCounts:
        """The counts in host memory, for the recording."""
        self._stats.end_samples()
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

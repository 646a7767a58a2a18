"""Statistics accumulated per unit, on the model's device.

Counts and sums are float64, exact up to 2**53: float32 counters stop at 2**24. Nothing here waits
for a GPU, and no activation is kept. A unit takes 44 bytes (52 if it can be negative; 8 more in
double precision), and 5 more (1 in double precision) while its liveness is watched.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reludiag.capture.calls import CallSamples, UnitView
from reludiag.measure.reductions import (
    ABSOLUTE,
    ACTIVE,
    FIRED,
    SQUARE,
    TOTAL,
    add_sums,
    note_highest,
)
from reludiag.measure.sample_span import SampleSpan
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
    span: "SampleSpan | None" = None
    """The samples whose calls may not be over, from the first of them to `end_samples`."""
    asks: bool = True
    """Whether it reads pre-activations: not if they equal the outputs."""

    def __post_init__(self) -> None:
        # Computing it in each call would take as long as reading a small activation.
        self._fired = self.sums[FIRED] if self.passes_input else None
        self.reached: int | Tensor = 0
        """Number of samples that were counted by `end_samples`."""

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
        self,
        x: Tensor,
        pre_activation: Tensor | None = None,
        view: UnitView | None = None,
        samples: CallSamples | None = None,
        signal: Tensor | None = None,
    ) -> None:
        """Add one call's output and, if available, its pre-activation with the same shape.

        Without a `view` both are `[sample, unit, position]`, or `[sample, unit]`. With `samples`
        they are counted at `end_samples`. `signal` is as in `Call`.
        """
        if samples is not None and view is not None:
            if samples.has_empty and samples.positions is not None:
                # What is computed from an empty slot says nothing of the data.
                kept = (samples.positions >= 0).nonzero()[:, 0]
                if not len(kept):
                    return
                samples = replace(samples, positions=samples.positions[kept])
                x = _positions(view.of(x), kept)
                if pre_activation is not None:
                    pre_activation = _positions(view.of(pre_activation), kept)
                if signal is not None:
                    signal = _positions(view.of(signal), kept)
                view = None
            firing = x if signal is None else signal
            if self._add_samples(firing if view is None else view.of(firing), samples):
                return
        if view is not None:
            rows, positions = view.rows, view.positions
        else:
            rows, positions = x.shape[0], 1 if x.ndim == 2 else x.shape[2]
        self.calls += 1
        if samples is None:
            self.samples += rows
        self.positions += rows * positions
        earlier = None if signal is None else self.sums[[ACTIVE, FIRED]]
        add_sums(x, view, self.signed, self.sums, self.maximum, self.minimum)
        if signal is not None and earlier is not None:
            fired = (signal if view is None else view.of(signal)) > 0
            fired = fired if fired.ndim == 3 else fired.unsqueeze(2)
            counts = torch.stack([fired.sum((0, 2)), fired.any(2).sum(0)])
            self.sums[[ACTIVE, FIRED]] = earlier + counts
        if not self.asks:
            return
        if pre_activation is not None:
            self.note_pre_activation(pre_activation, view)
        # This check costs as much as a small call, so it runs at the first, second, fourth, eighth,
        # ...
        if self.passes_input and self.calls & (self.calls - 1) == 0 and self.sums.is_cpu:
            self.asks = not self.sums[FIRED].numpy().all()

    def _add_samples(self, x: Tensor, samples: CallSamples) -> bool:
        """Note in which samples units fired in a call, `[row, unit, position]`.

        Returns whether the call was counted before.
        """
        firing = (x != 0) & ~x.isnan() if self.signed else x > 0
        span = self.span
        if span is None:
            span = self.span = SampleSpan.empty(self.sums[FIRED], samples)
        by_row = firing.any(2) if firing.ndim == 3 else firing
        if samples.again and span.corrects:
            # It was counted as if no other call of the site had these samples.
            span.before = span.before - by_row.sum(0)
            self.samples -= len(by_row) if samples.positions is None else 1
        span.add(by_row, firing, samples)
        return samples.again

    def end_samples(self) -> None:
        """Count the samples since the last time, each once, whatever number of calls it was in."""
        span, self.span = self.span, None
        if span is None:
            return
        fired, reached = span.counts()
        self.reached += reached
        if fired is not None:
            self.sums[FIRED] = span.before + fired

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
        samples = self.samples + int(self.reached)
        observed = samples > 0
        return UnitCounts(
            samples=samples,
            counted=samples,
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


def _positions(x: Tensor, kept: Tensor) -> Tensor:
    """Some of the positions of `[row, unit, position]`; of `[row, unit]` its only one."""
    return x[:, :, kept] if x.ndim == 3 else x


def _fine(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32

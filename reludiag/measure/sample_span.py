"""SampleSpan: in which samples the units of one site fired, over several of its calls."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reludiag.capture.calls import CallSamples


@dataclass
class SampleSpan:
    """The samples of one pass, or all groups of a scan. A sample has fired if it did in any call.

    Nothing here waits for a GPU.
    """

    before: Tensor
    """float64 `[unit]`: samples in which it fired before these."""
    fired: Tensor
    """bool `[sample, unit]`."""
    reached: Tensor
    """bool `[sample]`."""
    corrects: bool
    """Whether calls that come again were counted before."""
    calls: int = 0
    all_reached: bool = False
    unknown: bool = False
    """Whether the samples of a call are not known: then all of them are counted as one."""

    @classmethod
    def empty(cls, fired: Tensor, samples: CallSamples) -> "SampleSpan":
        """Before the first call; `fired` counts the samples before these, `[unit]`."""
        size, device = samples.count, fired.device
        return cls(
            fired.clone(),
            torch.zeros((size, len(fired)), dtype=torch.bool, device=device),
            torch.zeros(size, dtype=torch.bool, device=device),
            corrects=samples.again,
        )

    def add(self, by_row: Tensor, firing: Tensor, samples: CallSamples) -> None:
        """Add a call: where units fired, as `[row, unit]` and as `[row, unit, position]`."""
        self._grow(samples.count)
        self.calls += 1
        ids = samples.rows
        if samples.positions is not None:
            by_row = firing[0].t() if firing.ndim == 3 else firing
            ids = samples.positions
        if ids is not None:
            hits = torch.zeros(self.fired.shape, dtype=torch.int32, device=self.fired.device)
            hits.index_add_(0, ids, by_row.to(torch.int32))
            self.fired = self.fired | (hits > 0)
            self.reached = self.reached.index_fill(0, ids, True)
        elif len(by_row) == len(self.fired):
            self.fired = by_row if self.calls == 1 else self.fired | by_row
            self.all_reached = True
        else:
            self.unknown = True
            self.fired = self.fired | by_row.any(0)

    def counts(self) -> tuple[Tensor | None, int | Tensor]:
        """Samples in which each unit fired, `[unit]`, and how many reached the site.

        None for the first where the sums of the only call are right.
        """
        if self.calls == 1 and self.all_reached and not self.corrects:
            return None, len(self.fired)
        if self.unknown:
            return self.fired.any(0), 1
        return self.fired.sum(0), len(self.fired) if self.all_reached else self.reached.sum()

    def _grow(self, count: int) -> None:
        more = count - len(self.fired)
        if more > 0:
            self.reached = torch.nn.functional.pad(self.reached | self.all_reached, (0, more))
            self.fired = torch.nn.functional.pad(self.fired, (0, 0, 0, more))
            self.all_reached = False

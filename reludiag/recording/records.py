"""What a recording holds, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from reludiag.measure.unit_counts import SiteCounts, UnitCounts
from reludiag.measure.verdicts import is_dead, is_dormant, is_rare
from reludiag.recording.observations import Observations
from reludiag.recording.schema import Mask
from reludiag.sites.site import Site

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class SiteState:
    """One site at one snapshot, for writing."""

    site: Site
    counts: UnitCounts
    dead: Mask
    """`[unit]`, as the next two."""
    rare: Mask | None
    """By the default thresholds, as `dormant`; None without statistics: no sample was counted."""
    dormant: Mask | None

    @classmethod
    def of(cls, finding: SiteCounts) -> "SiteState":
        """The state that these counts show."""
        site, counts = finding.site, finding.counts
        counted = counts.counted > 0
        return cls(
            site,
            counts,
            is_dead(counts, site.rectifier),
            is_rare(counts, site.rectifier) if counted else None,
            is_dormant(counts) if counted else None,
        )


@dataclass(frozen=True)
class RecordedSite:
    """One site of a recording, with the states of its units at every snapshot."""

    site: Site
    param_group: str | None
    counts: UnitCounts
    """Of the last snapshot."""
    samples: np.ndarray[Any, np.dtype[np.int64]]
    """`[snapshot]`: seen in each window."""
    dead: Mask
    """`[snapshot, unit]`."""
    has_state: Mask
    """`[snapshot, unit]`: whether the site was called and the unit was finite."""
    nonfinite: Mask
    """`[snapshot, unit]`."""
    rare: Floats | None = None
    """`[snapshot]`: number of units, as `SiteState` has them; NaN where it is not known."""
    dormant: Floats | None = None
    on_batch: Mapping[int, Mask] = field(default_factory=dict)
    """Index of a snapshot -> `[unit]`: fired where BatchNorm uses the statistics of the batch, as
    in training. Only of the snapshots that were also judged so.
    """

    @cached_property
    def only_in_eval(self) -> Mask:
        """`[snapshot, unit]`: dead on BatchNorm's running statistics, not on those of the batch.

        Where a snapshot was not judged so, a unit that stays dead is as it was before.
        """
        fires = np.zeros_like(self.dead)
        for index in range(len(self.dead)):
            if index in self.on_batch:
                fires[index] = self.on_batch[index]
            elif index:
                fires[index] = fires[index - 1]
            fires[index] &= self.dead[index]
        return fires

    @property
    def dead_in_training(self) -> Mask:
        """`[snapshot, unit]`: dead whatever statistics BatchNorm uses, so that it cannot learn."""
        return self.dead & ~self.only_in_eval

    @property
    def hidden(self) -> Mask:
        """`[unit]`: fires at the end, but not on the statistics of the batch, as in training."""
        fires = self.on_batch.get(len(self.dead) - 1)
        if fires is None:
            return np.zeros(self.dead.shape[1], dtype=bool)
        return np.asarray(self.has_state[-1] & ~self.dead[-1] & ~fires)


@dataclass(frozen=True)
class Metric:
    """What the user logged under one name in one window of `every` steps."""

    window: int
    """The step at which the window ends: a multiple of `every`."""
    name: str
    step: int
    """Optimizer steps taken when the last value was logged."""
    last: float
    mean: float
    """Of all values of the window, also of those that are not finite."""
    count: int
    """Values of the window."""


@dataclass(frozen=True)
class Mark:
    """A mark that the user set in a run."""

    step: int
    """Optimizer steps taken then."""
    name: str


@dataclass(frozen=True)
class RecordedRun:
    """The content of a recording."""

    facts: Mapping[str, Any]
    steps: tuple[int, ...]
    sites: tuple[RecordedSite, ...]
    learning_rates: tuple[tuple[int, str, float], ...]
    """(first step with it, parameter group, learning rate), in order of steps."""
    observations: Observations = field(default_factory=Observations)
    """The evidence for the causes of deaths."""
    first_steps: tuple[int, ...] = ()
    """Of each snapshot: it covers the training batches after this step; with a probe, its own."""
    metrics: tuple[Metric, ...] = ()
    """What the user logged, in order of windows; in a window in alphabetical order."""
    marks: tuple[Mark, ...] = ()
    """The user's own, in order of steps."""


@dataclass(frozen=True)
class RecordingProgress:
    """The progress of a recording."""

    facts: Mapping[str, Any]
    steps: tuple[int, ...]
    """Of the snapshots."""
    times: tuple[float, ...]
    """Unix time of each snapshot."""

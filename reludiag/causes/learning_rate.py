"""Learning rate: what one run can say of it.

- An event study: are deaths where the learning rate was high, beyond the exposure there (steps
  times units alive)? A run at a constant rate has no contrast, and cannot tell; nor can one that
  only decays, for time and rate fall together there.
- The largest ratio of an update to the weights it changed, before the last death. After a collapse
  gradients are 0: a mean over the run would be too low.
- The critical learning rate: the part of the window's update that a unit would have survived, times
  the largest rate of that window.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from reludiag.causes.site_lives import Floats, Integers, SiteLives
from reludiag.recording.observations import Update

CONTRAST = 3.0
"""Largest over smallest learning rate, from which on there is a high and a low to compare."""
EARLY = 0.02
"""Share of all exposure that must have been at the low rate before it was first high."""
FEWEST = 5
"""Deaths needed for a study."""
RATE_RATIO = 3.0
"""Deaths per exposure at the high rate over those at the low."""
SIGNIFICANT = 0.01
LARGE_UPDATE = 0.02
"""On digits with Adam, updates of 0.003 to 0.01 of the weights killed 0.2 % of units, those of 0.03
to 0.1 30 %: this lies between. 0.001 is the rule of thumb for healthy training."""
SPLITS = 16
"""Levels of the learning rate at which high is divided from low, at most; the best is taken, and
its p-value multiplied by their number (Bonferroni)."""


@dataclass(frozen=True)
class EventStudy:
    """Deaths and exposure at high and at low learning rates."""

    regime: str
    """`constant`, `decay` (never low before it was high), `warm-up` (low first, then high to the
    end), `spike` (low, high, low)."""
    low: float
    high: float
    deaths: int
    deaths_high: int
    exposure_high: float
    """Share of all exposure."""
    p_value: float
    """Exact, one-sided, as if units died independently. They die together, so that it says less
    than it seems to: one run is one cluster."""
    first: int
    """Steps between which the rate was first to last high."""
    last: int
    level: float = math.nan
    """From this rate on it counts as high."""

    @property
    def tells(self) -> bool:
        """Whether this run can tell that the high learning rate killed."""
        if self.regime not in {"warm-up", "spike"} or self.deaths < FEWEST:
            return False
        return self.rate_ratio >= RATE_RATIO and self.p_value < SIGNIFICANT

    @property
    def rate_ratio(self) -> float:
        """Deaths per exposure, high over low."""
        low = (self.deaths - self.deaths_high) / (1 - self.exposure_high)
        high = self.deaths_high / self.exposure_high
        return high / low if low else math.inf


def event_study(sites: Sequence[SiteLives], steps: Sequence[int]) -> EventStudy | None:
    """Compare the windows of these sites; None where no learning rate is known or nothing lived."""
    if len(steps) < 2 or not sites:
        return None
    rates = np.stack([site.window_rates for site in sites])
    exposure = np.stack([site.exposure for site in sites])
    died = np.stack([site.died for site in sites])
    known = np.isfinite(rates) & (exposure > 0)
    if not known.any() or rates[known].max() <= 0:
        return None
    high = float(rates[known].max())
    positive = rates[known & (rates > 0)]
    low = float(positive.min())
    windows = list(itertools.pairwise(steps))
    deaths = int(died[known].sum())
    if high < CONTRAST * low and (rates[known] > 0).all():
        span = windows[0][0], windows[-1][1]
        return EventStudy("constant", low, high, deaths, deaths, 1.0, 1.0, *span)
    levels = np.unique(rates[known])[1:]
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, SPLITS).round().astype(int))]
    studies = [
        _divided(float(level), rates, exposure * known, died * known, windows) for level in levels
    ]
    # The rate is known to have been several times lower: of equals the one divided by most.
    best = min(studies, key=lambda study: (study.p_value, -study.exposure_high))
    return replace(best, p_value=min(1.0, best.p_value * len(studies)))


def _divided(
    level: float,
    rates: Floats,
    exposure: Floats,
    died: Integers,
    windows: Sequence[tuple[int, int]],
) -> EventStudy:
    """The study with all rates from `level` on as high; arrays are `[site, window]`."""
    is_high = np.isfinite(rates) & (rates >= level) & (exposure > 0)
    at = np.flatnonzero(is_high.any(axis=0))
    first, last = int(at[0]), int(at[-1])
    total, deaths = float(exposure.sum()), int(died.sum())
    before, after = exposure[:, :first].sum() / total, exposure[:, last + 1 :].sum() / total
    regime = "decay" if before < EARLY else "spike" if after >= EARLY else "warm-up"
    share, deaths_high = float(exposure[is_high].sum()) / total, int(died[is_high].sum())
    p_value = 1.0
    if deaths_high and 0 < share < 1:  # one-sided binomial test
        p_value = float(special.betainc(deaths_high, deaths - deaths_high + 1, share))
    return EventStudy(
        regime=regime,
        low=float(rates[exposure > 0].min()),
        high=float(rates[exposure > 0].max()),
        deaths=deaths,
        deaths_high=deaths_high,
        exposure_high=share,
        p_value=p_value,
        first=windows[first][0],
        last=windows[last][1],
        level=level,
    )


def largest_update(updates: Iterable[Update], modules: set[str], step: int) -> Update | None:
    """The largest update of these layers up to `step`, relative to their weights."""
    until = [each for each in updates if each.module in modules and each.step <= step]
    return max(until, key=lambda each: each.ratio, default=None)


@dataclass(frozen=True)
class CriticalRates:
    """Learning rates at which deaths would not have happened, as an estimate."""

    deaths: int
    """Of how many it is known."""
    quarter: float
    """At this one a quarter of them would have happened all the same,"""
    half: float
    """and at this one half."""


def critical_rates(sites: Iterable[SiteLives]) -> CriticalRates | None:
    """Of the units that are dead in the end, and died between snapshots on a probe."""
    found = []
    for site in sites:
        for death in site.deaths:
            last = death.step == site.ledger.died_step[death.unit] and site.new[death.unit]
            rate = death.critical_fraction * site.rate_at_death[death.unit]
            if last and math.isfinite(rate):
                found.append(rate)
    if not found:
        return None
    quarter, half = np.quantile(found, [0.25, 0.5])
    return CriticalRates(len(found), float(quarter), float(half))

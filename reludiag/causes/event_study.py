"""Event study: did more units die when the learning rate was high than the exposure explains?

Exposure is steps times units alive. A run at a constant rate has no contrast and proves nothing.
Nor does one whose rate only falls, or only rises as in a warm-up: there time and rate change
together, and whatever begins to kill units later looks like the rate. Only where few died at low
rates both before and after, did the rate do it. Nor is it the rate if units lived at it for long,
and then died together.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reludiag.causes.cause import Evidence, rounded
from reludiag.causes.kind import RunLives
from reludiag.causes.site_lives import Floats, Integers, SiteLives
from reludiag.measure.binomial import chance_of_more

CONTRAST = 3.0
"""Smallest ratio of the largest to the smallest learning rate for a comparison."""
EARLY = 0.02
"""Share of the exposure that must be at the low rate before it is first high."""
FEWEST = 5
"""Smallest number of deaths for a study."""
RATE_RATIO = 3.0
"""Smallest ratio of deaths per exposure at the high rate to those at the low rate."""
SIGNIFICANT = 0.01
LATE = 0.5
"""Deaths are late if this share of the exposure at the high rate had passed"""
FEW_EARLY = 0.2
"""before this share of the deaths at it: an event killed them, not the rate."""
FEWEST_WINDOWS = 3
"""and at least as many windows: only some steps of the first may have had the high rate."""
SPLITS = 16
"""Largest number of thresholds between high and low rates; the best is used, with its p-value
multiplied by their number (Bonferroni).
"""


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
    late: bool
    """Whether the deaths at the high rate came late in its exposure, as after an event."""
    least_ratio: float
    """Deaths per exposure at the high rate, over those before it or after it, whichever are more
    frequent; NaN if there is no exposure on one of the sides."""
    p_value: float
    """Exact and one-sided, for units that die independently.

    They die together (one run is one cluster), so the evidence is weaker than this suggests.
    """
    first: int
    """First and last step at the high rate."""
    last: int
    level: float = math.nan
    """Rates from this one on are high: of the group with the highest; of another, the same share of
    its own highest rate."""
    sites: frozenset[str] = frozenset()
    """The sites whose rate varied: of others it says nothing."""

    @property
    def is_conclusive(self) -> bool:
        """Whether this run shows that the high learning rate killed units."""
        if self.regime != "spike" or self.deaths < FEWEST or self.late:
            return False
        return self.least_ratio >= RATE_RATIO and self.p_value < SIGNIFICANT


def event_study(sites: Sequence[SiteLives], steps: Sequence[int]) -> EventStudy | None:
    """Compare the windows of these sites; None without learning rates or living units."""
    if len(steps) < 2 or not sites:
        return None
    rates = np.stack([site.window_rates for site in sites])
    exposure = np.stack([site.exposure for site in sites])
    died = np.stack([site.died for site in sites])
    rates_known = np.isfinite(rates) & (exposure > 0)
    if not rates_known.any() or rates[rates_known].max() <= 0:
        return None
    high = float(rates[rates_known].max())
    positive = rates[rates_known & (rates > 0)]
    low = float(positive.min())
    windows = list(itertools.pairwise(steps))
    deaths = int(died[rates_known].sum())
    highest = np.where(rates_known, rates, -np.inf).max(axis=1)
    lowest = np.where(rates_known, rates, np.inf).min(axis=1)
    if (highest < CONTRAST * lowest).all():
        span = windows[0][0], windows[-1][1]
        return EventStudy("constant", low, high, deaths, deaths, 1.0, False, math.nan, 1.0, *span)
    # Each site against its own highest rate: optimizers of two networks are not one schedule.
    varied = (highest >= CONTRAST * lowest) & (highest > 0)
    exposure, died = (exposure * rates_known)[varied], (died * rates_known)[varied]
    rates = rates[varied] * (highest[varied].max() / highest[varied, None])
    levels = np.unique(rates[exposure > 0])[1:]
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, SPLITS).round().astype(int))]
    studies = [_divided(float(level), rates, exposure, died, windows) for level in levels]
    # The low rate is several times lower; among equal p-values, the split with the largest ratio.
    best = min(studies, key=lambda study: (study.p_value, -study.exposure_high))
    names = frozenset(site.name for site, took_part in zip(sites, varied, strict=True) if took_part)
    return replace(best, p_value=min(1.0, best.p_value * len(studies)), sites=names)


def _divided(
    level: float,
    rates: Floats,
    exposure: Floats,
    died: Integers,
    windows: Sequence[tuple[int, int]],
) -> EventStudy:
    """The study in which rates from `level` on are high; arrays are `[site, window]`."""
    is_high = np.isfinite(rates) & (rates >= level) & (exposure > 0)
    at = np.flatnonzero(is_high.any(axis=0))
    first, last = int(at[0]), int(at[-1])
    total, deaths = float(exposure.sum()), int(died.sum())
    earlier, later = exposure[:, :first].sum() / total, exposure[:, last + 1 :].sum() / total
    regime = "decay" if earlier < EARLY else "spike" if later >= EARLY else "warm-up"
    share, deaths_high = float(exposure[is_high].sum()) / total, int(died[is_high].sum())
    # At the low rate on either side; low windows between high ones are of neither.
    hazard = deaths_high / share
    sides = [
        (float(died[:, :first].sum()), float(earlier)),
        (float(died[:, last + 1 :].sum()), float(later)),
    ]
    least_ratio = math.nan
    if all(exposed > 0 for _, exposed in sides):
        most = max(count / exposed for count, exposed in sides)
        least_ratio = hazard / most if most else math.inf
    in_order = np.where(is_high, exposure, 0).sum(axis=0), np.where(is_high, died, 0).sum(axis=0)
    return EventStudy(
        regime=regime,
        low=float(rates[exposure > 0].min()),
        high=float(rates[exposure > 0].max()),
        deaths=deaths,
        deaths_high=deaths_high,
        exposure_high=share,
        late=deaths_high > 0 and _come_late(*in_order),
        least_ratio=least_ratio,
        p_value=chance_of_more(deaths_high, deaths, share),
        first=windows[first][0],
        last=windows[last][1],
        level=level,
    )


def _come_late(exposure: Floats, died: Integers) -> bool:
    """Whether few units had died when much of the exposure had passed; both are `[window]`."""
    passed = np.cumsum(exposure) / exposure.sum()
    until = np.cumsum(died) / died.sum()
    windows = np.cumsum(exposure > 0)
    is_late = (passed >= LATE) & (passed < 1) & (windows >= FEWEST_WINDOWS)
    return bool((is_late & (until <= FEW_EARLY)).any())


def study_of(run: RunLives) -> EventStudy | None:
    """The event study of all sites of a run."""
    return event_study(run.sites, run.recorded.steps)


def study_evidence(study: EventStudy | None) -> list[Evidence]:
    """Whether units died while the learning rate was high."""
    if study is None:
        return []
    if study.regime == "constant":
        return [
            Evidence(
                "learning rate",
                rounded(study.high),
                "constant or nearly constant, so there is no lower rate to compare with",
            )
        ]
    return [
        Evidence(
            "deaths at a high learning rate",
            rounded(study.deaths_high / study.deaths) if study.deaths else 0.0,
            f"{study.deaths_high} of {study.deaths}, with {study.exposure_high:.0%} of the "
            f"exposure ({study.regime}, {study.low:.2g} to {study.high:.2g}); p = "
            f"{study.p_value:.1g} if units died independently, which they do not",
        )
    ]

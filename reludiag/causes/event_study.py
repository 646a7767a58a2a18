"""Event study: did more units die when the learning rate was high than the exposure explains?

Exposure is steps times units alive. A run at a constant rate has no contrast and proves nothing;
nor does one whose rate only decays, because there time and rate change together.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reludiag.causes.cause import Evidence, rounded
from reludiag.causes.kind import RunLives
from reludiag.causes.site_lives import Floats, Integers, SiteLives

CONTRAST = 3.0
"""Smallest ratio of the largest to the smallest learning rate for a comparison."""
EARLY = 0.02
"""Share of the exposure that must be at the low rate before it is first high."""
FEWEST = 5
"""Smallest number of deaths for a study."""
RATE_RATIO = 3.0
"""Smallest ratio of deaths per exposure at the high rate to those at the low rate."""
SIGNIFICANT = 0.01
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
    p_value: float
    """Exact and one-sided, for units that die independently.

    They die together (one run is one cluster), so the evidence is weaker than this suggests.
    """
    first: int
    """First and last step at the high rate."""
    last: int
    level: float = math.nan
    """Rates from this one on are high."""

    @property
    def is_conclusive(self) -> bool:
        """Whether this run shows that the high learning rate killed units."""
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
    if high < CONTRAST * low and (rates[rates_known] > 0).all():
        span = windows[0][0], windows[-1][1]
        return EventStudy("constant", low, high, deaths, deaths, 1.0, 1.0, *span)
    levels = np.unique(rates[rates_known])[1:]
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, SPLITS).round().astype(int))]
    studies = [
        _divided(float(level), rates, exposure * rates_known, died * rates_known, windows)
        for level in levels
    ]
    # The low rate is several times lower; among equal p-values, the split with the largest ratio.
    best = min(studies, key=lambda study: (study.p_value, -study.exposure_high))
    return replace(best, p_value=min(1.0, best.p_value * len(studies)))


def _divided(
    level: float,
    rates: Floats,
    exposure: Floats,
    died: Integers,
    windows: Sequence[tuple[int, int]],
) -> EventStudy:
    """The study in which rates from `level` on are high; arrays are `[site, window]`."""
    from scipy import special

    is_high = np.isfinite(rates) & (rates >= level) & (exposure > 0)
    at = np.flatnonzero(is_high.any(axis=0))
    first, last = int(at[0]), int(at[-1])
    total, deaths = float(exposure.sum()), int(died.sum())
    earlier, later = exposure[:, :first].sum() / total, exposure[:, last + 1 :].sum() / total
    regime = "decay" if earlier < EARLY else "spike" if later >= EARLY else "warm-up"
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

"""Trend: whether more units die at higher learning rates, tested with runs as the unit.

Units of one run die together. A test over units treats 192 of them as 192 independent observations,
and without any effect it rejects in 63 % of data sets. Here a run is one number, its share of new
deaths.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

RESAMPLES = 9_999
"""Number of permutations to draw if there are more than that."""

ONE_RATE = "there is only one learning rate"
NO_DEATHS = "no new deaths at any learning rate"
"""Reasons why a value is None."""

_TIE = 1e-9  # permuted sums of the same ranks differ by rounding only

Floats = np.ndarray[Any, np.dtype[np.float64]]
Runs = tuple[Sequence[float], Sequence[float]]
"""Of one initialization: the runs' learning rates, and their shares of new deaths."""


@dataclass(frozen=True)
class Trend:
    """The rank correlation of new deaths with the learning rate, within initializations."""

    init: str | None
    """None for all initializations together."""
    runs: int
    correlation: float | None
    """Spearman's; for all together the mean weighted by runs - 1. None if nothing varies."""
    p_value: float | None
    """Two-sided, by permuting the runs' shares within each initialization."""
    smallest_p: float | None
    """The p-value of a perfect order of these runs: above 0.05 they are too few."""
    reason: str
    """Why the correlation is None; otherwise empty."""


def rank_trends(
    runs: Mapping[str, Runs], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[tuple[Trend, ...], Trend]:
    """The trend within each initialization, and the test of all of them together.

    The common statistic is the sum over initializations of (runs - 1) times Spearman's
    correlation, under permutations within each (a stratified permutation test, as van Elteren's
    is for two groups). If there are at most `resamples` permutations, all are enumerated. Otherwise
    this number is drawn, and the observed order counts as one more (Phipson and Smyth 2010). Both
    keep the level of the test.
    """
    rng = np.random.default_rng(seed)
    strata = {init: _Stratum.of(*pair) for init, pair in runs.items()}
    each = tuple(
        _trend(init, [stratum], len(runs[init][0]), _silent_because(*runs[init]), resamples, rng)
        for init, stratum in strata.items()
    )
    usable = [stratum for stratum in strata.values() if stratum.varies]
    count = sum(len(rates) for rates, _ in runs.values())
    reason = "" if usable else _none_because([trend.reason for trend in each], runs)
    return each, _trend(None, usable, count, reason, resamples, rng)


@dataclass(frozen=True)
class _Stratum:
    """The runs of one initialization, as ranks with mean 0 and norm 1: their dot product is rho."""

    rates: Floats
    deaths: Floats
    orders: int
    """Number of perfect orders of the runs: those that only swap equal learning rates."""

    @classmethod
    def of(cls, rates: Sequence[float], deaths: Sequence[float]) -> "_Stratum":
        ties = np.unique(np.asarray(rates), return_counts=True)[1]
        orders = math.prod(math.factorial(int(tie)) for tie in ties)
        return cls(_unit_ranks(rates), _unit_ranks(deaths), orders)

    @property
    def varies(self) -> bool:
        return len(self.rates) > 2 and bool(self.rates.any() and self.deaths.any())

    @property
    def weight(self) -> int:
        return len(self.rates) - 1

    @property
    def correlation(self) -> float:
        return float(self.rates @ self.deaths)

    def all_correlations(self) -> Floats:
        orders = np.array(list(itertools.permutations(range(len(self.deaths)))))
        return np.asarray(self.deaths[orders] @ self.rates)

    def some_correlations(self, count: int, rng: np.random.Generator) -> Floats:
        permutations = rng.permuted(np.tile(self.deaths, (count, 1)), axis=1)
        return np.asarray(permutations @ self.rates)


def _unit_ranks(values: Sequence[float]) -> Floats:
    ranks = pd.Series(values, dtype=float).rank().to_numpy(np.float64) - (len(values) + 1) / 2
    length = float(np.linalg.norm(ranks))
    return np.asarray(ranks / length if length else ranks, np.float64)


def _trend(
    init: str | None,
    strata: Sequence[_Stratum],
    runs: int,
    reason: str,
    resamples: int,
    rng: np.random.Generator,
) -> Trend:
    if reason:
        return Trend(init, runs, None, None, None, reason)
    statistic = sum(stratum.weight * stratum.correlation for stratum in strata)
    orders = math.prod(math.factorial(len(stratum.rates)) for stratum in strata)
    if orders <= resamples:
        null = np.zeros(1)
        for stratum in strata:
            null = np.add.outer(null, stratum.weight * stratum.all_correlations()).ravel()
        p_value = float(np.mean(np.abs(null) >= abs(statistic) - _TIE))
    else:
        null = np.zeros(resamples)
        for stratum in strata:
            null += stratum.weight * stratum.some_correlations(resamples, rng)
        extreme = int(np.sum(np.abs(null) >= abs(statistic) - _TIE))
        p_value = (1 + extreme) / (1 + resamples)
    return Trend(
        init,
        runs,
        correlation=float(statistic) / sum(stratum.weight for stratum in strata),
        p_value=p_value,
        smallest_p=min(1.0, 2 * math.prod(stratum.orders for stratum in strata) / orders),
        reason="",
    )


def _silent_because(rates: Sequence[float], deaths: Sequence[float]) -> str:
    if len(rates) < 3:
        return "there are fewer than 3 runs"
    if len(set(rates)) < 2:
        return ONE_RATE
    if len(set(deaths)) < 2:
        return "every run has the same share of new deaths" if deaths[0] else NO_DEATHS
    return ""


def _none_because(reasons: Sequence[str], runs: Mapping[str, Runs]) -> str:
    kinds = list(dict.fromkeys(reasons))
    if kinds == [ONE_RATE] and len({rate for rates, _ in runs.values() for rate in rates}) > 1:
        return "each initialization has only one learning rate"
    return "; ".join(kinds) or "no run had units alive at step 0"

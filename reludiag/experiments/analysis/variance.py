"""Variance: how much of the differences between runs each factor explains.

Eta squared of a two-way analysis of variance of type 2: each factor's sum of squares after the
other's, over the sum of all. It describes only these learning rates and initializations.

The interval is for the share in all possible runs of these cells. Runs are resampled
within their cells (their deviations from the cell's mean, times sqrt(n / (n - 1)), because n runs
deviate less from their own mean). The contribution of chance is subtracted twice from each sum of
squares, once for the data and once for the resampling. The interval is made of percentiles, and
widened to the estimate if that is outside: eta squared itself is not corrected, and with few runs a
factor without effect gets (levels - 1) / (runs - 1). Simulated coverage of these 95 % intervals
with 2, 3 and 5 runs per cell: 89 to 100 % for normal deviations, down to 78 % (residual) for
exponential ones; without the correction 0 to 93 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reludiag.experiments.analysis.trend import ONE_RATE

CONFIDENCE = 0.95
SPREAD_FROM = 5
"""Runs in addition to the first of each cell that are needed for an interval.

With this number the spread within cells is known to about a third (the relative standard error of a
standard deviation is 1 / sqrt(2 n)); with fewer an interval would look too certain.
"""
RESAMPLES = 1_999

ALWAYS_SAME = "it is the same in every run"
"""The reason if there is nothing to explain."""

SOURCES = ("lr", "init", "interaction", "residual")

_ROUNDING = 1e-9  # of a sum of squares, or of a singular value: nothing but rounding

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True)
class VarianceShare:
    """The share of one response's variance that one source explains."""

    response: str
    """`born`, `new` or `dead`."""
    source: str
    """`lr`, `init`, `interaction`, or `residual`: differences between runs of one cell, plus the
    interaction if it cannot be separated.
    """
    share: float | None
    """Eta squared."""
    low: float | None
    """Lower end of the 95 % bootstrap interval; `low` and `high` are None if fewer than
    `SPREAD_FROM` runs show the spread within cells, or if there is no spread.
    """
    high: float | None
    reason: str
    """Why the share is None; otherwise empty."""


def variance_shares(
    response: str,
    rates: Sequence[float],
    inits: Sequence[str],
    values: Sequence[float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[VarianceShare, ...]:
    """The shares of learning rate, initialization, their interaction, and the rest."""
    y = np.asarray(values, dtype=np.float64)
    reasons = _reasons(rates, inits, y)
    if all(reasons.values()):
        return tuple(VarianceShare(response, s, None, None, None, reasons[s]) for s in SOURCES)
    design = _Design.of(rates, inits, separable=not reasons["interaction"])
    has_share = np.array([not reasons[source] for source in SOURCES])
    shares = _shares(design.sums_of_squares(y[:, None]), has_share)[:, 0]
    low = high = np.full(len(SOURCES), np.nan)
    sure = design.shows_spread(y)
    if sure:
        samples = design.resampled(y, resamples, np.random.default_rng(seed))
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(
            _shares(design.true_sums(samples), has_share), [tail, 1 - tail], axis=1
        )
    return tuple(
        VarianceShare(
            response,
            source,
            share=float(shares[k]) if has_share[k] else None,
            low=float(min(low[k], shares[k])) if has_share[k] and sure else None,
            high=float(max(high[k], shares[k])) if has_share[k] and sure else None,
            reason=reasons[source],
        )
        for k, source in enumerate(SOURCES)
    )


def _reasons(rates: Sequence[float], inits: Sequence[str], y: Floats) -> dict[str, str]:
    """For each source, the reason why it has no share; otherwise empty."""
    cells = set(zip(rates, inits, strict=True))
    levels, schemes = len(set(rates)), len(set(inits))
    if len(y) < 3:
        return dict.fromkeys(SOURCES, "there are fewer than 3 runs")
    if np.ptp(y) == 0:
        return dict.fromkeys(SOURCES, ALWAYS_SAME)
    if levels == 1 and schemes == 1:
        return dict.fromkeys(SOURCES, "there is only one learning rate and one initialization")
    additive = np.hstack([_dummies(rates)[0], _dummies(inits)[0]])
    rank = int(np.linalg.matrix_rank(additive))
    if rank < levels + schemes - 1:
        return dict.fromkeys(
            SOURCES, "learning rate and initialization were always changed together"
        )
    if rank == len(y):
        return dict.fromkeys(SOURCES, "there are as many unknowns as runs; run more seeds")
    reasons = dict.fromkeys(SOURCES, "")
    if levels == 1:
        reasons["lr"] = reasons["interaction"] = ONE_RATE
    elif schemes == 1:
        reasons["init"] = reasons["interaction"] = "there is only one initialization"
    elif len(cells) == len(y):
        reasons["interaction"] = "with one run per cell it cannot be distinguished from chance"
    elif len(cells) == rank:
        reasons["interaction"] = "too few combinations were run"
    return reasons


@dataclass(frozen=True)
class _Design:
    """The cell of each run, and orthonormal bases of the models to compare."""

    cell: Integers
    """`[run]`."""
    size: Integers
    """`[cell]`: its runs."""
    rates: Floats
    inits: Floats
    additive: Floats
    cells: Floats
    """Basis of the full model, or of the additive model if the interaction cannot be separated."""

    @classmethod
    def of(cls, rates: Sequence[float], inits: Sequence[str], separable: bool) -> "_Design":
        by_rate, by_init = _dummies(rates)[0], _dummies(inits)[0]
        by_cell, cell = _dummies([f"{r!r} {i}" for r, i in zip(rates, inits, strict=True)])
        additive = _basis(np.hstack([by_rate, by_init]))
        return cls(
            cell,
            np.bincount(cell),
            _basis(by_rate),
            _basis(by_init),
            additive,
            _basis(by_cell) if separable else additive,
        )

    def shows_spread(self, y: Floats) -> bool:
        """Whether resampling runs within their cells can give intervals."""
        deviations = y - (np.bincount(self.cell, y) / self.size)[self.cell]
        differ = np.sum(deviations**2) > _ROUNDING * np.sum((y - y.mean()) ** 2)
        return bool(differ and int(self.size.sum()) - len(self.size) >= SPREAD_FROM)

    def sums_of_squares(self, y: Floats) -> Floats:
        """`[source, data set]` of `y`, `[run, data set]`."""
        y = y - y.mean(axis=0)
        residuals = {
            name: np.sum(y**2, axis=0) - np.sum((getattr(self, name).T @ y) ** 2, axis=0)
            for name in ("rates", "inits", "additive", "cells")
        }
        sums = np.stack(
            [
                residuals["inits"] - residuals["additive"],
                residuals["rates"] - residuals["additive"],
                residuals["additive"] - residuals["cells"],
                residuals["cells"],
            ]
        )
        return np.where(sums > _ROUNDING * np.sum(y**2, axis=0), sums, 0.0)

    def true_sums(self, y: Floats) -> Floats:
        """`[source, data set]`: of resampled data, without the contribution of chance."""
        within = self._variances(y)[self.cell]
        leverage = {
            name: np.sum(getattr(self, name) ** 2, axis=1)
            for name in ("rates", "inits", "additive", "cells")
        }
        chance = [
            (leverage["additive"] - leverage["inits"]) @ within,
            (leverage["additive"] - leverage["rates"]) @ within,
            (leverage["cells"] - leverage["additive"]) @ within,
        ]
        sums = self.sums_of_squares(y)
        true = np.clip(sums[:3] - 2 * np.stack(chance), 0, None)
        return np.concatenate([true, within.sum(axis=0, keepdims=True)])

    def resampled(self, y: Floats, count: int, rng: np.random.Generator) -> Floats:
        """`[run, data set]`: each run's cell mean plus the deviation of a random run of the same
        cell.

        A cell with one run uses the deviation of any run.
        """
        means = np.bincount(self.cell, y) / self.size
        size = self.size[self.cell]
        deviations = (y - means[self.cell]) * np.sqrt(size / np.maximum(size - 1, 1))
        # The runs of each cell in a row, then those of all cells of several.
        order = np.argsort(self.cell, kind="stable")
        start = np.concatenate([[0], np.cumsum(self.size)[:-1]])[self.cell]
        pool = np.concatenate([order, np.flatnonzero(size > 1)])
        start = np.where(size > 1, start, len(y))
        size = np.where(size > 1, size, len(pool) - len(y))
        picks = start[:, None] + (rng.random((len(y), count)) * size[:, None]).astype(np.intp)
        return np.asarray(means[self.cell][:, None] + deviations[pool[picks]])

    def _variances(self, y: Floats) -> Floats:
        """`[cell, data set]`; for a cell with one run, the mean of the other cells."""
        member = np.eye(len(self.size))[self.cell]
        means = (member.T @ y) / self.size[:, None]
        squares = member.T @ (y - means[self.cell]) ** 2
        variances = squares / np.maximum(self.size - 1, 1)[:, None]
        several = self.size > 1
        return np.where(several[:, None], variances, variances[several].mean(axis=0))


def _shares(sums: Floats, has_share: np.ndarray[Any, np.dtype[np.bool_]]) -> Floats:
    sums = np.where(has_share[:, None], sums, 0.0)
    total = sums.sum(axis=0)
    return np.asarray(sums / np.where(total > 0, total, 1.0))


def _dummies(labels: Sequence[object]) -> tuple[Floats, Integers]:
    index = np.unique(np.asarray(labels), return_inverse=True)[1]
    return np.eye(int(index.max()) + 1)[index], index


def _basis(columns: Floats) -> Floats:
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(vectors[:, sizes > _ROUNDING * sizes[0]])

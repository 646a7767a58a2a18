"""Odds: how ten times the learning rate changes a unit's odds of dying, by logistic regression.

Its rows are the runs, weighted by their units. Errors are clustered by run, because the units of
one run die together: on real grids they are 3 to 4 times the naive errors. With few runs even these
are too small (with 21 runs a 5 % test rejects in 8 %). So intervals use Student's t with runs - 1
degrees of freedom, and the test to report is the permutation test of `trend`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

FEWEST_SPARE_RUNS = 3
"""Runs needed in addition to the number of coefficients to estimate an error."""

NOT_INSTALLED = 'statsmodels is not installed: pip install "reludiag[experiments]"'
"""The reason for a None where there is enough to go by, and nothing to fit it with."""

_FLAT = 1e-7  # a slack of the linear program that is rounding only

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class DeathOdds:
    """The effect of ten times the learning rate on a unit's odds to die, initialization fixed."""

    runs: int
    """Runs in the regression: those of initializations in which some but not all units died."""
    odds_ratio: float | None
    low: float | None
    """Of the 95 % interval, as `high`."""
    high: float | None
    p_value: float | None
    clustering: float | None
    """Clustered over naive standard error: above 1, the units of one run die together."""
    left_out: tuple[str, ...]
    """Initializations in which no unit died at any learning rate, or all units did."""
    reason: str
    """Why the odds ratio is None; otherwise empty."""


def death_odds(
    rates: Sequence[float], inits: Sequence[str], died: Sequence[int], exposed: Sequence[int]
) -> DeathOdds:
    """Regress new deaths on log10 of the learning rate, with an intercept per initialization.

    `exposed` is the number of units of each run that were alive at step 0, `died` the number of
    these that were dead at the end. Each run has at least one exposed unit.
    """
    runs = pd.DataFrame({"lr": rates, "init": inits, "died": died, "exposed": exposed})
    by_init = runs.groupby("init")[["died", "exposed"]].sum()
    flat = by_init[(by_init["died"] == 0) | (by_init["died"] == by_init["exposed"])].index
    runs = runs[~runs["init"].isin(flat)]
    left_out = tuple(str(init) for init in flat)

    def failure(reason: str) -> DeathOdds:
        return DeathOdds(len(runs), None, None, None, None, None, left_out, reason)

    if runs.empty:
        return failure("in every initialization, either no unit died or all units did")
    if (runs["lr"] <= 0).any():
        return failure("a learning rate of 0 has no logarithm")
    if runs["lr"].nunique() < 2:
        return failure("there is only one learning rate")
    intercepts = pd.get_dummies(runs["init"]).to_numpy(dtype=np.float64)
    x = np.column_stack([np.log10(runs["lr"]), intercepts])
    if np.linalg.matrix_rank(x) < x.shape[1]:
        return failure("each initialization was run at only one learning rate")
    if len(runs) < x.shape[1] + FEWEST_SPARE_RUNS:
        return failure(f"{len(runs)} runs are too few for {x.shape[1]} coefficients")
    k, n = (runs[name].to_numpy(dtype=np.float64) for name in ("died", "exposed"))
    if _separated(x, k, n):
        return failure(
            "all units died above some learning rate and none below it, so the odds are infinite"
        )
    try:
        fits = _fit(x, k, n)
    except ImportError:
        return failure(NOT_INSTALLED)
    if fits is None:
        return failure("the regression did not converge")
    naive, fit = fits
    low, high = fit.conf_int()[0]
    return DeathOdds(
        runs=len(runs),
        odds_ratio=float(np.exp(fit.params[0])),
        low=float(np.exp(low)),
        high=float(np.exp(high)),
        p_value=float(fit.pvalues[0]),
        clustering=float(fit.bse[0] / naive.bse[0]),
        left_out=left_out,
        reason="",
    )


def _fit(x: Floats, died: Floats, exposed: Floats) -> tuple[Any, Any] | None:
    """The regression with the naive errors, and with those by run; None if it does not converge."""
    import statsmodels.api as sm  # an extra; and a report on one run must not wait for it
    from statsmodels.tools.sm_exceptions import (
        ConvergenceWarning,
        PerfectSeparationWarning,
        SpecificationWarning,
    )

    model = sm.GLM(died / exposed, x, family=sm.families.Binomial(), var_weights=exposed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        warnings.simplefilter("error", PerfectSeparationWarning)
        # "cov_type not fully supported with var_weights": these errors are, and a test computes
        # the sandwich by hand.
        warnings.simplefilter("ignore", SpecificationWarning)
        try:
            naive = model.fit()
            by_run = {"groups": np.arange(len(exposed))}
            return naive, model.fit(cov_type="cluster", cov_kwds=by_run, use_t=True)
        except (ConvergenceWarning, PerfectSeparationWarning):
            return None


def _separated(x: Floats, died: Floats, exposed: Floats) -> bool:
    """Whether a plane separates deaths from survivals, so that a coefficient diverges.

    A linear program (Konis 2007) looks for a direction in which no death and no survival gets less
    likely, and at least one gets more likely.
    """
    from scipy.optimize import linprog  # here: a report on one run must not wait for it

    signed = np.concatenate([x[died > 0], -x[died < exposed]])
    solution = linprog(
        -signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(signed)), bounds=(-1, 1)
    )
    return solution.fun is None or bool(solution.fun < -_FLAT * len(signed))

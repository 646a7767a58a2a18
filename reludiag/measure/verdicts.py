"""Verdicts: from a unit's statistics to the one word that describes it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special  # not stats, whose import takes longer than a small scan

from reludiag.measure.unit_counts import UnitCounts
from reludiag.sites.rectifiers import Rectifier

VERDICTS = (
    "nonfinite",
    "unobserved",
    "dead",
    "rare",
    "dormant",
    "constant",
    "always_on",
    "alive",
)
"""The first that holds, from the left."""

CONFIDENCE = 0.95

Strings = np.ndarray[Any, np.dtype[np.str_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Thresholds:
    """The settings of the verdicts."""

    rare: float = 0.001
    """A unit that fired in fewer than this share of samples is rare (the 0.1 % of the
    literature on sparse activations)."""
    dormant: float = 0.025
    """A unit whose tau-score is at most this is dormant (Sokar et al. 2023, section 3)."""


def judge(counts: UnitCounts, rectifier: Rectifier, thresholds: Thresholds) -> Strings:
    """The verdict of each unit, `[unit]`.

    A leaky activation cannot die, so its units are never dead, nor rare: negative is not off.
    """
    n = counts.samples
    if n == 0:
        return np.full(len(counts.fired), "unobserved")
    counted = counts.counted > 0
    conditions = {
        "nonfinite": counts.nonfinite,
        "dead": counts.silent & rectifier.can_die,
        "rare": (counts.fired < thresholds.rare * counts.counted) & rectifier.can_die,
        "dormant": tau_score(counts) <= thresholds.dormant,
        # By its extremes, not by a variance: sums round, and a constant must not be missed.
        "constant": (counts.maximum == counts.minimum) & counted,
        "always_on": (counts.minimum > 0) & counted,
    }
    return np.select(list(conditions.values()), list(conditions), default="alive").astype(np.str_)


def is_dead(counts: UnitCounts, rectifier: Rectifier) -> Mask:
    """Which units are dead, `[unit]`: observed, finite, and silent in every sample."""
    if counts.samples == 0 or not rectifier.can_die:
        return np.zeros(len(counts.fired), dtype=bool)
    return counts.silent & ~counts.nonfinite


def tau_score(counts: UnitCounts) -> Floats:
    """Mean absolute activation over the site's mean (Sokar et al. 2023, definition 3.1).

    NaN for units that are not finite; they are left out of the site's mean.
    """
    finite = ~counts.nonfinite
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(finite, counts.total_absolute, np.nan) / counts.positions
        site = mean[finite].mean() if finite.any() else np.nan
        if site == 0:  # the whole site is silent, and so is each of its units
            return np.where(finite, 0.0, np.nan)
        return np.asarray(mean / site, dtype=np.float64)


def upper_bound(fired: Any, samples: int) -> Floats:
    """One-sided 95 % upper bound on a firing rate, for `fired` of `samples` independent samples.

    Clopper and Pearson's exact bound; for a unit that never fired it is `1 - 0.05**(1/samples)`.
    """
    fired = np.asarray(fired, dtype=np.float64)
    if samples == 0:
        return np.full(fired.shape, np.nan)
    # A million units have few distinct counts, and the quantile is dear.
    counts, of = np.unique(fired, return_inverse=True)
    below = counts < samples
    bounds = np.ones(counts.shape)
    bounds[below] = special.betaincinv(counts[below] + 1, samples - counts[below], CONFIDENCE)
    return bounds[of].reshape(fired.shape)

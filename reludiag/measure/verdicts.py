"""Verdicts: from a unit's statistics to the one word that describes it.

The row of a verdict in `VERDICT_TABLE`, at the end, has everything about it: when it holds, whether
such a unit is lost, and how reports show it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from reludiag.errors import UsageError
from reludiag.measure.saturation import SLOPE, at_upper, is_saturated
from reludiag.measure.unit_counts import UnitCounts
from reludiag.sites.site import Rectifier

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


def checked_thresholds(thresholds: Any) -> Thresholds:
    """The settings, or the default ones for None; raises UsageError for anything else."""
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        raise UsageError(
            f"thresholds={thresholds!r} was given; expected reludiag.Thresholds, such as "
            "Thresholds(rare=0.01)"
        )
    return thresholds or Thresholds()


@dataclass(frozen=True)
class Verdict:
    """One verdict: a row of the table."""

    name: str
    meaning: str
    """For the reader of a report."""
    rule: str
    """When it holds, in words, for the documentation."""
    holds: Callable[[UnitCounts, Rectifier, Thresholds], Mask | bool]
    """Of which units, `[unit]`, or of all of a site at once."""
    glyph: str
    """One cell of a bar in the terminal,"""
    plain: str
    """and where only ASCII can be shown."""
    style: str
    """Of the terminal, as Rich writes styles."""
    light: str
    """Its colour on a light page and in a figure. Those of Okabe and Ito, which the colour-blind
    tell apart; each also differs in lightness, for grey print."""
    dark: str
    """And on a dark page."""
    lost: bool = False
    """Whether a gate counts such a unit as lost."""
    is_listed: bool = False
    """Whether the terminal names the worst units that have it."""


def is_dead(counts: UnitCounts, rectifier: Rectifier) -> Mask:
    """Which units are dead, `[unit]`: observed, finite, and silent in every sample."""
    if counts.samples == 0 or not rectifier.can_die:
        return np.zeros(len(counts.fired), dtype=bool)
    return counts.silent & ~counts.nonfinite


def is_rare(counts: UnitCounts, rectifier: Rectifier, share: float = Thresholds.rare) -> Mask:
    """Which units fired, but in fewer than this share of the counted samples, `[unit]`."""
    if not rectifier.can_die:
        return np.zeros(len(counts.fired), dtype=bool)
    # One that is not silent fired at least once, perhaps where only that was watched.
    seldom = np.maximum(counts.fired, 1) < share * counts.counted
    return seldom & ~counts.silent & ~counts.nonfinite


def is_dormant(counts: UnitCounts, most: float = Thresholds.dormant) -> Mask:
    """Which units have at most this tau-score, `[unit]`. Dead ones are among them: theirs is 0."""
    return tau_score(counts) <= most


def tau_score(counts: UnitCounts) -> Floats:
    """Mean absolute activation / the site's mean (Sokar et al. 2023, definition 3.1).

    NaN for units that are not finite; these are left out of the site's mean.
    """
    finite = ~counts.nonfinite
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(finite, counts.total_absolute, np.nan) / counts.positions
        site = mean[finite].mean() if finite.any() else np.nan
        if site == 0:  # the whole site is silent, and so is each of its units
            return np.where(finite, 0.0, np.nan)
        return np.asarray(mean / site, dtype=np.float64)


VERDICT_TABLE = (
    Verdict(
        name="nonfinite",
        meaning="a NaN or an infinity was seen: neither dead nor alive",
        rule="a NaN or an infinity was seen",
        holds=lambda counts, rectifier, thresholds: counts.nonfinite & (counts.samples > 0),
        glyph="!",
        plain="!",
        style="bold magenta",
        light="#101417",
        dark="#c3ccd3",
        lost=True,
        is_listed=True,
    ),
    Verdict(
        name="unobserved",
        meaning="its site was not called, or cannot be read: the report says which",
        rule="its site was not called, or cannot be read",
        holds=lambda counts, rectifier, thresholds: counts.samples == 0,
        glyph="?",
        plain="?",
        style="dim",
        light="#b4bcc2",
        dark="#6b757d",
    ),
    Verdict(
        name="dead",
        meaning=(
            "it fired in 0 of n samples; shown with the 95 % upper bound on its firing rate, "
            "1 - 0.05^(1/n)"
        ),
        rule="it fired in 0 of *n* samples",
        holds=lambda counts, rectifier, thresholds: counts.silent & rectifier.can_die,
        glyph="×",
        plain="x",
        style="bold red",
        light="#d55e00",
        dark="#f0803c",
        lost=True,
        is_listed=True,
    ),
    Verdict(
        name="rare",
        meaning=f"it fired in fewer than {100 * Thresholds.rare:g} % of samples (`--rare`)",
        rule=f"it fired in fewer than {100 * Thresholds.rare:g} % of samples (`--rare`)",
        holds=lambda counts, rectifier, thresholds: is_rare(counts, rectifier, thresholds.rare),
        glyph="▒",
        plain="o",
        style="yellow",
        light="#efd88a",
        dark="#8f7a35",
        is_listed=True,
    ),
    Verdict(
        name="saturated",
        meaning=(
            "it is stuck where its activation is flat and not off: at the upper bound of ReLU6 or "
            "clamp(0, 1), or far below 0 of GELU, SiLU, Softplus, ELU; it passes no gradient"
        ),
        rule=(
            "its output is always the upper bound of a clipped rectifier; or its pre-activation is "
            f"always where the slope of a leaky activation is at most {SLOPE:g}"
        ),
        holds=lambda counts, rectifier, thresholds: is_saturated(counts, rectifier),
        glyph="▓",
        plain="s",
        style="blue",
        light="#0072b2",
        dark="#2f7fc1",
        is_listed=True,
    ),
    Verdict(
        name="dormant",
        meaning=(
            f"its mean absolute activation is at most {Thresholds.dormant:g} of the site's mean "
            "(`--dormant`; Sokar et al. 2023)"
        ),
        rule=f"its tau-score is at most {Thresholds.dormant:g} (`--dormant`)",
        holds=lambda counts, rectifier, thresholds: is_dormant(counts, thresholds.dormant),
        glyph="▒",
        plain="o",
        style="yellow",
        light="#e6c34a",
        dark="#c9a63a",
        is_listed=True,
    ),
    Verdict(
        name="constant",
        meaning="it fires, but always with the same value",
        rule="its largest and its smallest output are the same",
        # By its extremes, not by a variance: sums are rounded, and a constant must not be missed.
        holds=lambda counts, rectifier, thresholds: (
            (counts.maximum == counts.minimum) & (counts.positions > 1)
        ),
        glyph="▓",
        plain="c",
        style="cyan",
        light="#56b4e9",
        dark="#56b4e9",
        is_listed=True,
    ),
    Verdict(
        name="always_on",
        meaning="it is > 0 everywhere, so it is linear",
        rule="its smallest output is above 0, and its largest below any upper bound: it is linear",
        holds=lambda counts, rectifier, thresholds: (
            (counts.minimum > 0)
            & (counts.counted > 0)
            & (counts.active == counts.positions)
            & ~at_upper(counts.maximum, rectifier.upper)
        ),
        glyph="█",
        plain="#",
        style="green",
        light="#8fb8a8",
        dark="#4d7d6c",
    ),
    Verdict(
        name="alive",
        meaning="all others",
        rule="all others",
        holds=lambda counts, rectifier, thresholds: True,
        glyph="█",
        plain="#",
        style="green",
        light="#d3dee4",
        dark="#36444e",
    ),
)
"""The first that holds, from above."""

VERDICTS = tuple(verdict.name for verdict in VERDICT_TABLE)
LOST = [verdict.name for verdict in VERDICT_TABLE if verdict.lost]


def judge(counts: UnitCounts, rectifier: Rectifier, thresholds: Thresholds) -> Strings:
    """The verdict of each unit, `[unit]`: the first in the table that holds.

    A leaky activation cannot die, so its units are never dead or rare: a negative output is not
    off.
    """
    holds = [
        np.broadcast_to(verdict.holds(counts, rectifier, thresholds), counts.fired.shape)
        for verdict in VERDICT_TABLE
    ]
    return np.select(holds, VERDICTS, default="").astype(np.str_)

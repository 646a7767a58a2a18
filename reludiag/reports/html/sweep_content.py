"""The content of the page of a sweep as plain values; the template only lays it out."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reludiag.experiments.analysis.effects import RESPONSES, Effects
from reludiag.experiments.analysis.variance import ALWAYS_SAME, VarianceShare
from reludiag.experiments.trial_table import METRIC
from reludiag.reports.csv_file import write_frame
from reludiag.reports.html.heat_maps import HeatMap, heat_map
from reludiag.reports.sweep.summary import (
    SOURCES,
    caveats,
    findings,
    headline,
    interval,
    marks,
    size,
)
from reludiag.reports.wording import number, p_text, plural, rate, share

MOST_LISTED = 2_000
"""Largest number of runs that a page lists; the download has all."""
_MOST_FAILURES = 10
_TITLES = {"born": "Born dead", "new": "New deaths", "dead": "Dead at the end"}


@dataclass(frozen=True)
class Share:
    """The share of one response that one source explains."""

    text: str
    interval: str = ""
    share: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Source:
    """A row of the table of explained shares."""

    name: str
    cells: tuple[Share, ...]


@dataclass(frozen=True)
class Safe:
    """The highest safe learning rate of an initialization."""

    init: str
    born: str
    up_to: str
    not_from: str
    correlation: str
    p: str


@dataclass(frozen=True)
class Cell:
    """A cell of the table of runs."""

    text: str
    key: str
    """The sort key: a number in full, or its text; empty if unknown."""
    kind: str
    """`n` for a number, else `t`."""


@dataclass(frozen=True)
class Run:
    """A row of it."""

    name: str
    """The text that the search uses."""
    cells: tuple[Cell, ...]


def content_of(effects: Effects) -> dict[str, Any]:
    """The content of the page and the notebook."""
    has_cells = len(effects.cells) > 0
    runs = runs_of(effects)
    return {
        "size": size(effects),
        "headline": headline(effects),
        "notes": caveats(effects),
        "findings": findings(effects),
        "maps": [heat_map(effects, response) for response in ("new", "born")] if has_cells else [],
        "marks": marks(effects),
        "metrics": [_metric_map(effects, name) for name in effects.metrics],
        "responses": list(_TITLES.values()),
        "explained": _explained(effects),
        "limit": f"{100 * effects.safe_new:g} %",
        "safe": _safe(effects) if has_cells else [],
        "failures": _failures(effects.trials),
        "columns": _columns(effects.trials),
        "runs": runs,
        "unlisted": len(effects.trials) - len(runs),
    }


def trials_csv(effects: Effects) -> str:
    """The runs as `to_csv` writes them."""
    stream = io.StringIO()
    write_frame(effects.trials, stream)
    return stream.getvalue()


def _metric_map(effects: Effects, name: str) -> HeatMap:
    return heat_map(
        effects, name, name.removeprefix(METRIC), lambda value: (number(value), "plain")
    )


def _explained(effects: Effects) -> list[Source]:
    rows = []
    for source, name in SOURCES.items():
        shares = [effects.variance_share(response, source) for response in RESPONSES]
        if any(item.share is not None for item in shares):
            rows.append(Source(name.capitalize(), tuple(_share(item) for item in shares)))
    return rows


def _share(item: VarianceShare) -> Share:
    if item.share is None:
        return Share("the same in each run" if item.reason == ALWAYS_SAME else "not known")
    return Share(share(item.share, 1), interval(item), item.share, item.low, item.high)


def _safe(effects: Effects) -> list[Safe]:
    born = effects.heat_map("born").mean(axis=1)
    trends = {trend.init: trend for trend in effects.trends}
    rows = []
    for item in effects.safe:
        trend = trends.get(item.init)
        correlation = None if trend is None else trend.correlation
        unsafe = item.lowest_unsafe
        rows.append(
            Safe(
                item.init,
                share(born.get(item.init, math.nan), 1),
                rate(item.highest_safe)
                if item.highest_safe is not None
                else "not known"
                if unsafe is None
                else "none",
                "" if unsafe is None else rate(unsafe),
                "not known" if correlation is None else f"{correlation:.2f}",
                "" if trend is None else p_text(trend.p_value),
            )
        )
    return rows


def _failures(trials: pd.DataFrame) -> list[str]:
    """Each error once, with the number of its runs, the most frequent first."""
    if "error" not in trials:
        return []
    counts = trials["error"].dropna().astype(str)
    sentences = counts[counts != ""].value_counts().to_dict()
    lines = [f"{plural(count, 'run')}: {error}" for error, count in sentences.items()]
    more = len(lines) - _MOST_FAILURES
    return lines[:_MOST_FAILURES] + ([f"{more:,} other errors, in the table"] if more > 0 else [])


_TEXTS = {"init": "Initialization", "status": "Status", "error": "Error"}
_NUMBERS = {
    "trial": "#",
    "lr": "Learning rate",
    "seed": "Seed",
    "born": "Born dead",
    "new": "New",
    "dead": "Dead",
    "units": "Units",
    "dead_fraction": "Share dead",
    "steps": "Steps",
    "seconds": "Seconds",
}
_ORDER = (
    *("trial", "lr", "init", "seed", "status", "born", "new", "dead", "units", "dead_fraction"),
    *("steps", "seconds", "error"),
)


def _column_names(trials: pd.DataFrame) -> list[str]:
    """The columns with values; what train returned comes before its duration."""
    metrics = [str(name) for name in trials.columns if str(name).startswith(METRIC)]
    order = [*_ORDER[:-3], *metrics, *_ORDER[-3:]]
    return [
        name for name in order if name in trials and trials[name].replace("", pd.NA).notna().any()
    ]


def _columns(trials: pd.DataFrame) -> list[tuple[str, str]]:
    titles = {**_TEXTS, **_NUMBERS}
    return [
        (titles.get(name, name.removeprefix(METRIC)), "t" if name in _TEXTS else "n")
        for name in _column_names(trials)
    ]


def runs_of(effects: Effects) -> Sequence[Run]:
    """The runs as the table lists them."""
    trials = effects.trials.head(MOST_LISTED)
    names = _column_names(effects.trials)
    searched = [name for name in _TEXTS if name in names]
    return [
        Run(
            " ".join(str(row[name]) for name in searched if not pd.isna(row[name])),
            tuple(_cell(name, row[name]) for name in names),
        )
        for row in trials.to_dict("records")
    ]


def _cell(name: str, value: Any) -> Cell:
    if name in _TEXTS:
        text = "" if pd.isna(value) else str(value)
        return Cell(text, text, "t")
    if pd.isna(value):
        return Cell("", "", "n")
    key = repr(float(value))
    if name == "lr":
        return Cell(rate(float(value)), key, "n")
    if name == "dead_fraction":
        return Cell(share(float(value), 1), key, "n")
    if name == "seconds":
        return Cell(f"{float(value):.1f}", key, "n")
    return Cell(number(float(value)) if name.startswith(METRIC) else f"{int(value):,}", key, "n")

"""Heat maps of a sweep as plain values, for its own page and for the report of a run."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reludiag.experiments.analysis.effects import Effects
from reludiag.reports.html.heat import heat
from reludiag.reports.sweep.summary import caveats, findings, headline
from reludiag.reports.wording import rate, share

_RESPONSES = {
    "new": "New deaths: share of units alive at step 0 that are dead at the end",
    "born": "Born dead: share of units dead at step 0",
}


@dataclass(frozen=True)
class HeatMap:
    """Shares of dead units over learning rates and initializations."""

    title: str
    rates: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """Initialization, then text and heat of each cell."""


@dataclass(frozen=True)
class Grid:
    """The results of a sweep."""

    headline: str
    maps: tuple[HeatMap, ...]
    findings: tuple[str, ...]


def grid_of(effects: Effects) -> Grid:
    """The heat maps of a sweep and its results."""
    return Grid(
        headline(effects),
        tuple(heat_map(effects, response) for response in _RESPONSES if len(effects.cells)),
        (*caveats(effects), *findings(effects)),
    )


def _share_and_heat(part: float) -> tuple[str, str]:
    return share(part, 1), heat(part)


def heat_map(
    effects: Effects,
    name: str,
    title: str = "",
    text_of: Callable[[float], tuple[str, str]] = _share_and_heat,
) -> HeatMap:
    """One column of `cells` as a table of texts and colours; by default a share of dead units."""
    table = effects.heat_map(name)
    places = effects.cells.set_index(["init", "lr"]).to_dict("index")

    def cell(part: float, place: dict[Hashable, Any] | None) -> tuple[str, str]:
        if place is None:
            return "", "none"
        if not pd.isna(part):
            text, colour = text_of(part)
            return text + ("!" if place["diverged"] else ""), colour
        return (
            ("NaN", "nan") if place["diverged"] else ("crash" if place["crashed"] else "?", "none")
        )

    return HeatMap(
        title or _RESPONSES[name],
        tuple(rate(float(value)) for value in table.columns),
        tuple(
            (
                str(init),
                tuple(cell(row[lr], places.get((init, lr))) for lr in table.columns),
            )
            for init, row in table.iterrows()
        ),
    )

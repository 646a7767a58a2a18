"""Lifelines: the timeline in few enough windows for a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.recording.ledger import Life, States

Integers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

MOST_UNITS = 2_000
"""A site with more units is shown as one row with its share of dead units."""
_MOST_WINDOWS = 400  # about as many as a screen has room for
_MOST_CELLS = 1_200_000  # for all sites: the limit of a page, 5,000 units at 200 snapshots
_MOST_SITE_CELLS = 200_000
_FEWEST_WINDOWS = 20


@dataclass(frozen=True)
class SiteLine:
    """The life of one site, or of all together; arrays of `[window]`."""

    name: str
    units: int
    learning_rate: Floats
    """The largest in the window; NaN where none is known."""
    dead: Integers
    """At its end, as `nonfinite` is."""
    nonfinite: Integers
    died: Integers
    revived: Integers
    states: States | None
    """`[unit, window]`, values of `Life` at the window's end; None if there are too many units to
    show.
    """


@dataclass(frozen=True)
class LifelineChart:
    """The windows, and the life of each site in them."""

    edges: tuple[float, ...]
    """`[window + 1]`: steps; a window begins after one of them and ends at the next.

    The first window is only the first snapshot; it begins before it only to have a width.
    """
    joined: int
    """Snapshots per window, except the first and the last window."""
    sites: tuple[SiteLine, ...]
    """Those that were called, in forward order."""
    whole: SiteLine


def lifelines(diagnosis: Diagnosis) -> LifelineChart | None:
    """The lives of a Diagnosis in windows; None if it has no timeline."""
    timeline = diagnosis.timeline
    if timeline is None or timeline.empty:
        return None
    called_sites = diagnosis.sites.loc[diagnosis.sites["units"].fillna(0) > 0, ["site", "units"]]
    names = [str(name) for name in called_sites["site"]]
    steps = [int(step) for step in timeline["step"].unique()]
    most = max(_FEWEST_WINDOWS, min(_MOST_WINDOWS, _MOST_SITE_CELLS // max(1, len(names))))
    joined = max(1, -(-(len(steps) - 1) // most))
    starts = np.array([0, *range(1, len(steps), joined)])
    ends = np.array([*(starts[1:] - 1), len(steps) - 1])

    def by_site(column: str) -> dict[str, np.ndarray[Any, Any]]:
        table = timeline.pivot(index="step", columns="site", values=column)
        return {name: table[name].to_numpy(float, na_value=np.nan) for name in names}

    rates = by_site("learning_rate")
    counts = {name: by_site(name) for name in ("dead", "nonfinite", "died", "revived")}
    units = dict(zip(names, (int(number) for number in called_sites["units"]), strict=True))
    troubled = {name: bool(counts["dead"][name].any()) for name in names}
    by_unit = _sites_by_unit(diagnosis, units, troubled, len(starts))

    def at_end(kind: str, name: str) -> Integers:
        return np.asarray(counts[kind][name][ends], dtype=np.int64)

    def within(kind: str, name: str) -> Integers:
        return np.asarray(np.add.reduceat(counts[kind][name], starts), dtype=np.int64)

    sites = tuple(
        SiteLine(
            name,
            units[name],
            learning_rate=np.fmax.reduceat(rates[name], starts),
            dead=at_end("dead", name),
            nonfinite=at_end("nonfinite", name),
            died=within("died", name),
            revived=within("revived", name),
            states=diagnosis.lives.states[name][ends].T
            if diagnosis.lives and name in by_unit
            else None,
        )
        for name in names
    )
    # Not wider than this, or an axis would have room for a step before the first.
    width = min(steps[1] - steps[0], (steps[-1] - steps[0]) / 20) if len(steps) > 1 else 1
    edges = (steps[0] - width, *(steps[end] for end in ends))
    return LifelineChart(edges, joined, sites, _together(sites, len(starts)))


def raster(sites: Sequence[SiteLine], most: int) -> tuple[States, tuple[int, ...]]:
    """The states of all units in about this number of rows at most, and the row at which each site
    ends.

    In each site the first units to die come first. If there are more units, a row shows several in
    their worst state, so that no death is hidden.
    """
    step = max(1, -(-sum(site.units for site in sites) // most))
    blocks = []
    for site in sites:
        assert site.states is not None
        lost = site.states >= Life.BORN_DEAD
        first = np.where(lost.any(axis=1), lost.argmax(axis=1), lost.shape[1])
        states = site.states[np.lexsort((-lost.sum(axis=1), first))]
        blocks.append(np.maximum.reduceat(states, np.arange(0, len(states), step), axis=0))
    ends = np.cumsum([len(block) for block in blocks])
    return np.concatenate(blocks), tuple(int(end) for end in ends)


def _sites_by_unit(
    diagnosis: Diagnosis, units: dict[str, int], troubled: dict[str, bool], windows: int
) -> set[str]:
    """The sites whose units are shown: first those with deaths, then small ones."""
    names, cells = set[str](), 0
    states = {} if diagnosis.lives is None else diagnosis.lives.states
    for name in sorted(units, key=lambda name: (not troubled[name], units[name])):
        cells += units[name] * windows
        if name in states and units[name] <= MOST_UNITS and cells <= _MOST_CELLS:
            names.add(name)
    return names


def _together(sites: tuple[SiteLine, ...], windows: int) -> SiteLine:
    def total(kind: str) -> Integers:
        rows = [getattr(site, kind) for site in sites]
        return np.sum(rows, axis=0, dtype=np.int64) if rows else np.zeros(windows, np.int64)

    rates = [site.learning_rate for site in sites]
    return SiteLine(
        "",
        sum(site.units for site in sites),
        np.fmax.reduce(rates) if rates else np.full(windows, np.nan),
        total("dead"),
        total("nonfinite"),
        total("died"),
        total("revived"),
        None,
    )

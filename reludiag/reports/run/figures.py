"""Figures of a Diagnosis, for papers and slides."""

from typing import TYPE_CHECKING, Any

import numpy as np

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.errors import UsageError
from reludiag.measure.unjudged import label as reason_label
from reludiag.measure.unjudged import unjudged_sites
from reludiag.measure.verdicts import VERDICTS
from reludiag.recording.ledger import Life
from reludiag.reports.figure_style import (
    INK,
    LINE,
    MOST_NAMED,
    QUIET,
    VERDICT_COLOURS,
    colour_key,
    heat_colours,
    heat_key,
    name_rows,
    new_figure,
    one_line,
    styled,
)
from reludiag.reports.run.lifelines import LifelineChart, SiteLine, lifelines, raster
from reludiag.reports.run.summary import never_fired, samples_differ
from reludiag.reports.wording import plural

if TYPE_CHECKING:  # an extra: only needed for drawing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# As in the HTML report, light: Okabe and Ito's colours, each of its own lightness.
STATE_COLOURS = {
    Life.UNKNOWN: "#ffffff",
    Life.ALIVE: VERDICT_COLOURS["alive"],
    Life.REVIVED: "#3a9bdc",
    Life.BORN_DEAD: "#6f2c91",
    Life.DEAD: VERDICT_COLOURS["dead"],
    Life.NONFINITE: VERDICT_COLOURS["nonfinite"],
}
_STATE_NAMES = {
    Life.ALIVE: "alive",
    Life.REVIVED: "alive again",
    Life.BORN_DEAD: "dead since step 0",
    Life.DEAD: "died",
    Life.NONFINITE: "not finite",
}
_RATE = "#005f99"

_MOST_ROWS = 1_000
_MOST_SITES_BY_UNIT = 24
_MOST_PANELS = 12


def figure(diagnosis: Diagnosis, kind: str) -> "Figure":
    """A matplotlib figure: `lifelines`, `sites` or `rates`.

    Raises MissingLibraryError without matplotlib, UsageError if there is nothing to show.
    """
    kinds = {"lifelines": _lifelines, "sites": _sites, "rates": _rates}
    if kind not in kinds:
        raise UsageError(f"figure {kind!r} does not exist; expected one of {', '.join(kinds)}")
    with styled():
        return kinds[kind](diagnosis)


def _lifelines(diagnosis: Diagnosis) -> "Figure":
    lives = lifelines(diagnosis)
    if lives is None or not lives.sites:
        raise UsageError(
            "there is no timeline to draw lifelines from; expected a recording, or several "
            "checkpoints"
        )
    whole = lives.whole
    by_unit = len(lives.sites) <= _MOST_SITES_BY_UNIT
    by_unit &= all(site.states is not None for site in lives.sites)
    rated = bool(np.isfinite(whole.learning_rate).any())
    tall = 3.2 if by_unit else min(6.0, 0.5 + 0.16 * len(lives.sites))
    picture = new_figure(tall + (1.9 if rated else 1.1))
    ratios = ([0.55] if rated else []) + [0.6, tall]
    *above, below = picture.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    edges = np.array(lives.edges, dtype=float)
    if rated:
        above[0].stairs(whole.learning_rate, edges, baseline=None, color=_RATE, linewidth=1.2)
        above[0].set_ylim(0, 1.1 * float(np.nanmax(whole.learning_rate)))
        above[0].set_title("Largest learning rate")
        above[0].locator_params(axis="y", nbins=3)
    _deaths(above[-1], edges, whole)
    if by_unit:
        _raster(below, lives, edges)
        joined = -(-whole.units // _MOST_ROWS)
        legend = f": a row shows up to {joined}, in their worst state" if joined > 1 else ""
        below.set_title(plural(whole.units, "unit") + legend)
        used = {int(state) for site in lives.sites for state in np.unique(_states(site))}
        colour_key(below, [(STATE_COLOURS[s], n) for s, n in _STATE_NAMES.items() if s in used])
    else:
        _shares(below, lives, edges)
        below.set_title(f"{plural(len(lives.sites), 'site')}: share of units dead")
        heat_key(below, bool(whole.nonfinite.any()))
    below.set_xlabel("Optimizer steps")
    below.set_xlim(edges[0], edges[-1])
    return picture


def _deaths(axes: "Axes", edges: np.ndarray[Any, Any], line: SiteLine) -> None:
    axes.bar(edges[:-1], line.died, np.diff(edges), align="edge", color=STATE_COLOURS[Life.DEAD])
    axes.set_title("Died in a window")
    if line.revived.any():
        colour = STATE_COLOURS[Life.REVIVED]
        axes.bar(edges[:-1], -line.revived, np.diff(edges), align="edge", color=colour)
        axes.set_title("Died (up) and revived (down) in a window")
    axes.axhline(0, color=LINE, linewidth=0.6)
    axes.locator_params(axis="y", nbins=3, integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")


def _raster(axes: "Axes", lives: LifelineChart, edges: np.ndarray[Any, Any]) -> None:
    from matplotlib.colors import ListedColormap

    states, ends = raster(lives.sites, _MOST_ROWS)
    axes.pcolormesh(
        edges,
        np.arange(len(states) + 1),
        states,
        cmap=ListedColormap([STATE_COLOURS[life] for life in Life]),
        vmin=-0.5,
        vmax=len(Life) - 0.5,
        rasterized=True,
    )
    starts = (0, *ends[:-1])
    for end in ends[:-1]:
        axes.axhline(end, color="white", linewidth=1)
    centres = [(start + end) / 2 for start, end in zip(starts, ends, strict=True)]
    name_rows(axes, centres, [site.name for site in lives.sites])
    axes.set_ylim(len(states), 0)


def _shares(axes: "Axes", lives: LifelineChart, edges: np.ndarray[Any, Any]) -> None:
    parts = np.array([site.dead / site.units for site in lives.sites])
    parts[np.array([site.nonfinite for site in lives.sites]) > 0] = np.nan
    colours, norm = heat_colours()
    rows = np.arange(len(parts) + 1)
    axes.pcolormesh(
        edges, rows, np.ma.masked_invalid(parts), cmap=colours, norm=norm, rasterized=True
    )
    name_rows(axes, list(rows[:-1] + 0.5), [site.name for site in lives.sites])
    axes.set_ylim(len(parts), 0)


def _sites(diagnosis: Diagnosis) -> "Figure":
    sites = diagnosis.sites[diagnosis.sites["units"].fillna(0) > 0]
    if sites.empty:
        raise UsageError("there is no site to draw: none was called")
    picture = new_figure(min(8.0, 0.9 + 0.2 * len(sites)))
    axes = picture.subplots()
    units, offset = sites["units"].to_numpy(float), np.zeros(len(sites))
    rows, key = np.arange(len(sites)), []
    for verdict in VERDICTS:
        parts = sites[verdict].to_numpy(float) / units
        if parts.any():
            axes.barh(rows, parts, 0.8, offset, color=VERDICT_COLOURS[verdict])
            key.append((VERDICT_COLOURS[verdict], verdict.replace("_", " ")))
            offset += parts
    if len(sites) <= MOST_NAMED:
        places, _ = unjudged_sites([str(name) for name in sites["site"]], diagnosis.unjudged)
        sampled = samples_differ(diagnosis)
        for row, site in enumerate(sites.to_dict("records")):
            label = f"{site['dead']:,} of {site['units']:,} dead"
            label += f" on {plural(site['samples'], 'sample')}" if sampled else ""
            if str(site["site"]) in places:
                label += f"; {reason_label(places[str(site['site'])].reason)}"
            axes.text(1.01, row, label, va="center", fontsize=7, color=QUIET)
    name_rows(axes, list(rows), [str(name) for name in sites["site"]])
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("Share of units")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    colour_key(axes, key)
    return picture


def _rates(diagnosis: Diagnosis) -> "Figure":
    units = diagnosis.units
    units = units[units["firing_rate"].notna() & (units["verdict"] != "nonfinite")]
    names = list(units["site"].unique())
    if not names:
        raise UsageError("there are no firing rates to draw: none is known")
    worst = set(
        diagnosis.sites.sort_values("dead_fraction", ascending=False)["site"][:_MOST_PANELS]
    )
    panel_names = [name for name in names if name in worst] if len(names) > _MOST_PANELS else names
    columns = min(3, len(panel_names))
    lines = -(-len(panel_names) // columns)
    picture = new_figure(0.6 + 1.25 * lines)
    panels = picture.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    bins = np.linspace(0, 1, 21)
    for axes, name in zip(panels, panel_names, strict=False):
        here = units[units["site"] == name]
        rates, never = here["firing_rate"].to_numpy(float), never_fired(here)
        axes.hist(rates[~never], bins, color=_RATE, rwidth=0.9)
        axes.bar(-0.045, int(never.sum()), 0.05, color=STATE_COLOURS[Life.DEAD])
        axes.set_title(one_line(name), parse_math=False)
        axes.locator_params(axis="y", nbins=3, integer=True)
        axes.set_xticks([-0.045, 0.5, 1], ["never", "50 %", "100 %"])
        axes.set_xlim(-0.09, 1.02)
    for axes in panels[len(panel_names) :]:
        axes.set_visible(False)
    picture.supxlabel("Share of samples in which a unit fires", fontsize=8, color=QUIET)
    picture.supylabel("Units", fontsize=8, color=QUIET)
    if len(panel_names) < len(names):
        title = (
            f"The {len(panel_names)} of {len(names):,} sites with the largest share of dead units"
        )
        picture.suptitle(title, fontsize=8, color=INK)
    return picture


def _states(site: SiteLine) -> np.ndarray[Any, Any]:
    assert site.states is not None
    return site.states

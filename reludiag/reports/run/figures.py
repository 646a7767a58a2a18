"""Figures for papers and slides: matplotlib, of a width that fits a page, readable in grey."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.errors import MissingLibraryError, UsageError
from reludiag.experiments.analysis.effects import Effects
from reludiag.measure.verdicts import VERDICT_TABLE, VERDICTS
from reludiag.recording.ledger import Life
from reludiag.reports.output import write_bytes
from reludiag.reports.run.lifelines import Lifelines, SiteLine, lifelines, raster
from reludiag.reports.wording import many, rate, share

if TYPE_CHECKING:  # an extra: only those who draw need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("lifelines", "sites", "rates", "sweep")
FORMATS = ("svg", "pdf", "png")

# As in the HTML report, light: Okabe and Ito's colours, each of its own lightness.
VERDICT_COLOURS = {verdict.name: verdict.light for verdict in VERDICT_TABLE}
STATE_COLOURS = {
    Life.UNKNOWN: "#ffffff",
    Life.ALIVE: VERDICT_COLOURS["alive"],
    Life.REVIVED: "#3a9bdc",
    Life.BORN_DEAD: "#6f2c91",
    Life.DEAD: VERDICT_COLOURS["dead"],
    Life.NONFINITE: VERDICT_COLOURS["nonfinite"],
}
HEAT_COLOURS = ("#e6edf0", "#fdebd8", "#fdd0a2", "#fb9a4b", "#d9620f", "#8a3500")
_HEAT_FROM = (0.0, 1e-12, 0.05, 0.2, 0.5, 1.0, 1.1)
_STATE_NAMES = {
    Life.ALIVE: "alive",
    Life.REVIVED: "alive again",
    Life.BORN_DEAD: "dead since step 0",
    Life.DEAD: "died",
    Life.NONFINITE: "not finite",
}
_RATE = "#005f99"
_INK, _QUIET, _LINE = "#1b2227", "#5a6670", "#c8d0d6"

_WIDTH = 6.5  # inches: a column of text on a page
_MOST_ROWS = 1_000
_MOST_SITES_BY_UNIT = 24
_MOST_NAMED = 40
_MOST_PANELS = 12
_LONGEST = 28  # characters of a name
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _QUIET,
    "axes.titlecolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "text.usetex": False,
    "pdf.fonttype": 42,  # text stays text, which publishers ask for
    "svg.hashsalt": "reludiag",  # the same data, the same file
    "savefig.dpi": 300,
}


def figure(subject: Diagnosis | Effects, kind: str) -> "Figure":
    """A matplotlib figure: `lifelines`, `sites` or `rates` of a Diagnosis, `sweep` of Effects.

    Raises MissingLibraryError without matplotlib, UsageError where there is nothing to show.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingLibraryError("matplotlib", "plot") from error
    with mpl.rc_context(_STYLE):
        if isinstance(subject, Effects):
            return _sweep(subject)
        kinds = {"lifelines": _lifelines, "sites": _sites, "rates": _rates}
        if kind not in kinds:
            raise UsageError(f"figure {kind!r} was asked for; expected one of {', '.join(kinds)}")
        return kinds[kind](subject)


def write_figure(subject: Diagnosis | Effects, kind: str, path: str | Path) -> None:
    """The figure as a file; its ending says of which format, SVG, PDF or PNG."""
    check_figure_path(path)
    import matplotlib as mpl

    drawn, stream = figure(subject, kind), io.BytesIO()
    ending = Path(path).suffix[1:].lower()
    with mpl.rc_context(_STYLE):
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        drawn.savefig(stream, format=ending, metadata=dates.get(ending))
    write_bytes(stream.getvalue(), path)


def check_figure_path(path: str | Path) -> None:
    """Raise UsageError now rather than after the work, if the format is none that is written."""
    if Path(path).suffix[1:].lower() not in FORMATS:
        raise UsageError(
            f"{path} was given for the figure; expected a file name that ends in "
            + ", ".join(f".{name}" for name in FORMATS)
        )


def _new(height: float) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot: nothing global is touched

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _lifelines(diagnosis: Diagnosis) -> "Figure":
    lives = lifelines(diagnosis)
    if lives is None or not lives.sites:
        raise UsageError(
            "lifelines were asked for, of what has no timeline; expected a recording, or several "
            "checkpoints"
        )
    whole = lives.whole
    by_unit = len(lives.sites) <= _MOST_SITES_BY_UNIT
    by_unit &= all(site.states is not None for site in lives.sites)
    rated = bool(np.isfinite(whole.learning_rate).any())
    tall = 3.2 if by_unit else min(6.0, 0.5 + 0.16 * len(lives.sites))
    drawn = _new(tall + (1.9 if rated else 1.1))
    ratios = ([0.55] if rated else []) + [0.6, tall]
    *above, below = drawn.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
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
        told = f": a row is up to {joined}, in the gravest of their states" if joined > 1 else ""
        below.set_title(many(whole.units, "unit") + told)
        used = {int(state) for site in lives.sites for state in np.unique(_states(site))}
        _key(below, [(STATE_COLOURS[s], n) for s, n in _STATE_NAMES.items() if s in used])
    else:
        _shares(below, lives, edges)
        below.set_title(f"{many(len(lives.sites), 'site')}: share of units dead")
        _heat_key(below, bool(whole.nonfinite.any()))
    below.set_xlabel("Optimizer steps")
    below.set_xlim(edges[0], edges[-1])
    return drawn


def _deaths(axes: "Axes", edges: np.ndarray[Any, Any], line: SiteLine) -> None:
    axes.bar(edges[:-1], line.died, np.diff(edges), align="edge", color=STATE_COLOURS[Life.DEAD])
    axes.set_title("Died in a window")
    if line.revived.any():
        colour = STATE_COLOURS[Life.REVIVED]
        axes.bar(edges[:-1], -line.revived, np.diff(edges), align="edge", color=colour)
        axes.set_title("Died (up) and revived (down) in a window")
    axes.axhline(0, color=_LINE, linewidth=0.6)
    axes.locator_params(axis="y", nbins=3, integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")


def _raster(axes: "Axes", lives: Lifelines, edges: np.ndarray[Any, Any]) -> None:
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
    _name_rows(axes, centres, [site.name for site in lives.sites])
    axes.set_ylim(len(states), 0)


def _shares(axes: "Axes", lives: Lifelines, edges: np.ndarray[Any, Any]) -> None:
    parts = np.array([site.dead / site.units for site in lives.sites])
    parts[np.array([site.nonfinite for site in lives.sites]) > 0] = np.nan
    colours, norm = _heat()
    rows = np.arange(len(parts) + 1)
    axes.pcolormesh(
        edges, rows, np.ma.masked_invalid(parts), cmap=colours, norm=norm, rasterized=True
    )
    _name_rows(axes, list(rows[:-1] + 0.5), [site.name for site in lives.sites])
    axes.set_ylim(len(parts), 0)


def _sites(diagnosis: Diagnosis) -> "Figure":
    sites = diagnosis.sites[diagnosis.sites["units"].fillna(0) > 0]
    if sites.empty:
        raise UsageError("a figure of the sites was asked for, but none was called")
    drawn = _new(min(8.0, 0.9 + 0.2 * len(sites)))
    axes = drawn.subplots()
    units, left = sites["units"].to_numpy(float), np.zeros(len(sites))
    rows, key = np.arange(len(sites)), []
    for verdict in VERDICTS:
        parts = sites[verdict].to_numpy(float) / units
        if parts.any():
            axes.barh(rows, parts, 0.8, left, color=VERDICT_COLOURS[verdict])
            key.append((VERDICT_COLOURS[verdict], verdict.replace("_", " ")))
            left += parts
    if len(sites) <= _MOST_NAMED:
        for row, (dead, total) in enumerate(zip(sites["dead"], sites["units"], strict=True)):
            told = f"{dead:,} of {total:,} dead"
            axes.text(1.01, row, told, va="center", fontsize=7, color=_QUIET)
    _name_rows(axes, list(rows), [str(name) for name in sites["site"]])
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("Share of units")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _key(axes, key)
    return drawn


def _rates(diagnosis: Diagnosis) -> "Figure":
    units = diagnosis.units
    units = units[units["firing_rate"].notna() & (units["verdict"] != "nonfinite")]
    names = list(units["site"].unique())
    if not names:
        raise UsageError("firing rates were asked for, but none is known")
    worst = set(
        diagnosis.sites.sort_values("dead_fraction", ascending=False)["site"][:_MOST_PANELS]
    )
    shown = [name for name in names if name in worst] if len(names) > _MOST_PANELS else names
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    drawn = _new(0.6 + 1.25 * lines)
    panels = drawn.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    bins = np.linspace(0, 1, 21)
    for axes, name in zip(panels, shown, strict=False):
        rates = units.loc[units["site"] == name, "firing_rate"].to_numpy(float)
        never = int((rates == 0).sum())
        axes.hist(rates[rates > 0], bins, color=_RATE, rwidth=0.9)
        axes.bar(-0.045, never, 0.05, color=STATE_COLOURS[Life.DEAD])
        axes.set_title(_name(name), parse_math=False)
        axes.locator_params(axis="y", nbins=3, integer=True)
        axes.set_xticks([-0.045, 0.5, 1], ["never", "50 %", "100 %"])
        axes.set_xlim(-0.09, 1.02)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    drawn.supxlabel("Share of samples in which a unit fires", fontsize=8, color=_QUIET)
    drawn.supylabel("Units", fontsize=8, color=_QUIET)
    if len(shown) < len(names):
        told = f"The {len(shown)} of {len(names):,} sites with the largest share of dead units"
        drawn.suptitle(told, fontsize=8, color=_INK)
    return drawn


def _sweep(effects: Effects) -> "Figure":
    if effects.cells.empty:
        raise UsageError("a figure of a sweep was asked for, of which no run can be placed")
    titles = {"new": "New deaths", "born": "Born dead"}
    maps = {response: effects.heat_map(response) for response in titles}
    size = maps["new"].shape
    drawn = _new(1.2 + 0.24 * size[0])
    colours, norm = _heat()
    panels = drawn.subplots(1, 2, sharey=True)
    for axes, (response, table) in zip(panels, maps.items(), strict=True):
        parts = table.to_numpy(float)
        known = np.ma.masked_invalid(parts)
        bare = colours.with_extremes(bad="white")
        axes.pcolormesh(known, cmap=bare, norm=norm, edgecolors="white", linewidth=1)
        for row, column in np.ndindex(size):
            part = float(parts[row, column])
            axes.text(
                column + 0.5,
                row + 0.5,
                "–" if np.isnan(part) else share(part, 1).removesuffix(" %"),
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if part >= 1 else _INK,
            )
        axes.set_xticks(np.arange(size[1]) + 0.5, [rate(float(lr)) for lr in table.columns])
        axes.set_title(f"{titles[response]}, % of units")
        axes.set_xlabel("Learning rate")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    _name_rows(panels[0], list(np.arange(size[0]) + 0.5), [str(init) for init in maps["new"].index])
    panels[0].set_ylim(size[0], 0)
    return drawn


def _states(site: SiteLine) -> np.ndarray[Any, Any]:
    assert site.states is not None
    return site.states


def _heat() -> Any:
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap(HEAT_COLOURS).with_extremes(bad=STATE_COLOURS[Life.NONFINITE])
    return colours, BoundaryNorm(_HEAT_FROM, len(HEAT_COLOURS))


def _heat_key(axes: "Axes", diverged: bool) -> None:
    names = ("none", "under 5 %", "5–20 %", "20–50 %", "50 % and over", "all")
    entries = list(zip(HEAT_COLOURS, names, strict=True))
    _key(axes, entries + [(STATE_COLOURS[Life.NONFINITE], "some not finite")] * diverged)


def _key(axes: "Axes", entries: Sequence[tuple[str, str]]) -> None:
    """What the colours mean, in a line below."""
    from matplotlib.patches import Patch

    axes.get_figure().legend(  # type: ignore[union-attr]
        handles=[Patch(color=colour, label=name) for colour, name in entries],
        loc="outside lower center",
        ncols=len(entries),
        handlelength=1,
        columnspacing=1.4,
    )


def _name_rows(axes: "Axes", places: Sequence[float], names: Sequence[str]) -> None:
    every = -(-len(names) // _MOST_NAMED)
    axes.set_yticks(places[::every], [_name(name) for name in names[::every]], parse_math=False)
    axes.tick_params(axis="y", length=0)


def _name(name: str) -> str:
    """In one line, and its two ends where it is long; matplotlib must not read formulae in it."""
    name = " ".join(str(name).split())
    return (
        name if len(name) <= _LONGEST else f"{name[: _LONGEST // 4]}…{name[-_LONGEST * 3 // 4 :]}"
    )

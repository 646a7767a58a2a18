"""What all figures share: matplotlib, of a width that fits a page, readable in grey."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reludiag.errors import MissingLibraryError, UsageError
from reludiag.measure.verdicts import VERDICT_TABLE
from reludiag.reports.output import write_bytes

if TYPE_CHECKING:  # an extra: only needed for drawing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")

# As in the HTML report, light: Okabe and Ito's colours, each of its own lightness.
HEAT_COLOURS = ("#e6edf0", "#fdebd8", "#fdd0a2", "#fb9a4b", "#d9620f", "#8a3500")
_HEAT_FROM = (0.0, 1e-12, 0.05, 0.2, 0.5, 1.0, 1.1)
VERDICT_COLOURS = {verdict.name: verdict.light for verdict in VERDICT_TABLE}
INK, QUIET, LINE = "#1b2227", "#5a6670", "#c8d0d6"

MOST_NAMED = 40
"""Rows of a figure that are all named; of more, each n-th."""
_WIDTH = 6.5  # inches: a column of text on a page
_LONGEST = 28  # characters of a name
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "text.usetex": False,
    "pdf.fonttype": 42,  # text stays text, as publishers require
    "svg.hashsalt": "reludiag",  # the same data give the same file
    "savefig.dpi": 300,
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in this style, and leave that of others as it was.

    Raises MissingLibraryError without matplotlib: it is the extra `plot`.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingLibraryError("matplotlib", "plot") from error
    with mpl.rc_context(_STYLE):
        yield


def write_figure(figure: "Figure", path: str | Path) -> None:
    """A figure as a file; its ending says of which format, SVG, PDF or PNG."""
    check_figure_path(path)
    stream, ending = io.BytesIO(), Path(path).suffix[1:].lower()
    with styled():
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(stream, format=ending, metadata=dates.get(ending))
    write_bytes(stream.getvalue(), path)


def check_figure_path(path: str | Path) -> None:
    """Raise UsageError before the work, not after it, for an unknown format."""
    if Path(path).suffix[1:].lower() not in FORMATS:
        raise UsageError(
            f"{path} was given for the figure; expected a file name that ends in "
            + ", ".join(f".{name}" for name in FORMATS)
        )


def new_figure(height: float) -> "Figure":
    """An empty one, `height` inches high; nothing global is touched."""
    from matplotlib.figure import Figure  # not pyplot

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def heat_colours() -> Any:
    """The colours of shares of dead units, and their limits, as matplotlib has them."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap(HEAT_COLOURS).with_extremes(bad=VERDICT_COLOURS["nonfinite"])
    return colours, BoundaryNorm(_HEAT_FROM, len(HEAT_COLOURS))


def heat_key(axes: "Axes", diverged: bool) -> None:
    """What the colours of shares mean."""
    names = ("none", "under 5 %", "5–20 %", "20–50 %", "50 % and over", "all")
    entries = list(zip(HEAT_COLOURS, names, strict=True))
    colour_key(axes, entries + [(VERDICT_COLOURS["nonfinite"], "some not finite")] * diverged)


def colour_key(axes: "Axes", entries: Sequence[tuple[str, str]]) -> None:
    """The legend of the colours, in a line below."""
    from matplotlib.patches import Patch

    axes.get_figure().legend(  # type: ignore[union-attr]
        handles=[Patch(color=colour, label=name) for colour, name in entries],
        loc="outside lower center",
        ncols=len(entries),
        handlelength=1,
        columnspacing=1.4,
    )


def name_rows(axes: "Axes", places: Sequence[float], names: Sequence[str]) -> None:
    """A name at each place of the vertical axis, or at some where they are many."""
    every = -(-len(names) // MOST_NAMED)
    axes.set_yticks(places[::every], [one_line(name) for name in names[::every]], parse_math=False)
    axes.tick_params(axis="y", length=0)


def one_line(name: str) -> str:
    """One line, shortened in the middle if long; matplotlib must not parse formulae in it."""
    name = " ".join(str(name).split())
    return (
        name if len(name) <= _LONGEST else f"{name[: _LONGEST // 4]}…{name[-_LONGEST * 3 // 4 :]}"
    )

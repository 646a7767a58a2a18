"""The figure of a sweep, for papers and slides."""

from typing import TYPE_CHECKING

import numpy as np

from reludiag.errors import UsageError
from reludiag.experiments.analysis.effects import Effects
from reludiag.reports.figure_style import INK, heat_colours, name_rows, new_figure, styled
from reludiag.reports.wording import rate, share

if TYPE_CHECKING:  # an extra: only needed for drawing
    from matplotlib.figure import Figure


def sweep_figure(effects: Effects) -> "Figure":
    """A matplotlib figure: heat maps of deaths by learning rate and initialization.

    Raises MissingLibraryError without matplotlib, UsageError if there is nothing to show.
    """
    with styled():
        return _sweep(effects)


def _sweep(effects: Effects) -> "Figure":
    if effects.cells.empty:
        raise UsageError(
            "there is no run to draw: none has a known learning rate and initialization"
        )
    titles = {"new": "New deaths", "born": "Born dead"}
    maps = {response: effects.heat_map(response) for response in titles}
    size = maps["new"].shape
    picture = new_figure(1.2 + 0.24 * size[0])
    colours, norm = heat_colours()
    panels = picture.subplots(1, 2, sharey=True)
    for axes, (response, table) in zip(panels, maps.items(), strict=True):
        parts = table.to_numpy(float)
        finite = np.ma.masked_invalid(parts)
        bare = colours.with_extremes(bad="white")
        axes.pcolormesh(finite, cmap=bare, norm=norm, edgecolors="white", linewidth=1)
        for row, column in np.ndindex(size):
            part = float(parts[row, column])
            axes.text(
                column + 0.5,
                row + 0.5,
                "–" if np.isnan(part) else share(part, 1).removesuffix(" %"),
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if part >= 1 else INK,
            )
        axes.set_xticks(np.arange(size[1]) + 0.5, [rate(float(lr)) for lr in table.columns])
        axes.set_title(f"{titles[response]}, % of units")
        axes.set_xlabel("Learning rate")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    name_rows(panels[0], list(np.arange(size[0]) + 0.5), [str(init) for init in maps["new"].index])
    panels[0].set_ylim(size[0], 0)
    return picture

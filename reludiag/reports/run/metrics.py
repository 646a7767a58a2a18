"""What the user logged, in the windows of the timeline."""

import bisect
import math
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.reports.run.summary import WINDOWS, LifeWindow, life_windows
from reludiag.reports.wording import plural

MOST_SHOWN = 4
"""Metrics side by side in a table of text; the others are named."""


def metric_names(diagnosis: Diagnosis) -> list[str]:
    """In the order in which they were first logged."""
    return [str(name) for name in diagnosis.metrics["metric"].unique()]


def metric_cells(diagnosis: Diagnosis, windows: Sequence[LifeWindow]) -> dict[str, list[str]]:
    """Of each metric, the mean of its values in each window in four digits; empty where it has
    none.
    """
    ends = [window.last for window in windows]
    table = diagnosis.metrics
    # What was logged after the last snapshot belongs to the last window.
    places = [min(bisect.bisect_left(ends, step), len(ends) - 1) for step in table["step"]]
    cells = {name: [""] * len(ends) for name in metric_names(diagnosis)}
    for _, rows in table.assign(place=places).groupby(["metric", "place"], sort=False):
        counts = rows["count"].to_numpy(float)
        mean = float((rows["mean"].to_numpy(float) * counts).sum() / counts.sum())
        name, at = str(rows["metric"].iloc[0]), int(rows["place"].iloc[0])
        cells[name][at] = "NaN" if math.isnan(mean) else f"{mean:.4g}"
    return cells


def left_out(names: Sequence[str]) -> str:
    """The sentence on metrics that a table has no room for; empty if there are none."""
    more = len(names) - MOST_SHOWN
    return f"{plural(more, 'more metric')}: the page and the JSON have all." if more > 0 else ""


def metric_section(diagnosis: Diagnosis, most: int = WINDOWS) -> Iterator[RenderableType]:
    """The means in the windows of the timeline; nothing where nothing was logged."""
    if diagnosis.metrics.empty or diagnosis.timeline is None or diagnosis.timeline.empty:
        return
    windows = life_windows(diagnosis.timeline, most)
    cells = metric_cells(diagnosis, windows)
    names = list(cells)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True, padding=(0, 1))
    table.add_column("Steps", justify="right", no_wrap=True)
    for name in names[:MOST_SHOWN]:
        table.add_column(Text(name), justify="right", overflow="fold")
    table.add_column("", ratio=1)
    for at, window in enumerate(windows):
        table.add_row(window.steps, *(Text(cells[name][at]) for name in names[:MOST_SHOWN]))
    parts: list[RenderableType] = [
        Padding(Text("What was logged: mean in each window", style="bold"), (1, 0, 1, 1)),
        Padding(table, (0, 0, 0, 1)),
    ]
    if note := left_out(names):
        parts.append(Text(f" {note}", style="dim"))
    yield Group(*parts)

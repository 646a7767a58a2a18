"""The section of the terminal report that says why units died."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reludiag.causes.all_kinds import kind_named
from reludiag.causes.cause import Cause
from reludiag.reports.run.summary import instruction, own_cause
from reludiag.reports.wording import share

_MOST_SITES = 8


def why(causes: Sequence[Cause]) -> Iterator[RenderableType]:
    """The cause of the run with its evidence, and a line for each site; nothing if no unit died."""
    run, sites = own_cause(causes), causes[1:]
    if run is None:
        return
    yield Padding(Text("Why", style="bold"), (1, 0, 0, 1))
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column()
    grid.add_row("Cause", _verdict(run))
    grid.add_row("", Text(run.sentence))
    if run.advice:
        grid.add_row("To do", Text(instruction(run), style="green"))
    if run.confirm:
        grid.add_row("Confirm", Text(run.confirm))
    yield Padding(grid, (0, 0, 0, 1))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True, padding=(0, 1))
    table.add_column("Evidence", ratio=2)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", ratio=3, style="dim")
    for row in run.evidence:
        table.add_row(Text(row.what), Text(_value(row.value)), Text(row.meaning))
    yield Padding(table, (1, 0, 0, 1))
    if any(cause.kind != run.kind for cause in sites):
        yield Padding(_by_site(sites), (1, 0, 0, 1))


def _verdict(cause: Cause) -> Text:
    kind = kind_named(cause.kind)
    text = Text(kind.title, style="bold")
    if kind.claim == "nothing":
        return text
    text.append(f", {share(cause.share, 1)} of the {kind.share_of}", style="not bold")
    if not cause.identifiable and kind.claim != "unknown":
        text.append("; likely, but this run alone cannot prove it", style="not bold yellow")
    return text


def _value(value: float | int | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _by_site(sites: Sequence[Cause]) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(overflow="fold")
    grid.add_column()
    for cause in sites[:_MOST_SITES]:
        kind = kind_named(cause.kind)
        of = "" if kind.claim == "nothing" else f", {share(cause.share, 1)} of its deaths"
        grid.add_row(Text(f"'{cause.site}'", style="dim"), Text(kind.title + of))
    if len(sites) > _MOST_SITES:
        grid.add_row("", Text(f"and {len(sites) - _MOST_SITES:,} more sites", style="dim"))
    return grid

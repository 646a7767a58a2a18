"""The section of a terminal report on the structure of the network."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reludiag.measure.structure import StructureNote
from reludiag.reports.run.summary import instruction


def structure(notes: Sequence[StructureNote]) -> Iterator[RenderableType]:
    """What the lints found, and what to do; nothing if they found nothing."""
    if not notes:
        return
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1, style="bold")
    table.add_column()
    for note in notes:
        table.add_row("-", Text(note.sentence))
        table.add_row("", Text(instruction(note), style="green"))
    yield Padding(Group(Text("Structure", style="bold"), table), (1, 0, 0, 1))

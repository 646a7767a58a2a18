"""What is printed on a terminal, without the commands that names in it may hold."""

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment

from reludiag.printable import printable


class Harmless:
    """A renderable whose text holds no control characters; Rich itself lets an escape through."""

    def __init__(self, *parts: RenderableType) -> None:
        self._parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in self._parts:
            for segment in console.render(part, options):
                text, style, control = segment
                yield segment if control else Segment(printable(text), style)

"""What all terminal reports share: their width, their characters, and text that does nothing."""

import io
from collections.abc import Callable

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment

from reludiag.printable import printable

WIDTH = 80


class SanitizedText:
    """A renderable without control characters, because Rich passes escapes through."""

    def __init__(self, *parts: RenderableType) -> None:
        self._parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in self._parts:
            for segment in console.render(part, options):
                text, style, control = segment
                yield segment if control else Segment(printable(text), style)


def speaks_unicode(console: Console) -> bool:
    """Whether more than ASCII can be shown."""
    return console.encoding.lower().startswith("utf")


def plain_text(print_it: Callable[[Console], None], encoding: str = "utf-8") -> str:
    """What `print_it` prints, as plain text of 80 columns, in characters that `encoding` has."""
    page = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    print_it(Console(file=page, width=WIDTH, color_system=None, legacy_windows=False))
    page.seek(0)
    return "".join(line.rstrip() + "\n" for line in page)

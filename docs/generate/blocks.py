"""Blocks: the code on a page, in its order, and the outputs that follow it.

An output is a `text` block under a comment that says what it is the output of:

    <!-- output of: reludiag report demo/run.reludiag -->
    <!-- output of: reludiag report demo/run.reludiag | from Why to Confirm -->
    <!-- output of: python | from What is wrong -->

The second is an excerpt: of the lines from the first that begins with one word to the next that
begins with the other; the third, of the Python block before it, goes on to its end.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"(?:^(?P<marker><!-- output of: (?P<source>.*?) -->)\n+)?"
    r"^(?P<indent> *)```(?P<language>[\w-]+)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_INCLUDED = re.compile(r'--8<-- "(.*)"')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    source: str | None
    """What it is the output of: a command, or `python`; None for a block that is written."""
    begins: str = ""
    ends: str = ""
    """First words of the first and the last line of an excerpt; empty for those of the whole."""
    span: tuple[int, int] = (0, 0)
    """Where its text stands on the page."""

    @property
    def included(self) -> Path | None:
        """The file that it shows, where it is one."""
        match = _INCLUDED.match(self.text)
        return ROOT / match[1] if match else None

    def commands(self) -> list[list[str]]:
        """Of a block of `sh`."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def excerpt(self, output: str) -> str:
        """What of an output it shows."""
        lines = [line.rstrip() for line in output.strip("\n").splitlines()]
        if self.begins:
            lines = lines[_line_of(self.begins, lines) :]
        if self.ends:
            lines = lines[: _line_of(self.ends, lines) + 1]
        return "\n".join(lines) + "\n"


def written_pages() -> list[Path]:
    """All pages with code, the tutorial first: it makes the files that the others are about."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    tutorial = ROOT / "docs" / "tutorial.md"
    return [tutorial, ROOT / "README.md", *(page for page in pages if page != tutorial)]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        source, _, part = (match["source"] or "").partition(" | from ")
        begins, _, ends = part.partition(" to ")
        yield Block(
            match["language"], match["text"], source or None, begins, ends, match.span("text")
        )


def _line_of(word: str, lines: list[str]) -> int:
    for at, line in enumerate(lines):
        if line.strip(" │╭─").startswith(word):
            return at
    raise LookupError(f"no line begins with {word!r}")

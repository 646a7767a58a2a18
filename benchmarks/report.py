"""RESULTS.md: each benchmark prints its table and writes its own section of the file."""

import datetime
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")
_SECTION = "<!-- {} -->"


class Table:
    """Rows under headings, as Markdown."""

    def __init__(self, *headings: str) -> None:
        self._rows: list[Sequence[str]] = [headings]

    def add(self, *cells: str) -> None:
        """Add a row, and print it at once: some rows take minutes."""
        self._rows.append(cells)
        print("  ".join(f"{cell:16}" for cell in cells), flush=True)

    def __str__(self) -> str:
        return markdown(*self._rows)


def markdown(head: Sequence[str], *rows: Sequence[str]) -> str:
    """A table of these rows under the headings."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def write_section(name: str, method: str, table: Table) -> None:
    """Replace this benchmark's section, with the machine, the versions and the date."""
    begin, end = _SECTION.format(name), _SECTION.format("/" + name)
    summary, _, rest = method.strip().partition("\n\n")
    text = "\n\n".join([begin, f"## {summary}", rest.strip(), str(table), f"{_machine()}", end])
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# What it costs\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    new = pattern.sub(lambda _: text, old) if pattern.search(old) else f"{old}\n{text}\n"
    RESULTS.write_text(new, encoding="utf-8")


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.*)", info.read_text())):
        cpu = found[1]
    return (
        f"{datetime.date.today()}, {cpu}, {torch.get_num_threads()} of "
        f"{torch.get_num_interop_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )

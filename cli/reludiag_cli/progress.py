"""Progress bars on stderr, if it is a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def batch_progress() -> Iterator[Callable[[int, int | None], None]]:
    """A function to call with the number of finished batches, and the total if it is known."""
    with _bar("Scanning") as show:
        yield show


@contextlib.contextmanager
def trial_progress() -> Iterator[Callable[[int, int], None]]:
    """A function to call with the number of finished trials, and the total."""
    with _bar("Running trials", TimeRemainingColumn()) as show:
        yield show


@contextlib.contextmanager
def _bar(title: str, *more: ProgressColumn) -> Iterator[Callable[[int, int | None], None]]:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *more)
    console = Console(stderr=True)
    if not console.is_terminal:  # older releases of rich write an empty line even if disabled
        yield lambda done, total: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

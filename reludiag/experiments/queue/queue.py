"""A queue hands out cells, the runs to be made, and takes their results, each once."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

from reludiag.initialization.schemes import DEFAULT
from reludiag.process import ProcessId

DEATHS_ALLOWED = 2
"""A trial whose process died is run again as often: it may have been killed by mistake, or by
somebody short of memory. The next death is its result."""


@dataclass(frozen=True)
class Cell:
    """A run to be made."""

    trial: int
    seed: int
    lr: float | None = None
    """In place of the learning rate that train proposes; None leaves it."""
    lr_scale: float = 1.0
    """Times the learning rate that train proposes."""
    init: str = DEFAULT


@dataclass(frozen=True)
class Result:
    """What became of a run; the fields are those of `TRIAL_COLUMNS`, and what train returned."""

    status: str
    lr: float = math.nan
    steps: int | None = None
    units: int | None = None
    born: int | None = None
    new: int | None = None
    revived: int | None = None
    dead: int | None = None
    nonfinite: int | None = None
    dead_fraction: float = math.nan
    seconds: float = math.nan
    error: str = ""
    traceback: str = ""
    recording: str = ""
    """File name, in the folder of the sweep's recordings."""
    probe: int | None = None
    notes: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


RESULT_FIELDS = tuple(f.name for f in fields(Result) if f.name != "metrics")


class Queue(Protocol):
    """Hands out cells to workers, each to one, and takes their results, one for each."""

    def claim(self, owner: ProcessId) -> Cell | None:
        """A cell that nobody runs, now the owner's; None where there is none at the moment."""

    def renew(self, owner: ProcessId) -> None:
        """The owner is alive: nobody may take its cell."""

    def finish(self, cell: Cell, owner: ProcessId, result: Result) -> bool:
        """Keep the result; False, and nothing is kept, if the cell is not the owner's any more."""

    def release(self, owner: ProcessId) -> None:
        """Give the owner's cell back, to be run again."""

    def bury(self, owner: ProcessId, how: str) -> None:
        """The owner died: its cell is run again, or is a crash after `DEATHS_ALLOWED` deaths."""

    def tend(self, spared: Collection[ProcessId]) -> None:
        """Give back the cells of owners that are gone, but for those that the caller buries."""

    def unfinished(self) -> int:
        """How many cells have no result yet."""

    def results(self) -> Sequence[tuple[Cell, Result]]:
        """All results so far, in order of cells."""

    def close(self) -> None:
        """Let go of what is open."""


def crash_of(cell: Cell, how: str) -> Result:
    """The result of a cell whose process died once too often."""
    error = f"its process {how}, {DEATHS_ALLOWED + 1} times"
    return Result("crashed", math.nan if cell.lr is None else cell.lr, error=error)

"""A queue hands out cells (runs to make) and takes their results, each once."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from reludiag.initialization.schemes import DEFAULT
from reludiag.process import ProcessId

DEATHS_ALLOWED = 2
"""How often a trial is run again after its process died: it may have been killed by mistake, or for
lack of memory. After that the death is its result.
"""


@dataclass(frozen=True)
class Cell:
    """A run to be made."""

    trial: int
    seed: int
    lr: float | None = None
    """Replaces the learning rate that train proposes; None keeps it."""
    lr_scale: float = 1.0
    """Multiplies the learning rate that train proposes."""
    init: str = DEFAULT
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Replaces settings of the optimizer's groups, and values that train asks for, by name."""
    center_input: bool = False
    steps_scale: float = 1.0
    """Multiplies the number of steps that train proposes."""

    @property
    def changes(self) -> dict[str, Any]:
        """All but the learning rate and the initialization, as JSON."""
        changes = {"center_input": self.center_input, "steps_scale": self.steps_scale}
        return {"settings": dict(self.settings), **changes}


@dataclass(frozen=True)
class Result:
    """The result of a run: the fields of `TRIAL_COLUMNS`, and what train returned."""

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
    undrawn: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


RESULT_FIELDS = tuple(f.name for f in fields(Result) if f.name != "metrics")


class Queue(Protocol):
    """Hands out each cell to one worker, and takes one result per cell."""

    def claim(self, owner: ProcessId) -> Cell | None:
        """Claim a free cell for the owner; None if there is none at the moment."""

    def renew(self, owner: ProcessId) -> None:
        """Renew the owner's lease, so that nobody takes its cell."""

    def finish(self, cell: Cell, owner: ProcessId, result: Result) -> bool:
        """Store the result; returns False and stores nothing if the cell no longer belongs to the
        owner.
        """

    def release(self, owner: ProcessId) -> None:
        """Give the owner's cell back, to be run again."""

    def bury(self, owner: ProcessId, how: str) -> None:
        """Record that the owner died: its cell runs again, or is a crash after `DEATHS_ALLOWED`
        deaths.
        """

    def tend(self, spared: Collection[ProcessId]) -> None:
        """Give back the cells of ended owners, except those that the caller handles."""

    def unfinished(self) -> int:
        """Number of cells without a result."""

    def results(self) -> Sequence[tuple[Cell, Result]]:
        """All results so far, in order of cells."""

    def close(self) -> None:
        """Close open resources."""


def crash_of(cell: Cell, how: str) -> Result:
    """The result of a cell whose process died too often."""
    error = f"its process {how}, {DEATHS_ALLOWED + 1} times"
    return Result("crashed", math.nan if cell.lr is None else cell.lr, error=error)

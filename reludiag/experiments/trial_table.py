"""Trials: the table of runs that experiments are read from, a row per run, and what fills it.

A cell is a run to be made, a result what became of it, and a queue hands out cells and takes
results, each once.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from reludiag.diagnosis.diagnosis import Column, table_of
from reludiag.initialization.schemes import DEFAULT
from reludiag.process import Owner

TRIAL_COLUMNS = (
    Column("trial", "Int64", "number of the run"),
    Column("lr", "float64", "learning rate"),
    Column("init", "str", "initialization scheme"),
    Column("seed", "Int64", "seed of the run"),
    Column("status", "str", "complete, diverged (a unit was not finite) or crashed"),
    Column("steps", "Int64", "optimizer steps taken"),
    Column("units", "Int64", "units that can die"),
    Column("born", "Int64", "of these, dead at step 0"),
    Column("new", "Int64", "of these, alive at step 0 and dead at the end"),
    Column("revived", "Int64", "of these, that came back at some step"),
    Column("dead", "Int64", "of these, dead at the end"),
    Column("nonfinite", "Int64", "of these, not finite at the end: neither dead nor alive"),
    Column("dead_fraction", "float64", "dead / units; empty if diverged"),
    Column("seconds", "float64", "how long the run took"),
    Column("error", "str", "why it crashed; empty if it did not"),
    Column("recording", "str", "path of the run's recording"),
    Column("probe", "Int64", "samples that its units were judged on; empty without a probe"),
    Column("notes", "str", "what its recording warns of, a line each"),
)
METRIC = "metric."
"""After these, a column `metric.NAME` for each number that train returned."""

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

    def claim(self, owner: Owner) -> Cell | None:
        """A cell that nobody runs, now the owner's; None where there is none at the moment."""

    def renew(self, owner: Owner) -> None:
        """The owner is alive: nobody may take its cell."""

    def finish(self, cell: Cell, owner: Owner, result: Result) -> bool:
        """Keep the result; False, and nothing is kept, if the cell is not the owner's any more."""

    def release(self, owner: Owner) -> None:
        """Give the owner's cell back, to be run again."""

    def bury(self, owner: Owner, how: str) -> None:
        """The owner died: its cell is run again, or is a crash after `DEATHS_ALLOWED` deaths."""

    def tend(self, spared: Collection[Owner]) -> None:
        """Give back the cells of owners that are gone, but for those that the caller buries."""

    def unfinished(self) -> int:
        """How many cells have no result yet."""

    def results(self) -> Sequence[tuple[Cell, Result]]:
        """All results so far, in order of cells."""

    def close(self) -> None:
        """Let go of what is open."""


def recording_notes(trials: pd.DataFrame) -> list[str]:
    """What the recordings of these runs warn of: each warning once, with the runs that have it."""
    if "notes" not in trials:
        return []
    each = trials["notes"].dropna().str.split("\n").explode()
    counts = each[each != ""].value_counts(sort=False)
    return [
        str(note) if count == len(trials) else f"{count:,} of {len(trials):,} runs: {note}"
        for note, count in counts.to_dict().items()
    ]


def crash_of(cell: Cell, how: str) -> Result:
    """The result of a cell whose process died once too often."""
    error = f"its process {how}, {DEATHS_ALLOWED + 1} times"
    return Result("crashed", math.nan if cell.lr is None else cell.lr, error=error)


def trials_table(results: Sequence[tuple[Cell, Result]], recordings: str = "") -> pd.DataFrame:
    """The table of trials: `TRIAL_COLUMNS`, then the metrics.

    `recordings` is the folder of those made on this machine; of another's the file name is told.
    """
    rows: list[dict[str, Any]] = []
    for cell, result in results:
        row = {name: getattr(result, name) for name in RESULT_FIELDS if name != "traceback"}
        if result.recording and (Path(recordings) / result.recording).exists():
            row["recording"] = str(Path(recordings) / result.recording)
        if result.status == "diverged":  # units without a number prove no death, nor a life
            row["dead_fraction"] = math.nan
        rows.append({"trial": cell.trial, "init": cell.init, "seed": cell.seed, **row})
    table = table_of(TRIAL_COLUMNS, rows)
    names = dict.fromkeys(name for _, result in results for name in result.metrics)
    for name in names:
        values = [result.metrics.get(name, math.nan) for _, result in results]
        table[METRIC + name] = pd.Series(values, index=table.index, dtype="float64")
    return table

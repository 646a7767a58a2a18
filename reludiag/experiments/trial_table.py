"""The trial table: a row per run; all analyses of several runs use it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reludiag.experiments.queue.queue import RESULT_FIELDS, Cell, Result
from reludiag.tables import Column, table_of

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
    Column("revived", "Int64", "of these, units that came back at some step"),
    Column("dead", "Int64", "of these, dead at the end"),
    Column("nonfinite", "Int64", "of these, not finite at the end: neither dead nor alive"),
    Column("dead_fraction", "float64", "dead / units; empty if diverged"),
    Column("seconds", "float64", "how long the run took"),
    Column("error", "str", "why it crashed; empty if it did not"),
    Column("recording", "str", "path of the run's recording"),
    Column(
        "probe",
        "Int64",
        "samples of the probe that its units were judged on; empty without a probe",
    ),
    Column("notes", "str", "warnings of its recording, one per line"),
    Column(
        "undrawn",
        "Int64",
        "of the dead, units whose weights the scheme left as they were; empty if it is default",
    ),
)
METRIC = "metric."
"""A column `metric.NAME` follows for each number that train returned."""


def recording_notes(trials: pd.DataFrame) -> list[str]:
    """The warnings of these runs' recordings: each once, with the number of runs that have it."""
    if "notes" not in trials:
        return []
    each = trials["notes"].dropna().str.split("\n").explode()
    counts = each[each != ""].value_counts(sort=False)
    return [
        str(note) if count == len(trials) else f"{count:,} of {len(trials):,} runs: {note}"
        for note, count in counts.to_dict().items()
    ]


def trials_table(results: Sequence[tuple[Cell, Result]], recordings: str = "") -> pd.DataFrame:
    """The table of trials: `TRIAL_COLUMNS`, then the metrics.

    `recordings` is the folder of the recordings made on this machine; for others only the file name
    is given.
    """
    rows: list[dict[str, Any]] = []
    for cell, result in results:
        row = {name: getattr(result, name) for name in RESULT_FIELDS if name != "traceback"}
        if result.recording and (Path(recordings) / result.recording).exists():
            row["recording"] = str(Path(recordings) / result.recording)
        if result.status == "diverged":  # units without a finite value prove neither death nor life
            row["dead_fraction"] = math.nan
        rows.append({"trial": cell.trial, "init": cell.init, "seed": cell.seed, **row})
    table = table_of(TRIAL_COLUMNS, rows)
    names = dict.fromkeys(name for _, result in results for name in result.metrics)
    for name in names:
        values = [result.metrics.get(name, math.nan) for _, result in results]
        table[METRIC + name] = pd.Series(values, index=table.index, dtype="float64")
    return table

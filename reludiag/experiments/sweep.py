"""Sweep: runs one training over a grid of learning rates and initializations."""

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reludiag.errors import UsageError
from reludiag.experiments.queue.optuna_queue import OptunaQueue
from reludiag.experiments.queue.pool import Check, Progress, check_not_a_worker, run_all
from reludiag.experiments.queue.queue import Cell, Queue
from reludiag.experiments.queue.sqlite_queue import SqliteQueue
from reludiag.experiments.queue.worker import OpenQueue, Train
from reludiag.experiments.trial_table import trials_table
from reludiag.initialization.schemes import DEFAULT, scheme_named
from reludiag.loading.specs import function_spec, load_attribute

TRIALS_FILE = "trials.sqlite"
RECORDINGS = "recordings"


def sweep(
    train: Train | str,
    *,
    lr: Sequence[float] | None = None,
    init: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 3,
    path: str | Path = "sweep",
    workers: int | None = None,
    shard: str | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Run `train(trial)` for each learning rate, initialization and seed; return the table of
    trials.

    `train` is a function at the top level of a file, or its spec, "path/file.py:train"; worker
    processes import it. Without `lr` or `init` a run uses what train proposes. `seeds` is the
    number of seeds, from 0, or a list of seeds.

    The folder `path` gets one SQLite file with all trials and a recording for each. Called again
    with the same settings, an unfinished sweep continues. A trial that raises, diverges, or whose
    process dies is a row like any other.

    On several machines: `shard` "1/3" runs the first of three parts of the grid and returns its
    table. Or `storage`, the URL of a database or the path of a journal file for Optuna, shares one
    queue between all machines that use it with a `path` of the same name.

    Returns `TRIAL_COLUMNS`, then a column `metric.NAME` for each number that train returned.
    Raises UsageError for invalid settings or settings other than those of the sweep that is
    continued, ModelError or UserCodeError if train cannot be imported.
    """
    check_not_a_worker("sweep")
    rates, schemes, seed_numbers = _rates(lr), _schemes(init), seed_list(seeds)
    grid = [(seed, rate, scheme) for seed in seed_numbers for scheme in schemes for rate in rates]
    cells = [
        Cell(number, seed, rate, init=scheme) for number, (seed, rate, scheme) in enumerate(grid)
    ]
    settings = {"lr": rates, "init": schemes, "seeds": seed_numbers}
    return run_cells(
        train,
        cells if shard is None else _part(cells, shard),
        {**settings, "shard": shard},
        Path(path),
        workers,
        storage,
        progress,
    )


def run_cells(
    train: Train | str,
    cells: Sequence[Cell],
    settings: dict[str, Any],
    path: Path,
    workers: int | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
    check: Check | None = None,
) -> pd.DataFrame:
    """Run the cells that have no result yet; return the table of trials."""
    if workers is not None and workers < 1:
        raise UsageError(f"workers={workers} was given; expected at least 1 process")
    spec = train if isinstance(train, str) else function_spec(train)
    if not callable(load_attribute(spec)):  # here and now, rather than in every worker
        raise UsageError(f"{spec} is not a function; expected one that takes a trial")
    settings = {"train": _label(spec), **settings}
    path = path.absolute()
    try:
        (path / RECORDINGS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path} cannot hold the trials: {error.strerror}; expected a folder, or the name of "
            "a new one"
        ) from error
    queue: Queue
    open_queue: OpenQueue
    if storage is None:
        queue = SqliteQueue.prepare(path / TRIALS_FILE, settings, cells)
        open_queue = functools.partial(SqliteQueue, path / TRIALS_FILE)
    else:
        name = f"reludiag {path.name}"
        queue = OptunaQueue.prepare(storage, name, settings, cells)
        open_queue = functools.partial(OptunaQueue, storage, name)
    try:
        run_all(open_queue, spec, path / RECORDINGS, len(cells), workers, progress, check)
        return trials_table(queue.results(), str(path / RECORDINGS))
    finally:
        queue.close()


def seed_list(seeds: int | Sequence[int]) -> list[int]:
    """The seeds, from their number or a list; raises UsageError for none or duplicates."""
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise UsageError(
            f"seeds={seeds} was given; expected a number of seeds (at least 1), or different "
            "seeds (at least 0)"
        )
    return numbers


def _rates(lr: Sequence[float] | None) -> list[float | None]:
    if lr is None:
        return [None]
    rates = [float(rate) for rate in lr]
    if not rates or not all(0 < rate < math.inf for rate in rates) or len({*rates}) < len(rates):
        raise UsageError(
            f"lr={list(lr)} was given; expected different positive learning rates, such as "
            "0.001, 0.01, 0.1"
        )
    return list[float | None](rates)


def _schemes(init: Sequence[str] | None) -> list[str]:
    if init is None:
        return [DEFAULT]
    schemes = [init] if isinstance(init, str) else list(init)
    same = [scheme_named(name) for name in schemes]
    if not schemes or len(set(same)) < len(same):
        raise UsageError(
            f"init={schemes} was given; expected different initialization schemes, such as "
            "default, kaiming"
        )
    return schemes


def _part(cells: Sequence[Cell], shard: str) -> list[Cell]:
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    part, parts = (int(group) for group in match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UsageError(
            f"shard {shard!r} was given; expected i/n with i from 1 to n, such as 1/3 for the "
            "first of three parts"
        )
    part_cells = [cell for cell in cells if cell.trial % parts == part - 1]
    if not part_cells:
        raise UsageError(
            f"shard {shard} is empty: the grid has only {len(cells)} runs; expected at most as "
            "many parts"
        )
    return part_cells


def _label(spec: str) -> str:
    """A spec that is the same on every machine: a file by its name."""
    source, _, attribute = spec.rpartition(":")
    return f"{Path(source).name if source.endswith('.py') else source}:{attribute}"

"""Worker: the process that runs trials one after another, and turns each into a result."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from reludiag.errors import ReludiagError, UsageError, UserCodeError
from reludiag.experiments.compare import trial_row
from reludiag.experiments.queue.queue import Cell, Queue, Result
from reludiag.experiments.trial import Trial
from reludiag.loading.specs import load_attribute, user_code_error
from reludiag.process import LEASE, RENEWALS, ProcessId, this_process
from reludiag.recording import read_recording

IDLE = 0.1
"""Seconds between checks of a queue that has no free cell at the moment."""
READY, FAILED = "ready", "failed"
"""Messages of a worker to its parent: that it can run train, or that no worker can."""

Train = Callable[[Trial], Any]
OpenQueue = Callable[[], Queue]


def work(open_queue: OpenQueue, spec: str, recordings: Path, parent: Connection) -> None:
    """Run cells until none is left, or until the parent process has ended.

    A trial that raises is a result. An error of reludiag (train does not use its trial, a model
    without rectifiers) is not a result, because every trial would end this way: it is sent to the
    parent, and the cell is given back.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    os.dup2(2, 1)  # stdout belongs to the parent's result
    torch.set_num_threads(1)
    queue, owner, spawner = open_queue(), this_process(), multiprocessing.parent_process()
    try:
        train: Train = load_attribute(spec)
        parent.send((READY, owner))
        with _lease(open_queue, owner):
            while queue.unfinished() > 0 and (spawner is None or spawner.is_alive()):
                cell = queue.claim(owner)
                if cell is None:
                    time.sleep(IDLE)
                    continue
                queue.finish(cell, owner, run_cell(train, cell, recordings))
    except ReludiagError as error:
        queue.release(owner)
        traceback_text = error.user_traceback if isinstance(error, UserCodeError) else ""
        parent.send((FAILED, type(error).__name__, str(error), traceback_text))
    finally:
        queue.close()


def run_cell(train: Train, cell: Cell, recordings: Path) -> Result:
    """One run, with the global random number streams seeded.

    Raises ReludiagError if train does not use its trial, or returns something else than numbers.
    """
    path = recordings / f"{cell.trial:04d}.reludiag"
    trial = Trial(
        cell.seed,
        lr=cell.lr,
        lr_scale=cell.lr_scale,
        init=cell.init,
        settings=cell.settings,
        center_input=cell.center_input,
        steps_scale=cell.steps_scale,
        recording=path,
    )
    trial.seed_everything()
    raised: BaseException | None = None
    metrics: dict[str, float] = {}
    start = time.perf_counter()
    try:
        metrics = _numbers(train(trial))
    except ReludiagError:
        raise
    except (Exception, SystemExit) as error:
        raised = error
    seconds = time.perf_counter() - start
    if raised is None:
        trial.check_used()
    row = _row(path) if trial.recorded else {}
    rate = trial.learning_rate
    row["lr"] = rate if rate is not None else row.get("lr", math.nan)
    if raised is not None:
        row["status"] = "diverged" if row.get("nonfinite") else "crashed"
        row["error"] = _in_one_line(raised)
    return Result(
        **row,
        seconds=seconds,
        traceback="" if raised is None else user_code_error("train", raised).user_traceback,
        recording=path.name if trial.recorded else "",
        metrics=metrics,
    )


def _row(path: Path) -> dict[str, Any]:
    row = trial_row(read_recording(path))
    return {name: value for name, value in row.items() if name not in ("init", "seed")}


def _numbers(returned: Any) -> dict[str, float]:
    """What train returned, as numbers with names."""
    named = returned if isinstance(returned, Mapping) else {"result": returned}
    if returned is None:
        return {}
    numbers = {}
    for name, value in named.items():
        try:
            if isinstance(value, str):
                raise TypeError
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # as tensors of several numbers do
            raise UsageError(
                f"train(trial) returned {type(value).__name__} {value!r:.40} as {name}; expected "
                "a number, a dict of numbers, or nothing"
            ) from error
    return numbers


def _in_one_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


@contextlib.contextmanager
def _lease(open_queue: OpenQueue, owner: ProcessId) -> Iterator[None]:
    """Renew the owner's lease from a thread with its own connection to the queue."""
    ended = threading.Event()

    def renew() -> None:
        queue = open_queue()
        while not ended.wait(LEASE / RENEWALS):
            queue.renew(owner)
        queue.close()

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

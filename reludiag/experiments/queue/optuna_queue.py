"""A queue shared by several machines: a study in an Optuna storage.

Each cell is a trial of the study, enqueued by its number. A process claims a cell by changing its
trial from WAITING to RUNNING; the storage lets only one process succeed. Two machines that start
together may enqueue a cell twice, which Optuna cannot prevent. So only the trial with the lowest
number counts for a cell; others are failed when claimed. A FAILED trial is not a result: its cell
is enqueued again. A result is written before its trial is finished, and a finished trial is never
changed, so each cell gets exactly one result.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reludiag.errors import UsageError
from reludiag.experiments.queue.queue import DEATHS_ALLOWED, Cell, Result, crash_of
from reludiag.experiments.queue.sqlite_queue import check_settings
from reludiag.process import LEASE, ProcessId, is_gone

if TYPE_CHECKING:  # an extra, imported when a storage is given
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

_ATTEMPTS = 10  # to open a storage: machines that create its tables at the same moment fail
_PAUSE = 0.5  # seconds between two of them

Opened = TypeVar("Opened")


class OptunaQueue:
    """A queue in an Optuna storage: the URL of a database, or the path of a journal file."""

    def __init__(self, storage: str, name: str) -> None:
        optuna = import_optuna()
        self._optuna = optuna
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # each process opens the study
        try:
            self._storage = _insist(storage, lambda: _open(storage))
            self._study: Study = _insist(
                storage,
                lambda: optuna.create_study(
                    storage=self._storage, study_name=name, load_if_exists=True
                ),
            )
        finally:
            optuna.logging.set_verbosity(verbosity)
        self._ownerless: dict[int, float] = {}

    @classmethod
    def prepare(
        cls, storage: str, name: str, settings: Mapping[str, Any], cells: Sequence[Cell]
    ) -> "OptunaQueue":
        """Open the study of this name; create and fill it if it does not exist.

        Raises UsageError if it was made with other settings, or Optuna is missing.
        """
        queue = cls(storage, name)
        attributes = queue._study.user_attrs
        if "settings" in attributes:
            check_settings(attributes["settings"], settings, f"the study {name} in {storage}")
        else:
            queue._study.set_user_attr("cells", [asdict(cell) for cell in cells])
            queue._study.set_user_attr("settings", json.loads(json.dumps(settings)))
        queue._fill_up()
        return queue

    def claim(self, owner: ProcessId) -> Cell | None:
        """As in `Queue`."""
        states = self._optuna.trial.TrialState
        for waiting in self._trials(states.WAITING):
            if not self._exchange(waiting, states.RUNNING):
                continue
            # Another machine's `tend` fails a second trial of a cell as soon as the cell is done.
            with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):
                self._set(waiting, "owner", asdict(owner))
                self._set(waiting, "lease", time.time() + LEASE)
                first = self._first_of(waiting.user_attrs["cell"])
                if first is None or first.number == waiting.number:
                    cell = self._cells()[waiting.user_attrs["cell"]]
                    self._show(waiting, cell)
                    return cell
                self._fail(waiting, f"trial {first.number} is of the same cell", died=False)
        return None

    def renew(self, owner: ProcessId) -> None:
        """As in `Queue`."""
        for trial in self._owned(owner):
            self._set(trial, "lease", time.time() + LEASE)

    def finish(self, cell: Cell, owner: ProcessId, result: Result) -> bool:
        """As in `Queue`."""
        owned = [t for t in self._owned(owner) if t.user_attrs["cell"] == cell.trial]
        return bool(owned) and self._finish(owned[0], result)

    def release(self, owner: ProcessId) -> None:
        """As in `Queue`."""
        for trial in self._owned(owner):
            self._fail(trial, "given back", died=False)
        self._fill_up()

    def bury(self, owner: ProcessId, how: str) -> None:
        """As in `Queue`."""
        for trial in self._owned(owner):
            cell = self._cells()[trial.user_attrs["cell"]]
            failed = self._trials(self._optuna.trial.TrialState.FAIL)
            deaths = sum(
                1 for t in failed if t.user_attrs["cell"] == cell.trial and t.user_attrs.get("died")
            )
            if deaths >= DEATHS_ALLOWED:
                self._finish(trial, crash_of(cell, how))
            else:
                self._fail(trial, f"its process {how}", died=True)
        self._fill_up()

    def tend(self, spared: Collection[ProcessId]) -> None:
        """As in `Queue`; enqueues cells that are neither waiting, running nor done, and fails the
        second trials of cells that are done.
        """
        states, done = self._optuna.trial.TrialState, self._done()
        for trial in self._trials(states.RUNNING, states.WAITING):
            first = done.get(trial.user_attrs["cell"])
            if first is not None:
                self._fail(trial, f"trial {first.number} is of the same cell", died=False)
        for trial in self._trials(states.RUNNING):
            owner, lease = trial.user_attrs.get("owner"), trial.user_attrs.get("lease")
            if owner is None or lease is None:  # its process has not written its name yet, or died
                owner_lease = self._ownerless.setdefault(trial.number, time.monotonic())
                has_died = time.monotonic() - owner_lease > LEASE
            else:
                has_died = ProcessId(**owner) not in spared and is_gone(ProcessId(**owner), lease)
            if has_died:
                self._fail(trial, "its process has ended", died=False)
        self._fill_up()

    def unfinished(self) -> int:
        """As in `Queue`."""
        return len(self._cells()) - len(self._done())

    def results(self) -> list[tuple[Cell, Result]]:
        """As in `Queue`."""
        cells, done = self._cells(), self._done()
        return [
            (cells[number], _result(done[number].user_attrs["result"])) for number in sorted(done)
        ]

    def close(self) -> None:
        """As in `Queue`."""
        self._storage.remove_session()

    def _cells(self) -> dict[int, Cell]:
        return {cell["trial"]: Cell(**cell) for cell in self._study.user_attrs["cells"]}

    def _trials(self, *states: Any) -> "list[FrozenTrial]":
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _done(self) -> "dict[int, FrozenTrial]":
        """Cell -> the trial that has its result."""
        states = self._optuna.trial.TrialState
        finished = self._trials(states.COMPLETE, states.PRUNED)
        return {t.user_attrs["cell"]: t for t in reversed(finished)}

    def _owned(self, owner: ProcessId) -> "list[FrozenTrial]":
        running = self._trials(self._optuna.trial.TrialState.RUNNING)
        return [t for t in running if t.user_attrs.get("owner") == asdict(owner)]

    def _first_of(self, cell: int) -> "FrozenTrial | None":
        """The trial that counts among a cell's trials that have not failed."""
        failed = self._optuna.trial.TrialState.FAIL
        of_cell = [t for t in self._trials() if t.user_attrs["cell"] == cell and t.state != failed]
        return min(of_cell, key=lambda t: t.number, default=None)

    def _fill_up(self) -> None:
        """Enqueue each cell that has no trial, or only failed ones."""
        failed = self._optuna.trial.TrialState.FAIL
        present = {t.user_attrs["cell"] for t in self._trials() if t.state != failed}
        for number, cell in self._cells().items():
            if number not in present:
                self._study.enqueue_trial(_parameters(cell), user_attrs={"cell": number})

    def _show(self, trial: "FrozenTrial", cell: Cell) -> None:
        """Show the settings of the run in Optuna's tables and dashboard."""
        running = self._optuna.trial.Trial(self._study, trial._trial_id)
        for name in _parameters(cell):
            choices = sorted({_parameters(c)[name] for c in self._cells().values()}, key=str)
            running.suggest_categorical(name, choices)  # the value that was enqueued

    def _finish(self, trial: "FrozenTrial", result: Result) -> bool:
        states = self._optuna.trial.TrialState
        try:
            self._set(trial, "result", _as_json(result))
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False
        if result.status == "complete" and math.isfinite(result.dead_fraction):
            return self._exchange(trial, states.COMPLETE, [result.dead_fraction])
        return self._exchange(trial, states.PRUNED)  # finished, without a value to compare

    def _fail(self, trial: "FrozenTrial", why: str, died: bool) -> None:
        # Another parent may have been faster, or the cell is done by now.
        with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            self._set(trial, "why", why)
            self._set(trial, "died", died)
            self._exchange(trial, self._optuna.trial.TrialState.FAIL)

    def _exchange(
        self, trial: "FrozenTrial", state: Any, values: Sequence[float] | None = None
    ) -> bool:
        try:
            return self._storage.set_trial_state_values(trial._trial_id, state, values)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _set(self, trial: "FrozenTrial", key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, key, value)


def import_optuna() -> Any:
    """The library; raises UsageError with the name of the extra if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "a storage needs Optuna, which is not installed: "
            'pip install "reludiag[sweep]". On one machine you need no storage'
        ) from error
    return optuna


def _open(storage: str) -> "BaseStorage":
    optuna = import_optuna()
    if "://" in storage:
        database: BaseStorage = optuna.storages.RDBStorage(storage)
        return database
    if not Path(storage).absolute().parent.is_dir():
        raise UsageError(
            f"--storage {storage} was given; expected the URL of a database, such as "
            "postgresql://user@host/name, or the path of a journal file in an existing folder"
        )
    backend = optuna.storages.journal.JournalFileBackend(storage)
    journal: BaseStorage = optuna.storages.JournalStorage(backend)
    return journal


def _insist(storage: str, open_it: Callable[[], Opened]) -> Opened:
    """Open the storage, with retries: only one process at a time can create a database."""
    from sqlalchemy.exc import DBAPIError  # what Optuna's databases raise

    for attempt in range(_ATTEMPTS):
        try:
            return open_it()
        except UsageError:
            raise
        except Exception as error:  # of whichever database driver
            if attempt == _ATTEMPTS - 1 or not isinstance(error, DBAPIError):
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UsageError(f"the storage {storage} cannot be opened: {reason}") from error
            time.sleep(_PAUSE)
    raise AssertionError


def _parameters(cell: Cell) -> dict[str, Any]:
    rate = f"x{cell.lr_scale:g}" if cell.lr is None else cell.lr
    return {"lr": rate, "init": cell.init, "seed": cell.seed}


def _as_json(result: Result) -> dict[str, Any]:
    """NaN as null, because not every database stores NaN."""
    content = asdict(result)
    content["metrics"] = {name: _none_if_nan(value) for name, value in result.metrics.items()}
    return {name: _none_if_nan(value) for name, value in content.items()}


def _none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _result(content: Mapping[str, Any]) -> Result:
    values = dict(content)
    for name in ("lr", "dead_fraction", "seconds"):
        values[name] = math.nan if values[name] is None else values[name]
    metrics = {k: math.nan if v is None else v for k, v in values.pop("metrics").items()}
    return Result(**values, metrics=metrics)

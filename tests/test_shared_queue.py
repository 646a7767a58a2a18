"""The shared queue: two machines, played by two processes with folders of their own."""

import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import psutil
import pytest

import reludiag
from reludiag.experiments.queue.queue import DEATHS_ALLOWED, Cell, Result
from reludiag.process import ProcessId, this_process
from tests.forked import start_command

optuna = pytest.importorskip("optuna")
from reludiag.experiments.queue.optuna_queue import OptunaQueue  # noqa: E402

SETTINGS = {"train": "tiny.py:train", "lr": [0.1, 0.01]}
CELLS = [Cell(n, seed=n // 2, lr=(0.1, 0.01)[n % 2]) for n in range(4)]
ME = this_process()
DONE = Result("complete", 0.1, 20, 32, 1, 2, 0, 3, 0, 0.1, 1.5, metrics={"loss": float("nan")})

# With HELD_IN = 3 a process gets through the third of its trials, but not out of it.
TRAIN = """
import itertools, time
import torch
from torch import nn

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
TRIALS = itertools.count(1)

def train(trial):
    time.sleep(0.05)
    model = trial.init(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr(0.1))
    with trial.monitor(model, optimizer, probe=X):
        for _ in range(10):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
        while next(TRIALS) == HELD_IN:
            time.sleep(3600)
"""


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "journal": str(tmp_path / "queue.journal"),
        "sqlite": f"sqlite:///{tmp_path / 'queue.sqlite'}",
    }[request.param]


def prepared(storage: str) -> OptunaQueue:
    return OptunaQueue.prepare(storage, "reludiag sweep", SETTINGS, CELLS)


def states(storage: str) -> Counter[str]:
    study = prepared(storage)._study
    return Counter(trial.state.name for trial in study.get_trials(deepcopy=False))


def test_cells_are_claimed_once_and_come_back_with_their_results(storage: str) -> None:
    queue = prepared(storage)
    claimed = [queue.claim(ME) for _ in range(5)]
    assert claimed == [*CELLS, None]
    assert queue.finish(CELLS[2], ME, DONE)
    assert not queue.finish(CELLS[2], ME, DONE)
    assert queue.finish(CELLS[1], ME, Result("crashed", error="no"))
    assert queue.unfinished() == 2
    (first, crash), (second, done) = prepared(storage).results()
    assert (first, second) == (CELLS[1], CELLS[2])
    assert (crash.error, done.dead, done.dead_fraction) == ("no", 3, 0.1)
    assert done.metrics["loss"] != done.metrics["loss"]
    trial = next(t for t in queue._study.trials if t.user_attrs["cell"] == 2)
    assert trial.params == {"lr": 0.1, "init": "default", "seed": 1}
    assert trial.value == 0.1


def test_cells_that_two_enqueued_at_once_are_run_once(storage: str) -> None:
    queue = prepared(storage)
    for cell in CELLS:
        queue._study.enqueue_trial({"lr": cell.lr}, user_attrs={"cell": cell.trial})
    claimed = [queue.claim(ME) for _ in range(8)]
    assert [cell for cell in claimed if cell is not None] == CELLS
    queue.tend([ME])
    assert states(storage) == {"RUNNING": 4, "FAIL": 4}


def test_the_cell_of_a_process_that_is_gone_is_enqueued_again(storage: str) -> None:
    queue, gone = prepared(storage), ProcessId(ME.host, ME.pid, ME.started - 100)
    assert queue.claim(gone) == CELLS[0]
    queue.tend([])
    rest = [queue.claim(ME) for _ in range(4)]
    assert sorted(cell.trial for cell in rest) == [0, 1, 2, 3]
    assert not queue.finish(CELLS[0], gone, DONE)
    assert queue.finish(CELLS[0], ME, DONE)


def test_a_cell_whose_process_dies_is_a_crash_in_the_end(storage: str) -> None:
    queue = prepared(storage)
    deaths = 0
    while not queue.results():
        cell = queue.claim(ME)
        if cell == CELLS[1]:
            queue.bury(ME, "was killed by SIGKILL")
            deaths += 1
        elif cell is not None:
            queue.release(ME)
    assert deaths == DEATHS_ALLOWED + 1
    ((cell, result),) = queue.results()
    assert (cell, result.status) == (CELLS[1], "crashed")


def test_a_finished_queue_leaves_no_second_trial_of_a_cell_open(storage: str) -> None:
    queue = prepared(storage)
    for cell in CELLS:
        queue._study.enqueue_trial({"lr": cell.lr}, user_attrs={"cell": cell.trial})
    for cell in CELLS:
        assert queue.claim(ME) == cell
        assert queue.finish(cell, ME, DONE)
    queue._study.ask()  # a worker that was stopped while it claimed
    assert states(storage) == {"COMPLETE": 4, "RUNNING": 1, "WAITING": 3}
    queue.tend([])
    assert states(storage) == {"COMPLETE": 4, "FAIL": 4}


def test_a_claim_of_a_second_trial_that_another_machine_fails_takes_the_next(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = prepared(storage)
    queue._study.enqueue_trial({"lr": 0.1}, user_attrs={"cell": 0})
    assert queue.claim(ME) == CELLS[0]
    assert queue.finish(CELLS[0], ME, DONE)
    exchange = queue._exchange

    def fails_behind_its_back(trial: optuna.trial.FrozenTrial, state: object) -> bool:
        exchanged = exchange(trial, state)
        if trial.number == 4:
            prepared(storage).tend([])
        return exchanged

    for cell in CELLS[1:]:
        assert queue.claim(ME) == cell
    monkeypatch.setattr(queue, "_exchange", fails_behind_its_back)
    assert queue.claim(ME) is None
    assert states(storage) == {"COMPLETE": 1, "RUNNING": 3, "FAIL": 1}


def test_a_study_of_other_settings_is_not_gone_on_with(storage: str) -> None:
    prepared(storage)
    with pytest.raises(
        reludiag.UsageError, match=r"started with lr 0\.1, 0\.01; now 0\.5 was given"
    ):
        OptunaQueue.prepare(storage, "reludiag sweep", {**SETTINGS, "lr": [0.5]}, CELLS)


@pytest.mark.parametrize("storage", ["nowhere/queue.journal", "postgresql+nothing://host/name"])
def test_a_storage_that_cannot_be_opened_is_told(storage: str) -> None:
    with pytest.raises(reludiag.UsageError, match=r"no|cannot be opened|expected the URL"):
        prepared(storage)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(reludiag.UsageError, match=r'pip install "reludiag\[sweep\]"'):
        prepared(storage)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["both to the end", "one of them killed"])
def test_two_machines_share_a_grid_and_each_cell_has_one_result(
    tmp_path: Path, storage: str, killed: bool
) -> None:
    def machine(name: str, held_in: int = 0) -> BaseProcess:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tiny.py").write_text(f"HELD_IN = {held_in}\n{TRAIN}")
        return start_command(
            ["sweep", "tiny.py:train", "--lr", "0.1,1,10", "--init", "default,kaiming",
             "--seeds", "2", "--workers", "1", "--out", "grid", "--storage", storage,
             "--csv", f"{tmp_path / name}.csv"],
            folder, tmp_path / f"{name}.txt",
        )  # fmt: skip

    machines = {"one": machine("one", held_in=3 if killed else 0)}
    if killed:
        one = machines.pop("one")
        recordings = tmp_path / "one" / "grid" / "recordings"
        while one.is_alive() and len(list(recordings.glob("*.reludiag"))) < 3:
            time.sleep(0.02)
        (worker,) = psutil.Process(one.pid).children(recursive=True)
        one.kill()
        worker.kill()
        one.join()
        assert OptunaQueue(storage, "reludiag grid").unfinished() == 10
    machines["two"] = machine("two")
    for name, started in machines.items():
        started.join()
        assert started.exitcode == 0, (tmp_path / f"{name}.txt").read_text()
    tables = [pd.read_csv(tmp_path / f"{name}.csv") for name in machines]
    for table in tables:
        assert list(table["trial"]) == list(range(12))
        pd.testing.assert_frame_equal(
            table.drop(columns="recording"), tables[0].drop(columns="recording")
        )
    study = optuna.load_study(
        study_name="reludiag grid",
        storage=OptunaQueue(storage, "reludiag grid")._storage,
    )
    finished = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert sorted(t.user_attrs["cell"] for t in finished) == list(range(12))
    assert not [t for t in study.trials if t.state.name in ("RUNNING", "WAITING")]

"""The store of a sweep: each cell is claimed by one process and has one result, come what may."""

import dataclasses
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import reludiag
from reludiag.experiments.queue.queue import DEATHS_ALLOWED, Cell, Queue, Result
from reludiag.experiments.queue.sqlite_queue import SqliteQueue
from reludiag.experiments.trial_table import trials_table
from reludiag.process import ProcessId, is_gone, this_host, this_process

SETTINGS = {"train": "digits.py:train", "lr": [0.1, 0.01], "init": ["default"], "seeds": [0, 1]}
CELLS = [Cell(n, seed=n % 2, lr=(0.1, 0.01)[n // 2]) for n in range(4)]
ME = this_process()
ELSEWHERE = ProcessId("another host", 1, 0.0)
DONE = Result("complete", 0.1, 20, 32, 1, 2, 0, 3, 0, 0.1, 1.5, metrics={"loss": 0.5, "f1": 1e9})


@pytest.fixture
def store(tmp_path: Path) -> Queue:
    return SqliteQueue.prepare(tmp_path / "trials.sqlite", SETTINGS, CELLS)


def gone() -> ProcessId:
    """A process that was, and is no more."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        return ProcessId(this_host(), child.pid, psutil.Process(child.pid).create_time())


def test_cells_are_claimed_in_order_and_each_once(store: Queue) -> None:
    assert [store.claim(ME) for _ in range(5)] == [*CELLS, None]


def test_many_threads_claim_each_cell_once(tmp_path: Path) -> None:
    path, cells = tmp_path / "trials.sqlite", [Cell(n, seed=n) for n in range(60)]
    SqliteQueue.prepare(path, {}, cells).close()
    claimed: list[int] = []

    def work() -> None:
        queue = SqliteQueue(path)
        while (cell := queue.claim(ME)) is not None:
            claimed.append(cell.trial)
        queue.close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(60))


def test_a_result_comes_back_as_it_was(store: Queue) -> None:
    cell = store.claim(ME)
    crash = Result("crashed", error="ValueError: no", traceback="...", metrics={})
    assert store.finish(cell, ME, DONE)
    assert store.finish(store.claim(ME), ME, crash)
    assert store.unfinished() == 2
    (first, result), (second, other) = store.results()
    assert (first, second, result) == (CELLS[0], CELLS[1], DONE)
    assert (other.status, other.steps, other.error) == ("crashed", None, "ValueError: no")
    table = trials_table(store.results())
    assert list(table)[-2:] == ["metric.loss", "metric.f1"]
    assert list(table["metric.loss"].isna()) == [False, True]
    assert list(table["born"].isna()) == [False, True]


def test_nobody_but_the_owner_can_finish_a_cell(store: Queue) -> None:
    cell = store.claim(ME)
    assert not store.finish(cell, ELSEWHERE, DONE)
    assert store.finish(cell, ME, DONE)
    assert not store.finish(cell, ME, dataclasses.replace(DONE, dead=9))
    assert [result.dead for _, result in store.results()] == [3]


def test_the_cell_of_a_process_that_is_gone_is_taken_again(store: Queue) -> None:
    dead = gone()
    store.claim(dead)
    store.claim(ME)
    store.tend([])
    assert store.claim(ME) == CELLS[0]
    assert store.unfinished() == 4


def test_a_process_number_that_is_used_again_is_another_process(store: Queue) -> None:
    assert not is_gone(ME, lease=0)
    assert is_gone(dataclasses.replace(ME, started=ME.started - 60), lease=time.time() + 60)


def test_a_process_on_another_host_keeps_its_cell_until_its_lease_ends(
    store: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.claim(ELSEWHERE)
    store.tend([])
    assert store.claim(ME) == CELLS[1]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    store.renew(ELSEWHERE)
    monkeypatch.setattr(time, "time", lambda: now + 200)
    store.tend([])
    assert store.claim(ME) == CELLS[2]
    monkeypatch.setattr(time, "time", lambda: now + 300)
    store.tend([])
    assert store.claim(ME) == CELLS[0]
    assert not store.finish(CELLS[0], ELSEWHERE, DONE)


def test_a_cell_whose_process_dies_is_run_again_and_then_is_a_crash(store: Queue) -> None:
    for _ in range(DEATHS_ALLOWED):
        assert store.claim(ME) == CELLS[0]
        store.bury(ME, "was killed by SIGSEGV")
    assert store.results() == []
    assert store.claim(ME) == CELLS[0]
    store.bury(ME, "was killed by SIGSEGV")
    (cell, result), *_ = store.results()
    assert (cell, result.status) == (CELLS[0], "crashed")
    assert result.error == "its process was killed by SIGSEGV, 3 times"
    assert store.claim(ME) == CELLS[1]


def test_a_sweep_that_is_begun_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    first = SqliteQueue.prepare(path, SETTINGS, CELLS)
    first.finish(first.claim(ME), ME, DONE)
    again = SqliteQueue.prepare(path, SETTINGS, CELLS)
    assert again.unfinished() == 3
    with pytest.raises(reludiag.UsageError, match=r"started with lr 0.1, 0.01; now 0.1 was given"):
        SqliteQueue.prepare(path, {**SETTINGS, "lr": [0.1]}, CELLS[:2])


def test_another_file_is_not_taken_for_a_store(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other.sqlite"
    text.write_text("no database, but long enough to be looked at" * 50)
    sqlite3.connect(other).execute("CREATE TABLE t (x)")
    for path, what in ((text, "cannot be used"), (other, "not the file of a sweep")):
        with pytest.raises(reludiag.UsageError, match=what):
            SqliteQueue.prepare(path, SETTINGS, CELLS)


def test_a_process_that_is_killed_while_it_writes_leaves_the_store_whole(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    SqliteQueue.prepare(path, SETTINGS, CELLS).close()
    code = f"""
import os, signal
from pathlib import Path
from reludiag.process import this_process
from reludiag.experiments.queue.sqlite_queue import SqliteQueue
from reludiag.experiments.queue.queue import Result
store = SqliteQueue(Path({str(path)!r}))
cell = store.claim(this_process())
store._write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store.finish(cell, this_process(), Result("complete"))
"""
    done = subprocess.run([sys.executable, "-c", code])
    assert done.returncode == -9
    store = SqliteQueue(path)
    store.tend([])
    assert store.results() == []
    assert store.claim(ME) == CELLS[0]

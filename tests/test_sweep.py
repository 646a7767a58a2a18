"""Sweep: every cell ends with one result, whatever happens to the processes that make them."""

import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import psutil
import pytest
from reludiag_cli.app import main

import reludiag
from reludiag.experiments.queue.sqlite_queue import SqliteQueue
from reludiag.experiments.trial_table import TRIAL_COLUMNS
from reludiag.loading.specs import function_spec, load_attribute
from tests.forked import start_command

TRAIN = """
import contextlib, os, pathlib, signal, sys, time
import torch
from torch import nn

X = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


def build():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                         nn.Linear(16, 2))


def train(trial, steps=20, lr=1e-2):
    model = trial.init(build())
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.lr(lr))
    with trial.monitor(model, optimizer, probe=X):
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(X), Y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {"loss": loss}


def held(trial):  # until the test allows one more, or all
    while not os.path.exists("all"):
        for permit in pathlib.Path().glob("permit*"):
            with contextlib.suppress(FileNotFoundError):  # another was faster
                permit.unlink()
                return train(trial)
        time.sleep(0.01)
    return train(trial)


def harmful(trial):
    rate = trial.lr(1.0)
    if rate == 1:
        raise ValueError("my own\\nmistake")
    if rate == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if rate == 3:
        sys.exit("enough")
    if rate == 4:
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        with trial.monitor(model, optimizer, probe=X):
            optimizer.zero_grad()
            (model(X) * 1e30).sum().backward()
            optimizer.step()
            (model(X) * 1e30).sum().backward()
            optimizer.step()
            raise FloatingPointError("not finite")
    return train(trial)


def deaf(trial): return train(type(trial)())
def rateless(trial):
    with trial.monitor(build(), probe=X): pass
def odd(trial): train(trial); return "well"
def talking(trial): print("hello from a worker"); return train(trial)["loss"]
number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "tiny.py"
    path.write_text(TRAIN)
    return path


def known(trials: pd.DataFrame) -> pd.DataFrame:
    """All that does not depend on where and how fast it was made."""
    return trials.drop(columns=["seconds", "recording"])


RATES, INITS = "1e-3,.03,1", "default,kaiming"
CELLS = 12


def grid_options(file: Path, out: Path, workers: int) -> list[str]:
    return ["sweep", f"{file}:held", "--lr", RATES, "--init", INITS, "--seeds", "2",
            "--workers", str(workers), "--out", str(out), "--csv", f"{out}.csv"]  # fmt: skip


def wait_for_cells(parent: int, out: Path, done: int = 0) -> None:
    """Until so many cells are done and a child of the process `parent` runs one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(parent).status() != psutil.STATUS_ZOMBIE:
            cells, children = states(out), psutil.Process(parent).children(recursive=True)
            running = {pid for state, pid in cells if state == "running"}
            enough = sum(state == "done" for state, _ in cells) >= done
            if enough and running & {child.pid for child in children}:
                return
            time.sleep(0.01)
    raise AssertionError("it ended")


def states(out: Path) -> list[tuple[str, int | None]]:
    """State and process of each cell."""
    try:
        uri = (out / "trials.sqlite").as_uri()
        with contextlib.closing(sqlite3.connect(f"{uri}?mode=ro", uri=True)) as db:
            return db.execute("SELECT state, pid FROM cell").fetchall()
    except sqlite3.OperationalError:  # it is being made
        return []


def results(out: Path) -> dict[int, object]:
    store = SqliteQueue(out / "trials.sqlite")
    found = {cell.trial: result for cell, result in store.results()}
    store.close()
    return found


@pytest.mark.slow
def test_a_sweep_killed_five_times_ends_as_one_that_was_not(file: Path, tmp_path: Path) -> None:
    chance = random.Random(4)

    def start(name: str) -> tuple[BaseProcess, psutil.Process]:
        process = start_command(
            grid_options(file, tmp_path / name, workers=2), tmp_path, tmp_path / f"{name}.txt"
        )
        return process, psutil.Process(process.pid)

    out = tmp_path / "killed"
    out.mkdir()
    finished: dict[int, object] = {}
    for kill in range(5):
        for permit in range(2):
            (tmp_path / f"permit-{kill}-{permit}").touch()
        parent, as_seen = start("killed")
        wait_for_cells(as_seen.pid, out, done=len(finished) + 1)
        workers = as_seen.children(recursive=True)
        assert len(workers) in (1, 2), (tmp_path / "killed.txt").read_text()
        time.sleep(chance.uniform(0, 0.1))
        # Workers alone, the parent alone (its workers outlive it a little), or all of them.
        if kill % 3 == 0:
            workers.pop().kill()
            time.sleep(chance.uniform(0, 0.3))
        parent.kill()
        if kill % 3 != 1:
            for worker in workers:
                worker.kill()
        parent.join()
        assert finished.items() <= results(out).items(), "a finished trial was run again"
        finished = results(out)
    assert 5 <= len(finished) < CELLS
    (tmp_path / "all").touch()
    for name in ("killed", "whole"):
        parent, _ = start(name)
        parent.join()
        assert parent.exitcode == 0, (tmp_path / f"{name}.txt").read_text()
    assert finished.items() <= results(out).items()
    killed, whole = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("killed", "whole"))
    assert list(killed["trial"]) == list(range(CELLS))
    assert set(killed["status"]) == {"complete"}
    pd.testing.assert_frame_equal(known(killed), known(whole))
    assert killed["new"].gt(0).any()


@pytest.mark.slow
def test_whatever_a_trial_does_is_a_result(
    file: Path, tmp_path: Path, forked_workers: None
) -> None:
    seen: list[tuple[int, int]] = []
    trials = reludiag.sweep(
        f"{file}:harmful", lr=[1, 2, 3, 4, 0.01], seeds=[5], path=tmp_path / "s", workers=1,
        progress=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert list(trials["status"]) == ["crashed", "crashed", "crashed", "diverged", "complete"]
    said = list(trials["error"])
    assert said[0].startswith("ValueError: my own mistake (tiny.py:")
    assert said[1] == "its process was killed by SIGSEGV, 3 times"
    assert said[2].startswith("SystemExit: enough")
    assert said[3].startswith("FloatingPointError")
    assert said[4] == ""
    assert list(trials["lr"]) == [1, 2, 3, 4, 0.01]
    assert list(trials["seed"]) == [5] * 5
    assert trials["nonfinite"].iloc[3] > 0
    assert trials["dead"].iloc[3] == 0 or trials["dead_fraction"].iloc[3] < 1
    assert seen[-1] == (5, 5)
    assert all(done <= of for done, of in seen)


@pytest.mark.slow
def test_shards_are_parts_that_make_up_the_whole(
    file: Path, tmp_path: Path, forked_workers: None
) -> None:
    settings = {"lr": [0.01, 0.1], "init": ["default", "kaiming"], "seeds": 1, "workers": 1}
    whole, one, two = (
        reludiag.sweep(f"{file}:train", path=tmp_path / name, shard=shard, **settings)
        for name, shard in (("whole", None), ("one", "1/2"), ("two", "2/2"))
    )
    together = pd.concat([one, two]).sort_values("trial", ignore_index=True)
    pd.testing.assert_frame_equal(known(together), known(whole))
    assert list(whole)[:-1] == [column.name for column in TRIAL_COLUMNS]
    assert list(whole)[-1] == "metric.loss"
    assert all(Path(path).exists() for path in whole["recording"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "settings", "said"),
    [
        ("rateless", {"lr": [0.1]}, "never called trial.lr"),
        ("rateless", {"init": ["kaiming"]}, "never called trial.init"),
        ("deaf", {}, "never called `with trial.monitor"),
        ("odd", {}, "returned str 'well' as result; expected a number"),
    ],
)
def test_a_train_that_does_not_use_its_trial_ends_the_sweep(
    file: Path,
    tmp_path: Path,
    forked_workers: None,
    train: str,
    settings: dict[str, object],
    said: str,
) -> None:
    with pytest.raises(reludiag.UsageError, match=said):
        reludiag.sweep(f"{file}:{train}", path=tmp_path / "s", seeds=1, workers=1, **settings)
    assert results(tmp_path / "s") == {}


@pytest.mark.slow
def test_the_command_prints_only_its_result(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    monkeypatch.setattr(
        "sys.argv",
        ["reludiag", "sweep", f"{file}:talking", "--lr", "0.01,0.3", "--init", "kaiming",
         "--seeds", "1", "--out", str(out), "--workers", "1", "--json"],
    )  # fmt: skip
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    printed = capfd.readouterr()
    document = json.loads(printed.out)
    assert [trial["lr"] for trial in document["trials"]] == [0.01, 0.3]
    assert "metric.result" in document["trials"][0]
    assert "hello from a worker" in printed.err
    facts = reludiag.recording.read_recording(out / "recordings" / "0001.reludiag").facts
    assert facts["trial"] == {
        "seed": 0,
        "init": "kaiming",
        "lr": 0.3,
        "drawn": ["0", "2"],
        "left": "",
    }


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(file: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TRAIN + "import reludiag\nreludiag.sweep(train, seeds=1, workers=1)\n")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "under `if __name__ ==" in done.stderr


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_no_process_behind_and_goes_on(
    file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    out.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-m", "reludiag", *grid_options(file, out, workers=1)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    wait_for_cells(parent.pid, out)
    workers = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGINT)
    parent.communicate()
    assert parent.returncode == 130
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert results(out) == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": [0.1, 0.1]}, "different positive learning rates"),
        ({"lr": [0]}, "different positive learning rates"),
        ({"lr": []}, "different positive learning rates"),
        ({"init": ["kaimin"]}, "no initialization scheme 'kaimin'"),
        ({"init": ["kaiming", "he"]}, "different initialization schemes"),
        ({"seeds": 0}, "a number of seeds"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"workers": 0}, "at least 1 process"),
        ({"shard": "3/2"}, "i/n with i from 1 to n"),
        ({"shard": "one"}, "i/n with i from 1 to n"),
        ({"shard": "9/9"}, "shard 9/9 is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    file: Path, tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(reludiag.UsageError, match=said):
        reludiag.sweep(f"{file}:train", path=tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()


def test_what_is_no_function_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(reludiag.UsageError, match="is not a function"):
        reludiag.sweep(f"{file}:number", path=tmp_path / "s")
    with pytest.raises(reludiag.ModelError, match="no attribute 'trein'"):
        reludiag.sweep(f"{file}:trein", path=tmp_path / "s")
    with pytest.raises(reludiag.UsageError, match="other processes can import"):
        reludiag.sweep(lambda trial: None, path=tmp_path / "s")


def test_a_function_is_found_again_by_its_module_or_its_file(file: Path) -> None:
    assert function_spec(reludiag.load) == "reludiag.diagnosis.from_recording:load"
    assert function_spec(load_attribute(f"{file}:train")) == f"{file}:train"


def test_a_trial_made_by_hand_leaves_a_training_as_it_is(file: Path) -> None:
    trial = reludiag.Trial()
    load_attribute(f"{file}:train")(trial)
    assert trial.learning_rate == 1e-2
    with pytest.raises(reludiag.UsageError, match="twice"):
        load_attribute(f"{file}:train")(trial)
    with pytest.raises(reludiag.UsageError, match="positive"):
        reludiag.Trial(lr=-1)


def test_a_trial_varies_what_it_is_asked_for(file: Path) -> None:
    assert reludiag.Trial(lr=0.5).lr(0.1) == 0.5
    assert reludiag.Trial(lr_scale=0.1).lr(0.1) == pytest.approx(0.01)
    model = load_attribute(f"{file}:build")()
    before = [p.clone() for p in model.parameters()]
    assert reludiag.Trial().init(model) is model
    assert all(a.equal(b) for a, b in zip(before, model.parameters(), strict=True))
    reludiag.Trial(init="kaiming").init(model)
    same = [a.equal(b) for a, b in zip(before, model.parameters(), strict=True)]
    assert not any(same[:-2]) and all(same[-2:])  # all but the output, which feeds no rectifier

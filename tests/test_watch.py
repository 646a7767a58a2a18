"""Watching a recording that is being written, replaced, removed, or left by a run that died."""

import io
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import reludiag
from reludiag.monitoring.follow import Follower, LiveView
from reludiag.reports.live import frame
from tests.test_cli import ENVIRONMENT, reludiag_command

PROBE = torch.linspace(-1, 1, 20).unsqueeze(1)


def network(name: str = "relu") -> nn.Sequential:
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(1, 4))
    model.add_module(name, nn.ReLU())
    nn.init.ones_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    return model


def monitored(path: Path, model: nn.Module | None = None) -> reludiag.Monitor:
    return reludiag.Monitor(
        model or network(), path=path, every=1, probe=PROBE, overwrite=True, facts={"x": 1}
    )


def recorded(path: Path, steps: int = 5, model: nn.Module | None = None) -> Path:
    with monitored(path, model) as monitor:
        for _ in range(steps):
            monitor.step()
    return path


def text(view: LiveView, height: int | None = None, width: int = 80) -> str:
    page = io.StringIO()
    Console(file=page, width=width, color_system=None).print(frame(view, height))
    return page.getvalue()


def test_a_run_is_seen_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    follower = Follower(path, clock=lambda: time.time() + 1000)
    model = network()
    start = time.time()
    with monitored(path, model) as monitor:
        first = follower.look()
        assert (first.state, first.step, first.sentence) == ("running", 0, "")
        assert 999 <= first.silent <= 1001 + time.time() - start
        model.fc.bias.data[:3] = -100.0
        monitor.step()
        follower = Follower(path)
        second = follower.look()
        assert (second.step, second.diagnosis.dead) == (1, 3)
        assert "3 of 4 units dead (75 %)" in text(second)
    assert follower.look().state == "complete"


def test_a_run_that_raised_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), monitored(tmp_path / "r"):
        _ = 1 / 0
    view = Follower(tmp_path / "r").look()
    assert view.state == "interrupted"
    assert view.sentence == "The run was interrupted by ZeroDivisionError."


def test_a_run_that_was_killed_has_died(tmp_path: Path) -> None:
    program = """
import os, signal, sys, torch, reludiag
from torch import nn
with reludiag.Monitor(nn.Sequential(nn.Linear(1, 4), nn.ReLU()), path=sys.argv[1], every=1,
                      probe=torch.ones(2, 1)) as monitor:
    monitor.step()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", program, tmp_path / "r"]
    assert subprocess.run(command, env=ENVIRONMENT).returncode == -signal.SIGKILL
    view = Follower(tmp_path / "r").look()
    assert (view.state, view.step) == ("died", 1)
    assert "its process has ended" in view.sentence
    assert view.diagnosis is not None


def set_fact(path: Path, key: str, value: object) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE run SET value = ? WHERE key = ?", (json.dumps(value), key))


@pytest.mark.parametrize("process", [{"host": "elsewhere", "pid": 1, "started": 0.0}, "nonsense"])
def test_a_run_elsewhere_is_taken_to_have_died_when_it_was_long_silent(
    tmp_path: Path, process: object
) -> None:
    path = recorded(tmp_path / "r")
    set_fact(path, "status", "running")
    set_fact(path, "process", process)
    with sqlite3.connect(path) as db:
        times = [(f"2026-01-01T00:{step}0:00+00:00", step) for step in range(6)]
        db.executemany("UPDATE snapshot SET taken = ? WHERE step = ?", times)
    last = 1767228600.0  # 00:50
    now = [last + 60 * 190]
    follower = Follower(path, clock=lambda: now[0])
    assert follower.look().state == "running"
    now[0] = last + 60 * 210
    view = follower.look()
    assert view.state == "died" and "not written for a long time" in view.sentence
    assert view.silent == 60 * 210
    assert view.steps_per_second == pytest.approx(1 / 600)
    assert "0.0017 steps/s" in text(view) and "snapshot 4 h ago" in text(view)


def test_a_recording_that_is_replaced_is_followed(tmp_path: Path) -> None:
    path = recorded(tmp_path / "r", steps=5)
    follower = Follower(path)
    assert follower.look().step == 5
    recorded(path, steps=2)
    view = follower.look()
    assert view.step == 2 and len(view.diagnosis.timeline) == 3
    assert view.sentence == "A new run has replaced the previous one."


def test_a_recording_that_is_removed_is_kept_in_sight_until_another_comes(tmp_path: Path) -> None:
    path = recorded(tmp_path / "r")
    follower = Follower(path)
    seen = follower.look()
    path.unlink()
    view = follower.look()
    assert view.state == "lost" and "was removed" in view.sentence
    assert view.diagnosis is seen.diagnosis
    path.write_bytes(b"SQLite format 3\0 and then nothing of the kind" * 40)
    assert follower.look().state == "lost"
    path.unlink()
    recorded(path, steps=1)
    assert (follower.look().state, follower.look().step) == ("complete", 1)


def test_a_recording_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "r"
    follower = Follower(path)
    assert follower.look().state == "waiting"
    path.touch()  # as SQLite does, before it writes
    assert follower.look().state == "waiting"
    assert "no recording at" in text(follower.look())
    recorded(path)
    assert follower.look().state == "complete"


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not SQLite")
    os.utime(path, (0, 0))
    with pytest.raises(reludiag.RecordingError, match="is not a recording"):
        Follower(path).look()
    with pytest.raises(reludiag.RecordingError, match="does not exist"):
        Follower(tmp_path / "gone" / "r").look()


def test_a_large_recording_is_not_read_all_the_time(tmp_path: Path) -> None:
    path = tmp_path / "r"
    now = [0.0]

    def slow_clock() -> float:
        now[0] += 10.0  # so long does everything take
        return now[0]

    with monitored(path) as monitor:
        follower = Follower(path, clock=slow_clock)
        first = follower.look().diagnosis
        monitor.step()
        view = follower.look()
        assert view.step == 1 and view.diagnosis is first
        now[0] += 100.0
        assert follower.look().diagnosis is not first


@pytest.mark.parametrize("height", [24, 40, 60])
def test_a_frame_fits_the_terminal(tmp_path: Path, height: int) -> None:
    model = nn.Sequential(*(m for _ in range(30) for m in (nn.Linear(1, 1), nn.ReLU())))
    view = Follower(recorded(tmp_path / "r", 40, model)).look()
    lines = text(view, height).splitlines()
    assert len(lines) <= height and max(map(len, lines)) <= 80
    assert "q or Ctrl-C quits" in lines[-1]
    assert "Deaths over time" in text(view, height) and "Worst sites" in text(view, height)


def test_a_hostile_name_does_nothing_in_a_frame(tmp_path: Path) -> None:
    view = Follower(recorded(tmp_path / "r", 1, network("[bold red]x[/]\x1b[31m"))).look()
    assert "[bold red]x[/]" in text(view)
    assert "\x1b" not in text(view)


def test_once_prints_a_frame_and_leaves(tmp_path: Path) -> None:
    done = reludiag_command("watch", recorded(tmp_path / "r"), "--once")
    assert done.code == 0 and "complete  step 5" in done.out
    assert "\x1b" not in done.out and max(map(len, done.out.splitlines())) <= 80
    missing = reludiag_command("watch", tmp_path / "gone", "--once")
    assert (missing.code, missing.out) == (3, "")
    piped = reludiag_command("watch", tmp_path / "r")
    assert piped.code == 2 and "--once" in piped.sentence


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_q_and_ctrl_c_leave_with_the_last_frame_on_the_screen(tmp_path: Path, key: bytes) -> None:
    recorded(tmp_path / "r")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from reludiag_cli.app import main; main()",
         "watch", tmp_path / "r"],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**ENVIRONMENT, "TERM": "xterm"},
        start_new_session=True, preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0),
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"Ctrl-C" not in shown:
        shown += os.read(ours, 65536)
    os.write(ours, key)
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other end was closed
            break
    assert process.wait() == 0
    os.close(ours)
    after = shown.rpartition(b"\x1b[?1049l")[2].decode()
    assert "complete" in after and "Traceback" not in after

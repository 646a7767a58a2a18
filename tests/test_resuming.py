"""A run that goes on from its checkpoint, in its own recording."""

import copy
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reludiag
from reludiag.monitoring.follow import Follower
from reludiag.recording import read_recording

PROBE = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))


def mlp(width: int = 16) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 4)
        )


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


class Training:
    """A training whose batches depend on the step alone, with its checkpoints."""

    def __init__(self, path: Path, optimizer: Any = adam, **settings: Any) -> None:
        self.model = mlp()
        self.optimizer = optimizer(self.model)
        self.settings = {"path": path, "every": 4, "probe": PROBE, "warn_over": None, **settings}
        self.checkpoints: dict[int, Any] = {}

    def run(self, start: int, end: int, kill: tuple[int, int] = (-1, 0), **more: Any) -> Any:
        """Steps `start + 1 .. end`; at a step, a number of units of the first layer is killed."""
        settings = {**self.settings, "resume": start > 0, **more}
        with reludiag.Monitor(self.model, self.optimizer, **settings) as monitor:
            for step in range(start + 1, end + 1):
                self.optimizer.zero_grad()
                x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
                nn.functional.cross_entropy(self.model(x), (x[:, 0] > 0).long()).backward()
                self.optimizer.step()
                if step == kill[0]:
                    with torch.no_grad():
                        self.model[0].bias[: kill[1]] = -100.0
                if settings.get("metrics"):
                    monitor.log(step=step)
                self.checkpoints[step] = copy.deepcopy(
                    (self.model.state_dict(), self.optimizer.state_dict())
                )
        return monitor

    def restart(self, step: int, optimizer: Any = adam) -> None:
        """A new process, which loads a checkpoint."""
        self.model = mlp()
        self.optimizer = optimizer(self.model)
        weights, state = self.checkpoints[step]
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.reludiag"


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def whole(diagnosis: reludiag.Diagnosis) -> Any:
    """Everything that does not depend on the moment."""
    names = ["site", "unit", "verdict", "fired", "born_dead", "died_step", "revived_step"]
    timeline = diagnosis.timeline
    assert timeline is not None
    return diagnosis.units[names].to_csv(), timeline.to_csv()


@pytest.mark.parametrize("probe", [PROBE, None], ids=["probe", "window"])
@pytest.mark.parametrize("cut", [8, 12])
def test_a_resumed_run_has_the_recording_of_one_that_was_never_cut(
    tmp_path: Path, probe: Any, cut: int
) -> None:
    kill = (6, 5)
    first = Training(tmp_path / "first.reludiag", probe=probe)
    uncut = first.run(0, 20, kill).diagnose()
    second = Training(tmp_path / "second.reludiag", probe=probe)
    second.run(0, cut, kill)
    second.restart(cut)
    resumed = second.run(cut, 20).diagnose()
    assert whole(resumed) == whole(uncut)
    assert resumed.sites["born_dead"].tolist() == uncut.sites["born_dead"].tolist()
    assert f"The run was resumed at step {cut}." in resumed.head.notes
    assert resumed.causes[0].kind == uncut.causes[0].kind
    assert resumed.causes[0].kind not in {"inherited", "initialization"}


@pytest.mark.parametrize("optimizer", [adam, sgd])
def test_snapshots_that_the_checkpoint_does_not_have_are_dropped(
    path: Path, optimizer: Any
) -> None:
    training = Training(path, optimizer)
    training.run(0, 12, (9, 5))
    training.restart(6, optimizer)
    with pytest.warns(RuntimeWarning, match="step 12; 2 later snapshots are dropped") as caught:
        monitor = training.run(6, 10, resume=True if optimizer is adam else 6)
    assert caught[0].filename == __file__
    assert monitor.snapshots == [0, 4, 6, 8, 10]
    diagnosis = reludiag.load(path)
    assert diagnosis.timeline["step"].unique().tolist() == [0, 4, 6, 8, 10]
    killed = diagnosis.units.query("site == '1' and unit < 5")
    assert not (killed["verdict"] == "dead").all()  # what died at step 9 has not died here
    note = "The run was resumed at step 6. 2 later snapshots were dropped: the run took these steps"
    assert f"{note} again." in diagnosis.head.notes


def test_steps_between_the_last_snapshot_and_the_checkpoint_were_not_watched(path: Path) -> None:
    training = Training(path)
    training.run(0, 8)
    training.run(8, 11, path=None, resume=False)
    training.restart(11)
    with pytest.warns(RuntimeWarning, match="the optimizer has taken 11 steps, and the last"):
        monitor = training.run(11, 12)
    assert monitor.snapshots == [0, 4, 8, 11, 12]
    assert any("Steps 8-11 were not watched" in note for note in monitor.diagnose().head.notes)


def test_an_optimizer_that_does_not_count_goes_on_after_the_last_recorded_step(path: Path) -> None:
    training = Training(path, sgd)
    training.run(0, 8)
    training.restart(8, sgd)
    monitor = training.run(8, 10)
    assert monitor.snapshots == [0, 4, 8, 10]
    notes = " ".join(monitor.diagnose().head.notes)
    assert "does not count its steps, so this is where the recording ended" in notes
    assert "does not count" not in " ".join(
        Training(path.with_name("2"), adam).run(0, 4).diagnose().head.notes
    )


def test_a_resumed_run_of_half_a_window_is_judged(path: Path) -> None:
    training = Training(path, sgd, probe=None)
    training.run(0, 8, (8, 5))
    training.restart(8, sgd)
    monitor = training.run(8, 10)
    assert monitor.snapshots == [0, 4, 8, 10]
    killed = monitor.diagnose().units.query("site == '1' and unit < 5")
    assert (killed["verdict"] == "dead").all()


def test_a_short_first_window_kills_nobody(path: Path) -> None:
    training = Training(path, sgd, probe=None)
    training.run(0, 7)
    training.restart(7, sgd)
    monitor = training.run(7, 8)  # too few batches to judge by
    assert monitor.snapshots == [0, 4, 7]
    assert any("The last step is not judged" in note for note in monitor.diagnose().head.notes)
    training.restart(7, sgd)
    monitor = training.run(7, 14)
    assert monitor.snapshots == [0, 4, 7, 12, 14]
    assert read_recording(path).first_steps == (0, 0, 4, 7, 12)
    assert not any("not judged" in note for note in monitor.diagnose().head.notes)


def test_rates_and_deaths_of_before_are_known_to_listeners(path: Path) -> None:
    training, told = Training(path), list[reludiag.Snapshot]()
    training.run(0, 8, (6, 5))
    training.restart(8)
    training.run(8, 12, (10, 7), on_snapshot=told.append)
    assert [snapshot.step for snapshot in told] == [8, 12]
    assert [snapshot.died for snapshot in told] == [0, 2]
    assert told[0].learning_rates == {"0/0": 0.01}
    assert sum(site.born_dead for site in told[-1].sites) == 0


@pytest.mark.parametrize("resume", [True, 0])
def test_resume_begins_a_recording_where_there_is_none(path: Path, resume: Any) -> None:
    monitor = Training(path).run(0, 4, resume=resume)
    assert monitor.snapshots == [0, 4]
    assert not any("resumed" in note for note in monitor.diagnose().head.notes)


def test_metrics_of_before_stay_and_later_ones_are_dropped(path: Path) -> None:
    warnings.simplefilter("ignore")  # steps without gradients change nothing
    training = Training(path)
    with reludiag.Monitor(training.model, training.optimizer, **training.settings) as monitor:
        for step in range(12):
            training.optimizer.step()
            monitor.log(step=step)
    resumed = reludiag.Monitor(training.model, training.optimizer, **training.settings, resume=8)
    with resumed as monitor:
        training.optimizer.step()
        monitor.log(step=100)
    assert monitor.diagnose().metrics["last"].tolist() == [3.0, 7.0, 100.0]


@pytest.mark.parametrize(
    ("change", "settings", "what"),
    [
        (lambda t: setattr(t, "model", mlp(12)), {}, r"is of another model: it has \d+ parameters"),
        (lambda t: setattr(t, "model", nn.Sequential(*mlp(), nn.ReLU())), {}, None),
        (lambda t: None, {"every": 5}, "has a snapshot every 4 steps, and every=5 was given"),
        (lambda t: None, {"probe": None}, "was recorded with a probe, and is resumed without one"),
        (lambda t: None, {"path": None}, "resume was given without a path"),
        (lambda t: None, {"overwrite": True}, "resume and overwrite were given"),
        (lambda t: None, {"resume": "yes"}, "resume='yes' was given; expected True, or the number"),
        (lambda t: None, {"resume": -1}, "resume=-1 was given; expected True, or the number"),
    ],
)
def test_what_does_not_go_on_with_a_recording_is_refused_and_leaves_it(
    path: Path, change: Any, settings: dict[str, Any], what: str | None
) -> None:
    training = Training(path)
    training.run(0, 8)
    before = whole(reludiag.load(path))
    change(training)
    training.optimizer = adam(training.model)
    if what is None:
        training.run(8, 9, resume=8)  # one more site is a path that was not taken before
        return
    with pytest.raises(reludiag.ReludiagError, match=what):
        training.run(8, 12, **settings)
    assert whole(reludiag.load(path)) == before
    assert reludiag.load(path).head.status == "complete"
    assert not list(path.parent.glob("*-wal"))


def test_units_of_another_number_are_refused_before_anything_is_dropped(path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.Unflatten(1, (3, 4)), nn.ReLU(), nn.Flatten())
    optimizer = sgd(model)

    def go(axis: int, resume: bool | int) -> None:
        settings = {"path": path, "every": 1, "probe": PROBE, "unit_axes": {"2": axis}}
        with reludiag.Monitor(model, optimizer, warn_over=None, resume=resume, **settings):
            for _ in range(3):
                optimizer.zero_grad()
                model(PROBE).sum().backward()
                optimizer.step()

    go(1, resume=False)
    with pytest.raises(reludiag.RecordingError, match="site '2' has 3 units there, and 4 here"):
        go(2, resume=1)
    assert read_recording(path).steps == (0, 1, 2, 3)


def test_another_probe_is_told(path: Path) -> None:
    training = Training(path)
    training.run(0, 8)
    notes = training.run(8, 12, probe=PROBE.flip(0)).diagnose().head.notes
    assert any("The probe is another one since then" in note for note in notes)


def test_a_recording_of_an_older_version_is_not_gone_on_with(path: Path) -> None:
    training = Training(path)
    training.run(0, 8)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(reludiag.RecordingError, match="goes on only with version"):
        training.run(8, 12)


def test_a_run_that_is_resumed_is_the_same_for_who_watches_it(path: Path) -> None:
    training = Training(path)
    training.run(0, 8)
    follower = Follower(path)
    assert follower.look().sentence == ""
    training.run(8, 12)
    view = follower.look()
    assert (view.step, view.sentence) == (12, "")


def test_sites_that_the_resumed_part_never_calls_keep_their_history(path: Path) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)
            self.one, self.two = nn.ReLU(), nn.ReLU()
            self.takes_both = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(self.a(x))
            return y + self.two(self.b(x)) if self.takes_both else y

    model = Branch()
    optimizer = sgd(model)
    for resume, model.takes_both in ((False, True), (True, False)):
        with reludiag.Monitor(model, optimizer, path=path, every=2, resume=resume, warn_over=None):
            for _ in range(4):
                optimizer.zero_grad()
                model(PROBE).sum().backward()
                optimizer.step()
    run = read_recording(path)
    assert run.steps == (0, 2, 4, 6, 8)
    two = next(each for each in run.sites if each.site.module == "two")
    assert two.samples.tolist() == [64, 128, 128, 0, 0]

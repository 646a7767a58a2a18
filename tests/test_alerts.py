"""Alerts: what is told of a run while it goes on, and what stops it."""

import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import reludiag
from reludiag import Snapshot, TooManyDeadError
from reludiag.recording import read_recording

PROBE = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
        )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(32, 8, generator=generator)
        y = torch.randint(0, 4, (32,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def kill(model: nn.Sequential, units: int, layer: int = 0) -> None:
    with torch.no_grad():
        model[layer].bias[:units] = -100.0


def told(snapshots: list[Snapshot]) -> pd.DataFrame:
    """In the shape of a timeline."""
    rows = [
        {"step": s.step, "site": site.name, "samples": site.samples, "units": site.units,
         "dead": site.dead, "rare": site.rare, "dormant": site.dormant, "died": site.died,
         "revived": site.revived, "nonfinite": site.nonfinite}
        for s in snapshots
        for site in s.sites
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("probe", [PROBE, None], ids=["probe", "window"])
def test_what_is_told_is_what_the_recording_says(probe: torch.Tensor | None) -> None:
    model, snapshots = mlp(), list[Snapshot]()
    kill(model, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2)
    settings = {"every": 3, "probe": probe, "warn_over": None}
    with reludiag.Monitor(model, optimizer, on_snapshot=snapshots.append, **settings) as monitor:
        train(model, optimizer, 20)
        with torch.no_grad():
            model[0].bias.fill_(1.0)  # a resurrection
        train(model, optimizer, 21)
    diagnosis = monitor.diagnose()
    table = told(snapshots)
    assert [s.step for s in snapshots] == monitor.snapshots
    assert table["died"].sum() > 0
    assert table["revived"].sum() > 0
    pd.testing.assert_frame_equal(table, diagnosis.timeline[list(table.columns)], check_dtype=False)
    assert sum(site.born_dead for site in snapshots[-1].sites) == 3
    assert snapshots[-1].scalars()["reludiag/born_dead"] == 3


def test_the_learning_rates_told_are_those_of_the_steps() -> None:
    model, snapshots = mlp(), list[Snapshot]()
    optimizer = sgd(model, 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with reludiag.Monitor(model, optimizer, every=2, on_snapshot=snapshots.append):
        for _ in range(6):
            train(model, optimizer, 1)
            scheduler.step()
    assert [dict(s.learning_rates) for s in snapshots] == [
        {}, {"0/0": 0.05}, {"0/0": 0.0125}, {"0/0": 0.003125}
    ]  # fmt: skip
    assert [s.largest_rate for s in snapshots] == [None, 0.1, 0.025, 0.00625]


def test_on_death_is_called_only_where_units_died_and_names_them() -> None:
    model, deaths = mlp(), list[Snapshot]()
    kill(model, 2)
    optimizer = sgd(model)
    with reludiag.Monitor(model, optimizer, every=2, probe=PROBE, on_death=deaths.append):
        train(model, optimizer, 4)
        with torch.no_grad():
            model[0].bias[7] = -100.0
        train(model, optimizer, 4)
    assert [(death.step, death.died) for death in deaths] == [(6, 1)]
    assert deaths[0].sites[0].died_units == (7,)
    assert str(deaths[0]) == (
        "1 of 32 units died in steps 4-6, at a learning rate of 0.01; most in '1', 1 of 16"
    )


def test_many_deaths_in_one_window_are_warned_of_once() -> None:
    model = mlp()
    optimizer = sgd(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with reludiag.Monitor(model, optimizer, every=2, probe=PROBE):
            train(model, optimizer, 2)
            kill(model, 3)  # 9 %: too few to speak of
            train(model, optimizer, 2)
            kill(model, 7)  # 4 more of 32
            train(model, optimizer, 2)
            kill(model, 16)
            train(model, optimizer, 2)
    assert [str(warning.message) for warning in caught] == [
        "reludiag: 4 of 32 units died in steps 4-6, at a learning rate of 0.01; most in '1', 4 of "
        "16. That is more than 10% in one window (warn_over)"
    ]


def test_no_warning_is_given_where_none_is_wanted(recwarn: pytest.WarningsRecorder) -> None:
    model = mlp()
    optimizer = sgd(model)
    with reludiag.Monitor(model, optimizer, every=2, probe=PROBE, warn_over=None):
        train(model, optimizer, 2)
        kill(model, 16)
        train(model, optimizer, 2)
    assert not recwarn.list


def test_raise_over_ends_the_run_with_all_in_the_recording(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    run = tmp_path / "run.reludiag"
    settings = {"every": 2, "probe": PROBE, "warn_over": None, "raise_over": "30%"}
    with (
        pytest.raises(TooManyDeadError, match=r"^11 of 32 units are dead at step 4: more than "),
        reludiag.Monitor(model, optimizer, path=run, **settings),
    ):
        train(model, optimizer, 3)
        kill(model, 10)
        train(model, optimizer, 100)
    diagnosis = reludiag.load(run)
    assert diagnosis.head.status == "interrupted by TooManyDeadError"
    assert diagnosis.timeline["step"].unique().tolist() == [0, 2, 4]
    assert diagnosis.dead == 11  # one more below the ten
    assert not list(tmp_path.glob("*-wal"))
    assert not optimizer._optimizer_step_post_hooks


def test_units_that_are_dead_at_step_0_do_not_stop_a_run_before_it_has_begun() -> None:
    model = mlp()
    kill(model, 16)
    optimizer = sgd(model)
    with reludiag.Monitor(model, optimizer, every=4, probe=PROBE, raise_over="30%"):
        train(model, optimizer, 3)
        with torch.no_grad():
            model[0].bias.fill_(1.0)
        train(model, optimizer, 5)


def test_a_run_of_nan_is_stopped_too() -> None:
    model = mlp()
    optimizer = sgd(model)
    with (
        pytest.raises(TooManyDeadError, match="32 of 32 units are dead at step 2, 32 of them not"),
        reludiag.Monitor(model, optimizer, every=2, raise_over="30%"),
    ):
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))
        train(model, optimizer, 2)


def test_deaths_in_the_last_window_raise_when_the_monitor_is_left(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    run = tmp_path / "run.reludiag"
    with (
        pytest.raises(TooManyDeadError),
        reludiag.Monitor(model, optimizer, path=run, every=4, probe=PROBE, raise_over="12"),
    ):
        train(model, optimizer, 4)
        kill(model, 16)
        train(model, optimizer, 1)
    assert reludiag.load(run).head.status == "complete"


def test_the_error_of_a_run_is_not_replaced_by_one_about_deaths() -> None:
    model, snapshots = mlp(), list[Snapshot]()
    optimizer = sgd(model)
    settings = {"probe": PROBE, "raise_over": "30%", "warn_over": None}
    with (
        pytest.raises(KeyError, match="mine"),
        reludiag.Monitor(model, optimizer, on_snapshot=snapshots.append, **settings),
    ):
        train(model, optimizer, 1)
        kill(model, 16)
        raise KeyError("mine")
    assert [s.step for s in snapshots] == [0, 1]


def test_what_a_listener_raises_stops_the_run_and_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    def listener(snapshot: Snapshot) -> None:
        if snapshot.step == 2:
            raise OSError("the network is down")

    model = mlp()
    optimizer = sgd(model)
    run = tmp_path / "run.reludiag"
    with (
        pytest.raises(OSError, match="the network is down"),
        reludiag.Monitor(model, optimizer, path=run, every=2, on_snapshot=listener),
    ):
        train(model, optimizer, 6)
    diagnosis = reludiag.load(run)
    assert diagnosis.head.status == "interrupted by OSError"
    assert diagnosis.timeline["step"].max() == 2


@pytest.mark.parametrize("setting", ["warn_over", "raise_over"])
@pytest.mark.parametrize("value", ["much", 0.3, "130%"])
def test_a_limit_that_is_none_is_refused_by_its_name(setting: str, value: object) -> None:
    model = mlp()
    with pytest.raises(reludiag.UsageError, match=f"{setting} '.*' was given; expected a share"):
        reludiag.Monitor(model, sgd(model), **{setting: value})


def test_a_hostile_name_reaches_a_warning_escaped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(8, 16))
    model.add_module("\x1b[2Jrelu", nn.ReLU())
    optimizer = sgd(model)

    def step() -> None:
        optimizer.zero_grad()
        model(PROBE).sum().backward()
        optimizer.step()

    with (
        pytest.warns(RuntimeWarning, match=r"most in '\\x1b\[2Jrelu', 1\d of 16"),
        reludiag.Monitor(model, optimizer, every=1, probe=PROBE),
    ):
        step()
        with torch.no_grad():
            model.fc.bias.fill_(-100.0)
        step()


@pytest.mark.parametrize("keyword", [True, False])
def test_with_a_closure_the_initial_state_is_of_the_initial_weights(
    tmp_path: Path, keyword: bool
) -> None:
    model, snapshots = mlp(), list[Snapshot]()
    kill(model, 5)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(PROBE).square().sum()
        loss.backward()
        return loss

    path = tmp_path / "run.reludiag"
    with reludiag.Monitor(
        model, optimizer, path=path, every=1, on_snapshot=snapshots.append
    ) as monitor:
        for _ in range(2):
            optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert monitor.snapshots == [0, 1, 2]
    assert snapshots[0].sites[0].samples == 64
    assert snapshots[0].learning_rates == {}
    assert snapshots[1].learning_rates == {"0/0": 0.1}
    assert monitor.diagnose().sites["born_dead"].tolist() == [5, snapshots[0].sites[1].dead]
    assert {update.step for update in read_recording(path).observations.updates} == {1, 2}

"""Monitor: the clock, the windows, the ledger, and what is left behind."""

import contextlib
import copy
import io
import math
import pickle
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import reludiag
from reludiag.reports.run.summary import life_windows

PROBE = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))


def mlp(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
        )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    after_step: Callable[[int], None] = lambda step: None,
    scheduler: Any = None,
    seed: int = 1,
) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    losses = []
    for step in range(1, steps + 1):
        x = torch.randn(32, 8, generator=generator).to(dtype)
        y = torch.randint(0, 4, (32,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
        after_step(step)
    return losses


def brute_force_dead(state: dict[str, Tensor], x: Tensor) -> list[set[int]]:
    """Dead units of both layers of `mlp`, from its weights alone."""
    first = x @ state["0.weight"].T + state["0.bias"]
    second = first.clamp(min=0) @ state["2.weight"].T + state["2.bias"]
    return [set(torch.nonzero((z <= 0).all(0)).flatten().tolist()) for z in (first, second)]


def test_the_ledger_equals_brute_force_on_the_weights_of_every_snapshot(tmp_path: Path) -> None:
    # In float64, as the brute force: no unit is to live by a rounding.
    model, probe = mlp().double(), PROBE.double()
    with torch.no_grad():
        model[0].bias[3] = -100.0  # born dead
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    weights = {0: copy.deepcopy(model.state_dict())}

    def keep(step: int) -> None:
        if step % 3 == 0 or step == 40:
            weights[step] = copy.deepcopy(model.state_dict())
        if step == 18:  # a resurrection
            with torch.no_grad():
                model[0].bias.fill_(0.5)
                model[2].bias.fill_(0.5)

    path = tmp_path / "run.reludiag"
    with reludiag.Monitor(model, optimizer, path=path, every=3, probe=probe) as monitor:
        train(model, optimizer, 40, keep)
    assert monitor.snapshots == sorted(weights)
    diagnosis = reludiag.load(path)
    timeline = diagnosis.timeline
    assert timeline is not None

    dead = {step: brute_force_dead(state, probe) for step, state in weights.items()}
    assert max(len(layer) for layers in dead.values() for layer in layers) > 3  # it does happen
    revivals = 0
    for index, site in enumerate(("1", "3")):
        rows = timeline[timeline["site"] == site].set_index("step")
        assert {s: len(d[index]) for s, d in dead.items()} == rows["dead"].to_dict()
        units = diagnosis.units[diagnosis.units["site"] == site].set_index("unit")
        for unit in range(16):
            history = [(step, unit in dead[step][index]) for step in sorted(dead)]
            died = [t for (_, a), (t, b) in pairwise(history) if b > a]
            revived = [t for (_, a), (t, b) in pairwise(history) if a > b]
            revivals += len(revived)
            row = units.loc[unit]
            assert row["born_dead"] == history[0][1]
            assert (None if pd.isna(row["died_step"]) else row["died_step"]) == (
                died[-1] if died else None
            )
            assert (None if pd.isna(row["revived_step"]) else row["revived_step"]) == (
                revived[-1] if revived else None
            )
            assert (row["verdict"] == "dead") == history[-1][1]
            assert math.isnan(row["lr_at_death"]) == (not died)
    assert revivals > 0
    assert set(diagnosis.units["samples"]) == {64}
    assert diagnosis.units["firing_rate_upper"].notna().all()


def test_report_load_and_diagnose_agree(tmp_path: Path) -> None:
    model, path = mlp(), tmp_path / "run.reludiag"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, path=path, every=2) as monitor:
        train(model, optimizer, 5)
    done, loaded = monitor.diagnose(), reludiag.load(path)
    assert str(done) == str(loaded)
    assert done.head == loaded.head
    for name in ("units", "sites", "timeline"):
        pd.testing.assert_frame_equal(getattr(done, name), getattr(loaded, name))


def test_diagnose_works_while_the_run_goes_on_and_in_memory() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, every=2) as monitor:
        train(model, optimizer, 5)
        during = monitor.diagnose()
    assert during.timeline is not None
    assert list(during.timeline["step"].unique()) == [0, 2, 4]
    assert during.head.status == "running"
    assert list(monitor.diagnose().timeline["step"].unique()) == [0, 2, 4, 5]


def test_the_learning_rate_is_the_one_the_step_used() -> None:
    """The scheduler changes it right after the step; units are killed by hand at step 3."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)

    def kill(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                model[0].bias[:4] = -100.0

    with reludiag.Monitor(model, optimizer, every=1, probe=PROBE) as monitor:
        train(model, optimizer, 4, kill, scheduler)
    units = monitor.diagnose().units.query("site == '1' and unit < 4")
    assert set(units["died_step"]) == {3}
    assert list(units["lr_at_death"]) == pytest.approx([0.01] * 4)


def test_each_parameter_group_has_its_own_learning_rate() -> None:
    model = mlp()
    groups = [
        {"params": model[0].parameters(), "lr": 1e-3},
        {"params": model[2].parameters(), "lr": 1e-5},
    ]
    optimizers = [torch.optim.SGD(groups), torch.optim.SGD(model[4].parameters(), lr=7.0)]

    def kill(step: int) -> None:
        with torch.no_grad():
            model[0].bias[0] = model[2].bias[0] = -100.0

    class Both:
        def zero_grad(self) -> None:
            model.zero_grad()

        def step(self) -> None:
            for optimizer in optimizers:
                optimizer.step()

    with reludiag.Monitor(model, optimizers, every=2, probe=PROBE) as monitor:
        train(model, Both(), 4, kill)
    assert monitor.snapshots == [0, 2, 4]
    killed = monitor.diagnose().units.query("unit == 0").set_index("site")["lr_at_death"]
    assert killed.to_dict() == pytest.approx({"1": 1e-3, "3": 1e-5})


def test_weights_that_no_optimizer_trains_have_no_learning_rate() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=3.0)

    def kill(step: int) -> None:
        with torch.no_grad():
            model[0].bias[0] = model[2].bias[0] = -100.0

    with reludiag.Monitor(model, optimizer, every=2, probe=PROBE) as monitor:
        train(model, optimizer, 4, kill)
    diagnosis = monitor.diagnose()
    killed = diagnosis.units.query("unit == 0").set_index("site")
    assert killed.loc["1", "lr_at_death"] == 3.0
    assert math.isnan(killed.loc["3", "lr_at_death"])
    assert any("does not train 2, 4" in note for note in diagnosis.head.notes)
    other = torch.optim.SGD(mlp().parameters(), lr=0.1)
    with pytest.raises(reludiag.UsageError, match="holds no parameter"):
        reludiag.Monitor(model, other)


def test_a_probe_through_batch_norm_says_that_statistics_lag() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU())
    with reludiag.Monitor(model, probe=PROBE) as monitor:
        pass
    head = monitor.diagnose().head
    assert any("running statistics" in note for note in head.notes)
    assert "in eval mode" in head.evidence


def test_evaluation_batches_are_kept_apart() -> None:
    """In training all inputs are negative and unit 0 is silent; in evaluation it fires."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=1) as monitor:
        for _ in range(3):
            model.train()(-torch.rand(4, 1)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model.eval()(torch.rand(4, 1))
    diagnosis = monitor.diagnose()
    assert list(diagnosis.units["verdict"]) == ["dead"]
    assert "Left out: 3 passes in evaluation mode." in diagnosis.head.notes


def test_gradient_accumulation_counts_every_forward_of_a_step() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, every=2) as monitor:
        for _ in range(2):
            for _ in range(3):
                model(torch.randn(4, 8)).sum().backward()
            optimizer.step()
    assert monitor.snapshots == [0, 2]
    assert set(monitor.diagnose().units["samples"]) == {2 * 3 * 4}


def test_a_step_that_the_gradient_scaler_leaves_out_is_none() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    with reludiag.Monitor(model, optimizer, every=2) as monitor:
        for batch in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(32, 8)).square().mean()
            if batch in {1, 2}:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert monitor.snapshots == [0, 2, 4]
    samples = monitor.diagnose().timeline.set_index(["step", "site"])["samples"]
    assert (samples[2, "1"], samples[4, "1"]) == (4 * 32, 2 * 32)


def test_activation_checkpointing_is_counted_once() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)

    outer = Checkpointed()
    with reludiag.Monitor(outer, optimizer, every=1) as monitor:
        train(outer, optimizer, 1)
    assert set(monitor.diagnose().units["samples"]) == {32}


def test_without_an_optimizer_the_caller_counts() -> None:
    model = mlp()
    with reludiag.Monitor(model, every=2) as monitor:
        for _ in range(4):
            model(torch.randn(4, 8))
            monitor.step()
    diagnosis = monitor.diagnose()
    assert monitor.snapshots == [0, 2, 4]
    assert diagnosis.timeline["learning_rate"].isna().all()


def test_a_short_last_window_takes_in_the_one_before() -> None:
    """One step after the last snapshot: four samples are not enough to call a unit dead."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=10) as monitor:
        train(model, optimizer, 21)
    assert monitor.snapshots == [0, 10, 20, 21]
    assert set(monitor.diagnose().units["samples"]) == {11 * 32}


def killed_at(step: int, steps: int, every: int = 10) -> reludiag.Diagnosis:
    """Five units that fire in every batch, and are killed after a step."""
    model = mlp()
    with torch.no_grad():
        model[0].bias[:5] = 9.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=every, warn_over=None) as monitor:
        train(model, optimizer, step)
        with torch.no_grad():
            model[0].bias[:5] = -100.0
        train(model, optimizer, steps - step)
    return monitor.diagnose()


@pytest.mark.parametrize("steps", [15, 16, 19])
def test_a_last_window_of_half_the_steps_is_judged_by_itself(steps: int) -> None:
    diagnosis = killed_at(10, steps)
    killed = diagnosis.units.query("site == '1' and unit < 5")
    assert (killed["verdict"] == "dead").all() and (killed["died_step"] == steps).all()
    last = diagnosis.timeline.query(f"step == {steps}")
    assert set(last["window_start"]) == {10}
    assert set(last["samples"]) == {32 * (steps - 10)}


def test_units_that_fell_silent_in_a_short_last_window_are_told() -> None:
    diagnosis = killed_at(20, 24)
    killed = diagnosis.units.query("site == '1' and unit < 5")
    assert not (killed["verdict"] == "dead").any()
    note = next(note for note in diagnosis.head.notes if note.startswith("In the last 4 steps, "))
    assert int(note.split()[5]) >= 5 and "run `scan`, or pass a probe, to tell" in note
    assert set(diagnosis.timeline.query("step == 24")["window_start"]) == {10}
    assert [window.steps for window in life_windows(diagnosis.timeline)] == ["0", "0-10", "10-24"]
    assert not any("more unit" in note for note in killed_at(30, 30).head.notes)


def test_a_window_without_a_probe_says_so_and_gives_no_bound() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, every=2) as monitor:
        train(model, optimizer, 4)
    diagnosis = monitor.diagnose()
    assert diagnosis.units["firing_rate_upper"].isna().all()
    assert "Without a probe" in str(diagnosis)


def test_a_run_that_diverges_is_diverged_not_dead() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e6)
    for probe in (None, PROBE):
        with reludiag.Monitor(model, optimizer, every=5, probe=probe) as monitor:
            train(model, optimizer, 20)
        diagnosis = monitor.diagnose()
        assert diagnosis.diverged
        assert diagnosis.dead == 0
        assert set(diagnosis.units["verdict"]) == {"nonfinite"}
        assert "DIVERGED" in str(diagnosis)


def test_training_is_the_same_to_the_last_bit() -> None:
    def run(monitored: bool, probe: Any) -> tuple[list[float], dict[str, Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(16, 4),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        if not monitored:
            return train(model, optimizer, 12), model.state_dict()
        with reludiag.Monitor(model, optimizer, every=4, probe=probe):
            return train(model, optimizer, 12), model.state_dict()

    losses, state = run(False, None)
    for probe in (None, PROBE, [PROBE, (PROBE, None)]):
        monitored_losses, monitored_state = run(True, probe)
        assert monitored_losses == losses
        assert all(torch.equal(state[key], monitored_state[key]) for key in state)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("probe", [None, PROBE], ids=["window", "probe"])
def test_no_hook_is_left(error: type[BaseException] | None, probe: Any, tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def fail(step: int) -> None:
        if step == 5 and error is not None:
            raise error

    def loop() -> None:
        with reludiag.Monitor(
            model, optimizer, path=tmp_path / "r", every=2, probe=probe
        ) as monitor:
            train(model, optimizer, 6, fail)
        assert monitor.snapshots[-1] == 6

    if error is None:
        loop()
    else:
        with pytest.raises(error):
            loop()
        diagnosis = reludiag.load(tmp_path / "r")
        assert diagnosis.head.status == f"interrupted by {error.__name__}"
        assert diagnosis.timeline["step"].max() == 5
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert torch._C._len_torch_dispatch_stack() == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "r"]  # no log beside a closed recording


def test_a_forward_that_raises_leaves_the_monitor_working() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.mood: type[BaseException] | None = None

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            if self.mood is not None:
                raise self.mood
            return y

    model = Moody()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, every=1) as monitor:
        for mood in (ValueError, None, None, KeyboardInterrupt, None, None):
            model.mood = mood
            with contextlib.suppress(ValueError, KeyboardInterrupt):
                train(model, optimizer, 1)
    assert monitor.snapshots == [0, 1, 2, 3, 4]
    assert list(monitor.diagnose().sites["site"]) == ["body.1", "body.3"]


def test_a_monitored_model_can_be_copied_and_saved() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, every=1) as monitor:
        twin = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        for other in (twin, loaded, pickle.loads(pickle.dumps(model))):
            other(torch.randn(1000, 8))
        train(model, optimizer, 1)
    assert set(monitor.diagnose().units["samples"]) == {32}


def test_a_submodule_called_on_its_own_is_one_site() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, every=3) as monitor:
        for _ in range(3):
            model[4](model[3](model[2](model[1](model[0](torch.randn(4, 8)))))).sum().backward()
            optimizer.step()
    assert list(monitor.diagnose().sites["site"]) == ["1", "3"]
    assert set(monitor.diagnose().units["samples"]) == {12}


# What is not watched


class Healthy(nn.Module):
    """All of its units fire in every batch; on the way `left` or `right`."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.relu = nn.Linear(8, 6), nn.Linear(8, 6), nn.ReLU()
        self.frozen = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        for linear in (self.left, self.right, self.frozen[0]):
            nn.init.ones_(linear.bias)

    def forward(self, x: Tensor, right: bool = False) -> Tensor:
        return self.frozen(self.relu((self.right if right else self.left)(x)))


@pytest.mark.parametrize("stats_every", [1, 7, 16])
def test_every_sample_is_counted_though_a_healthy_network_is_hardly_watched(
    stats_every: int,
) -> None:
    model = Healthy()
    model.frozen.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = evaluated = frozen = 0
    hooks = []
    with reludiag.Monitor(model, optimizer, every=50, stats_every=stats_every) as monitor:
        for step in range(150):
            rows = 8 + step % 5
            for _ in range(1 + step % 2):  # gradients are accumulated over two batches
                model(torch.randn(rows, 8)).sum().backward()
                seen += rows * (step >= 100)
                frozen += 1
            optimizer.step()
            if step % 3 == 0:
                model.eval()
                with torch.set_grad_enabled(step % 2 == 0):
                    model(torch.randn(3, 8))
                model.train()
                model.frozen.eval()
                evaluated += 1
            hooks.append(len(model.relu._forward_hooks))
    assert (0 in hooks) == (stats_every > 1)
    assert not model.relu._forward_hooks and not model._forward_hooks
    diagnosis = monitor.diagnose()
    assert dict(zip(diagnosis.sites["site"], diagnosis.sites["samples"], strict=True)) == {
        "relu": seen,
        "frozen.1": 0,
    }
    assert f"Left out: {evaluated} passes in evaluation mode." in diagnosis.head.notes
    assert any(
        note.startswith(f"Left out: {frozen} rectifier calls") for note in diagnosis.head.notes
    )
    counted = {50: 50, 7: 7, 16: 3}.get(stats_every, 50)
    assert diagnosis.units["counted"].iloc[0] == pytest.approx(counted * 15, rel=0.2)


def test_a_path_not_yet_taken_keeps_the_model_watched() -> None:
    model = Healthy()
    with torch.no_grad():
        model.right.bias[2] = -100.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=100) as monitor:
        for step in range(200):
            model(torch.randn(8, 8), right=step in {5, 111}).sum().backward()
            optimizer.step()
    diagnosis = monitor.diagnose()
    units = diagnosis.units.set_index("site")
    assert set(units.loc["relu@left", "samples"]) == {99 * 8}
    assert set(units.loc["relu@right", "samples"]) == {8}
    assert list(units.loc["relu@right", "verdict"] == "dead") == [u == 2 for u in range(6)]


def test_a_rectifier_that_was_never_called_keeps_the_model_watched() -> None:
    model = Healthy()
    model.late = nn.ReLU()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=100) as monitor:
        for step in range(100):
            y = model(torch.randn(8, 8))
            (model.late(y) if step == 77 else y).sum().backward()
            optimizer.step()
    sites = monitor.diagnose().sites.set_index("site")
    assert sites.loc["late", "samples"] == 8


def test_a_unit_that_dies_while_all_others_live_is_found_in_its_window() -> None:
    model = Healthy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=50) as monitor:
        for step in range(200):
            model(torch.randn(8, 8)).sum().backward()
            optimizer.step()
            if step == 102:
                with torch.no_grad():
                    model.left.bias[4] = -100.0
    units = monitor.diagnose().units
    dead = units[units["verdict"] == "dead"]
    assert list(zip(dead["site"], dead["unit"], dead["died_step"], strict=True)) == [
        ("relu", 4, 200)
    ]


# What makes no sense


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(reludiag.UsageError, match="every=0"):
        reludiag.Monitor(model, optimizer, every=0)
    with pytest.raises(reludiag.UsageError, match=r"every=1\.5"):
        reludiag.Monitor(model, optimizer, every=1.5)
    with pytest.raises(reludiag.UsageError, match="the model first"):
        reludiag.Monitor(optimizer, model)
    with pytest.raises(reludiag.UsageError, match="probe=str"):
        reludiag.Monitor(model, optimizer, probe="x.npy")
    with pytest.raises(reludiag.UsageError, match="probe=int"):
        reludiag.Monitor(model, optimizer, probe=3)
    with pytest.raises(reludiag.UsageError, match="at least one batch"):
        reludiag.Monitor(model, optimizer, probe=[])
    with pytest.raises(reludiag.ModelError, match="no rectifier"):
        reludiag.Monitor(nn.Linear(2, 2))
    with pytest.raises(reludiag.DataError, match="refused batch 0"):
        reludiag.Monitor(model, optimizer, probe=torch.randn(2, 3)).__enter__()
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(reludiag.RecordingError, match="is not a folder"):
        reludiag.Monitor(model, optimizer, path=tmp_path / "no" / "run").__enter__()
    with (
        pytest.raises(reludiag.UsageError, match="steps are counted by"),
        reludiag.Monitor(model, optimizer) as monitor,
    ):
        monitor.step()
    with pytest.raises(reludiag.UsageError, match="already used"):
        monitor.__enter__()


def test_a_run_of_which_nothing_is_known_yet_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    with reludiag.Monitor(mlp(), path=path):
        assert "No unit has been observed yet" in str(reludiag.load(path))
    assert "No unit has been observed yet" in str(reludiag.load(path))
    with pytest.raises(reludiag.UsageError, match="nothing is recorded yet"):
        reludiag.Monitor(mlp()).diagnose()


def test_an_old_recording_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    path.write_text("precious")
    model = mlp()
    with pytest.raises(reludiag.RecordingError, match="already exists"):
        reludiag.Monitor(model, path=path).__enter__()
    assert path.read_text() == "precious"
    with reludiag.Monitor(model, path=path, overwrite=True) as monitor:
        model(torch.randn(2, 8))
        monitor.step()
    assert reludiag.load(path).timeline["step"].max() == 1


def test_a_full_disk_ends_the_recording_but_not_the_run(tmp_path: Path) -> None:
    model, path = mlp(), tmp_path / "run.reludiag"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(RuntimeWarning, match="watching stopped after step"),
        reludiag.Monitor(model, optimizer, path=path, every=1) as monitor,
    ):
        train(model, optimizer, 1)
        monitor._writer._db.execute("PRAGMA max_page_count = 1")  # what a full disk is to SQLite
        assert len(train(model, optimizer, 300)) == 300
    assert 1 < len(monitor.snapshots) < 300
    assert reludiag.load(path).timeline["step"].max() == monitor.snapshots[-1]


# Killed


# One interpreter, which forks a training process a trial, and kills it at a random moment.
KILLER = """
import os, random, signal, sys, time
import torch, torch._dynamo, reludiag
import reludiag.monitoring.monitor  # before forking: once, not 20 times
from torch import nn

def train(path, acknowledged, probe):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    probe = torch.randn(32, 8) if probe else None
    with reludiag.Monitor(model, optimizer, path=path, every=1, probe=probe) as monitor:
        while True:
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
            os.write(acknowledged, b"%d\\n" % monitor.snapshots[-1])

rng = random.Random(0)
for trial in range(20):
    path = os.path.join(sys.argv[1], str(trial))
    acknowledged = os.open(path + ".acknowledged", os.O_CREAT | os.O_WRONLY)
    child = os.fork()
    if not child:
        train(path, acknowledged, trial % 2)
    while not os.path.getsize(path + ".acknowledged"):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "training failed"
        time.sleep(0.01)
    time.sleep(rng.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_no_acknowledged_snapshot(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLER), tmp_path], check=True)
    for trial in range(20):
        path = tmp_path / str(trial)
        acknowledged = int(Path(f"{path}.acknowledged").read_text().split()[-1])
        diagnosis = reludiag.load(path)
        steps = list(diagnosis.timeline["step"].unique())
        assert steps == list(range(len(steps)))
        assert len(steps) > acknowledged > 0
        assert diagnosis.head.status == "running"
        assert "was killed" in str(diagnosis)
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_recording_in_a_folder_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    model, folder = mlp(), tmp_path / "kept"
    folder.mkdir()
    with reludiag.Monitor(model, path=folder / "run") as monitor:
        model(torch.randn(2, 8))
        monitor.step()
    folder.chmod(0o555)
    try:
        assert reludiag.load(folder / "run").timeline["step"].max() == 1
    finally:
        folder.chmod(0o755)


def test_a_unit_that_fired_where_only_that_was_watched_is_not_called_rare() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1)), torch.randn(16, 8, 5)
    with torch.no_grad():
        model[0].bias -= 0.9
        fired = (model[:2](x) > 0).flatten(0, 1).any(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=16) as monitor:
        for batch in x:
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()
    units = monitor.diagnose().units
    assert not (units.verdict == "rare").any()
    assert list(units.verdict == "dead") == (~fired).tolist()


def test_hooks_of_the_user_run_in_the_passes_of_the_training_alone() -> None:
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Linear(4, 8)),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 1),
    )
    nn.utils.prune.l1_unstructured(model[2], "weight", amount=0.2)
    calls: list[str] = []
    for path, place in (("hidden", model[1]), ("last", model[4])):
        place.register_forward_pre_hook(lambda m, x, path=path: calls.append(f"before {path}"))
        place.register_forward_hook(lambda m, x, y, path=path: calls.append(f"after {path}"))
    with torch.no_grad():
        model[0].bias[:3] = -100.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with reludiag.Monitor(model, optimizer, warn_over=None) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    assert calls == 2 * ["before hidden", "after hidden", "before last", "after last"]
    assert monitor.diagnose().sites["born_dead"].tolist()[0] >= 3

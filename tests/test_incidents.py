"""Incidents: single steps that went wrong, and weights that something else changed."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reludiag
from reludiag.causes.explain import explain
from reludiag.recording import RecordedRun, read_recording
from reludiag.recording.observations import (
    Edit,
    GradientNorm,
    Jump,
    Observations,
    TrainingInput,
)
from tests.test_causes import dying, run_of

Step = Callable[[int, nn.Module, Tensor], Tensor]
"""Of a step, the model and the batch: the batch as it is used. It may change the model."""


def trained(
    tmp_path: Path,
    between: Step,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    steps: int = 40,
    **settings: Any,
) -> tuple[Observations, nn.Module]:
    """The observations of a small run; `between` is called before the forward of each step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
        model.append(nn.Linear(24, 1))
        batches = torch.randn(steps, 32, 8)
    optim = optimizer(model.parameters(), **{"lr": 0.01, **settings})
    path = tmp_path / "run"
    with reludiag.Monitor(model, optim, path=path, every=20, probe=batches[0], warn_over=None):
        for step, x in enumerate(batches, start=1):
            target = x.sum(1, keepdim=True)
            with torch.no_grad():
                x = between(step, model, x)
            optim.zero_grad()
            (model(x) - target).square().mean().backward()
            optim.step()
    return read_recording(path).observations, model


def as_it_is(step: int, model: nn.Module, x: Tensor) -> Tensor:
    return x


def broken_batch(step: int, model: nn.Module, x: Tensor) -> Tensor:
    return 30 * x if step == 33 else x


def test_a_broken_batch_is_a_jump_at_its_step(tmp_path: Path) -> None:
    seen, _ = trained(tmp_path, broken_batch)
    assert [jump.step for jump in seen.jumps if jump.is_sudden] == [33]
    jump = next(jump for jump in seen.jumps if jump.step == 33)
    assert jump.ratio > 50 and jump.before < 5


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_steps_as_usual_are_no_jump_and_no_edit(optimizer: Any, tmp_path: Path) -> None:
    seen, _ = trained(tmp_path, as_it_is, optimizer, lr=1e-3)
    assert seen.jumps and max(jump.ratio for jump in seen.jumps) < 5
    assert seen.edits == ()


def test_a_high_learning_rate_is_no_jump(tmp_path: Path) -> None:
    schedule: list[Any] = []

    def scheduled(parameters: Any, lr: float) -> torch.optim.Optimizer:
        schedule.append(torch.optim.SGD(parameters, lr=lr))
        return schedule[0]

    def raised(step: int, model: nn.Module, x: Tensor) -> Tensor:
        schedule[0].param_groups[0]["lr"] = 0.1 if step == 30 else 1e-3
        return x

    seen, _ = trained(tmp_path, raised, scheduled)
    assert not any(jump.is_sudden for jump in seen.jumps)


def by_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5


def in_place(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.clamp_(-0.02, 0.02)


def by_state(model: nn.Module) -> None:
    model.load_state_dict({name: -tensor for name, tensor in model.state_dict().items()})


def by_copy(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.copy_(torch.floor(parameter / 0.1) * 0.1)


@pytest.mark.parametrize("edit", [by_data, in_place, by_state, by_copy])
def test_an_edit_is_seen_however_it_is_made(
    edit: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    def edited(step: int, model: nn.Module, x: Tensor) -> Tensor:
        if step == 26:
            edit(model)
        return x

    (seen,) = trained(tmp_path, edited)[0].edits
    assert (seen.step, seen.times) == (25, 1)
    assert seen.modules == ("0", "2", "4")
    assert seen.size > 0.3
    assert seen.size > 5 * seen.update


def test_the_size_of_an_edit_is_relative_to_the_weights(tmp_path: Path) -> None:
    def halved(step: int, model: nn.Module, x: Tensor) -> Tensor:
        if step == 7:
            model[2].weight.mul_(0.5)  # type: ignore[index,union-attr]
        return x

    (seen,) = trained(tmp_path, halved)[0].edits
    assert seen.modules == ("2",)
    assert seen.size == pytest.approx(0.5, rel=0.05)  # beside the weights one step earlier


def test_edits_after_each_step_are_counted_by_window(tmp_path: Path) -> None:
    def shrunk(step: int, model: nn.Module, x: Tensor) -> Tensor:
        for parameter in model.parameters():
            parameter.mul_(0.99)
        return x

    seen = trained(tmp_path, shrunk)[0].edits
    assert [edit.times for edit in seen] == [20, 20]


def test_weights_that_are_put_aside_and_brought_back_are_not_edited(tmp_path: Path) -> None:
    def swapped(step: int, model: nn.Module, x: Tensor) -> Tensor:
        kept = [parameter.clone() for parameter in model.parameters()]
        for parameter, weight in zip(model.parameters(), kept, strict=True):
            parameter.zero_()
            parameter.copy_(weight)
        return x

    assert trained(tmp_path, swapped)[0].edits == ()


def test_two_optimizers_of_one_parameter_do_not_edit_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with reludiag.Monitor(model, [first, second], path=tmp_path / "run", every=5) as monitor:
        for _ in range(10):
            model(torch.randn(16, 4)).square().mean().backward()
            first.step()
            second.step()
    assert monitor.snapshots[-1] == 10
    assert read_recording(tmp_path / "run").observations.edits == ()


def test_watching_every_step_leaves_a_training_as_it_was(tmp_path: Path) -> None:
    _, watched = trained(tmp_path, as_it_is, momentum=0.9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
        model.append(nn.Linear(24, 1))
        batches = torch.randn(40, 32, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for x in batches:
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    for one, other in zip(watched.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not optimizer._optimizer_step_pre_hooks


def test_the_gradient_of_measured_steps_is_recorded(tmp_path: Path) -> None:
    seen, _ = trained(tmp_path, as_it_is)
    assert [each.step for each in seen.gradient_norms] == [1, 20, 40]
    assert all(each.norm > 0 and math.isfinite(each.norm) for each in seen.gradient_norms)


# Causes

JUMP = Jump(step=101, ratio=300.0, before=2.0, size=1.5)
EDIT = Edit(step=100, times=1, size=0.8, update=0.005, modules=("0", "2"))
NORMS = (GradientNorm(1, 1.4), GradientNorm(90, 0.2), GradientNorm(110, 90.0))


def cause_of(
    deaths: dict[int, int],
    rates: list[tuple[int, float]] | None = None,
    **observed: Any,
) -> reludiag.Cause:
    """Of 20 windows of ten steps and 100 units."""
    run = run_of(dying(20, deaths), rates or [(1, 0.1)])
    run = replace(run, observations=Observations(gradient_norms=NORMS, **observed))
    return explain(run).causes[0]


AT_THE_TIME = {10: 30, 11: 4}
BEFORE_AND_LATER = {0: 12, 3: 10, 10: 10, 14: 10}


def test_deaths_with_a_jump_are_of_an_outlier() -> None:
    cause = cause_of(AT_THE_TIME, jumps=(JUMP,))
    assert (cause.kind, cause.identifiable, cause.share) == ("outlier", True, 1.0)
    assert "step 101" in cause.sentence
    assert cause.advice.startswith("clip the norm of the gradients at 2,")


def test_deaths_with_an_edit_are_of_the_edit() -> None:
    cause = cause_of(AT_THE_TIME, edits=(EDIT,))
    assert (cause.kind, cause.identifiable, cause.share) == ("edited", True, 1.0)
    assert "after step 100" in cause.sentence and "'2'" in cause.sentence


def test_an_edit_makes_the_gradients_large_and_is_the_cause() -> None:
    assert cause_of(AT_THE_TIME, jumps=(JUMP,), edits=(EDIT,)).kind == "edited"


@pytest.mark.parametrize("observed", [{"jumps": (JUMP,)}, {"edits": (EDIT,)}])
def test_deaths_at_all_times_are_not_of_an_incident(observed: dict[str, Any]) -> None:
    assert cause_of(BEFORE_AND_LATER, **observed).kind not in ("outlier", "edited")


@pytest.mark.parametrize("observed", [{"jumps": (JUMP,)}, {"edits": (EDIT,)}])
def test_an_incident_in_the_first_window_is_likely_and_not_proved(observed: Any) -> None:
    early = {key: tuple(replace(each, step=4) for each in of) for key, of in observed.items()}
    cause = cause_of({0: 40}, **early)
    assert cause.kind in ("outlier", "edited")
    assert not cause.identifiable


def test_a_jump_after_the_rate_rose_is_of_the_rate() -> None:
    cause = cause_of(AT_THE_TIME, [(1, 0.1), (95, 3.0), (98, 0.1)], jumps=(JUMP,))
    assert cause.kind != "outlier"


@pytest.mark.parametrize(
    "jump",
    [
        replace(JUMP, ratio=9.0),
        replace(JUMP, before=150.0),  # it grew from step to step
        replace(JUMP, size=0.001),
    ],
)
def test_what_is_no_sudden_jump_is_no_outlier(jump: Jump) -> None:
    assert cause_of(AT_THE_TIME, jumps=(jump,)).kind != "outlier"


@pytest.mark.parametrize("edit", [replace(EDIT, size=0.02), replace(EDIT, size=0.3, update=0.2)])
def test_small_edits_are_no_cause(edit: Edit) -> None:
    assert cause_of(AT_THE_TIME, edits=(edit,)).kind != "edited"


def test_weights_held_by_edits_in_the_whole_run_are_likely_a_cause() -> None:
    held = tuple(Edit(10 * window + 1, 10, 0.03, 0.01, ("0",)) for window in range(20))
    cause = cause_of({2: 10, 5: 15, 9: 20, 14: 10}, edits=held)
    assert (cause.kind, cause.identifiable) == ("edited", False)
    less = tuple(replace(edit, size=0.005) for edit in held)
    assert cause_of({2: 10, 5: 15, 9: 20, 14: 10}, edits=less).kind != "edited"


def test_a_recording_without_incidents_names_none() -> None:
    run: RecordedRun = run_of(np.asarray(dying(20, AT_THE_TIME)), [(1, 0.1)])
    assert explain(run).causes[0].kind not in ("outlier", "edited")


# What lasts is no incident


def inputs(*stds: float) -> tuple[TrainingInput, ...]:
    """Seen in a batch of each of 20 windows."""
    return tuple(TrainingInput(10 * (i + 1), 0.02 * (-1) ** i, std) for i, std in enumerate(stds))


@pytest.mark.parametrize("last", [2.0, 6.0])
def test_deaths_with_inputs_that_are_others_from_then_on_are_of_the_input(last: float) -> None:
    seen = inputs(*[1.0] * 10, *[last] * 10)
    cause = cause_of(AT_THE_TIME, jumps=(JUMP,), training_inputs=seen)
    assert (cause.kind, cause.identifiable) == ("input_shift", False)
    (change,) = cause.changes
    assert (change.setting, change.after) == ("data", "as before")


@pytest.mark.parametrize(
    "stds",
    [
        [1.0] * 20,
        [1.0] * 10 + [30.0] + [1.0] * 9,  # one batch
        [1.0, 1.4] * 10,
    ],
)
def test_deaths_with_a_jump_among_inputs_as_before_are_of_the_outlier(stds: list[float]) -> None:
    cause = cause_of(AT_THE_TIME, jumps=(JUMP,), training_inputs=inputs(*stds))
    assert (cause.kind, cause.identifiable) == ("outlier", True)


def test_gradients_that_stay_large_after_a_jump_are_not_surely_of_one_batch() -> None:
    run = run_of(dying(20, AT_THE_TIME), [(1, 0.1)])
    norms = (*NORMS, GradientNorm(120, 70.0))
    run = replace(run, observations=Observations(gradient_norms=norms, jumps=(JUMP,)))
    cause = explain(run).causes[0]
    assert (cause.kind, cause.identifiable) == ("outlier", False)


def test_units_that_an_edit_silences_on_running_statistics_alone_are_of_the_edit() -> None:
    run = run_of(dying(20, {10: 60}), [(1, 0.1)])
    fires = np.arange(100) >= 20  # on the statistics of the batch
    site = replace(run.sites[0], on_batch=dict.fromkeys(range(21), fires))
    run = replace(run, sites=(site,), observations=Observations(edits=(EDIT,)))
    cause = explain(run).causes[0]
    assert (cause.kind, cause.identifiable, cause.share) == ("edited", True, 1.0)

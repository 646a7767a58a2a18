"""No steps: a run in which no weight changed says so, and never that nothing is wrong."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import reludiag

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Step = Callable[[nn.Module, torch.optim.Optimizer], object]


def run(step: Step, low: float = 0.0, lr: float = 0.1) -> reludiag.Diagnosis:
    """A run of five batches; units of the first layer start at this bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    nn.init.constant_(model[0].bias, low)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing was watched
        with reludiag.Monitor(model, optimizer, every=2, probe=X) as monitor:
            for _ in range(5):
                step(model, optimizer)
        return monitor.diagnose()


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, factor: float = 1.0) -> None:
    optimizer.zero_grad()
    (factor * model(X).square().mean()).backward()


def skipped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model, optimizer)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model, optimizer)
    optimizer.step()


def overflown(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model, optimizer, float("inf"))


@pytest.mark.parametrize("low", [0.0, -2.0])
def test_a_run_without_steps_is_never_called_healthy(low: float) -> None:
    cause = run(skipped, low).causes[0]
    assert (cause.kind, cause.site, cause.identifiable) == ("no_steps", None, False)
    assert (cause.changes[0].setting, cause.changes[0].after) == ("steps", "taken")


def test_what_killed_units_at_birth_is_named_beside_the_missing_steps() -> None:
    diagnosis = run(skipped, -2.0)
    assert {cause.kind for cause in diagnosis.causes} == {"no_steps", "initialization"}
    changes = diagnosis.causes[0].changes
    assert [change.setting for change in changes] == ["steps", "init.bias"]


def test_gradients_that_overflow_are_named_by_their_parameters() -> None:
    cause = run(overflown).causes[0]
    assert cause.kind == "no_steps"
    assert "gradients are not finite" in cause.sentence
    assert "'0.weight'" in cause.advice and "init_scale" in cause.advice


def test_a_forward_pass_that_is_not_finite_is_named_by_its_first_rectifier() -> None:
    cause = run(overflown, float("nan")).causes[0]
    assert cause.kind == "no_steps"  # a lower rate, as after a divergence, would change nothing
    assert "'1' is the first rectifier" in cause.advice


def test_steps_at_a_rate_of_0_change_nothing() -> None:
    cause = run(stepped, lr=0.0).causes[0]
    assert cause.kind == "no_steps"
    assert [(change.setting, change.before) for change in cause.changes] == [("lr", 0.0)]


def test_steps_that_are_taken_are_no_such_cause() -> None:
    assert {cause.kind for cause in run(stepped).causes} == {"none"}


def test_weights_that_something_else_trains_are_not_judged_by_it() -> None:
    def others(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        backward(model, optimizer)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad  # type: ignore[operator]

    assert run(others).causes == ()


def test_where_some_steps_are_skipped_the_others_are_judged() -> None:
    count = iter(range(100))

    def some(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        backward(model, optimizer)
        if next(count) >= 2:
            optimizer.step()

    assert "no_steps" not in {cause.kind for cause in run(some).causes}

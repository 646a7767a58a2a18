"""What happened to a model before the first step, or after the last snapshot, which none shows."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import reludiag
from reludiag.causes.cause import Cause

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
End = Callable[[nn.Sequential], None]


def cause_of(after: End, steps: int = 10) -> Cause:
    """Of a healthy training whose steps are each followed by `after`, from the last one on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with reludiag.Monitor(model, optimizer, every=5, probe=X, evidence=False) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            after(model)
    return monitor.diagnose().causes[0]


def pruned(model: nn.Sequential) -> None:
    model[0].weight[:10] = 0  # type: ignore[operator, index]


def recalibrated(model: nn.Sequential) -> None:
    model[1].running_mean += 5  # type: ignore[operator]


def evaluated(model: nn.Sequential) -> None:
    model.eval()
    model(X)


def passed_once_more(model: nn.Sequential) -> None:
    model(X)


@pytest.mark.parametrize("after", [pruned, recalibrated])
def test_of_a_model_that_was_changed_after_the_last_snapshot_nobody_is_sure(after: End) -> None:
    cause = cause_of(after)
    assert (cause.kind, cause.identifiable) == ("none", False)
    assert "changed after the last snapshot" in cause.sentence
    assert cause.confirm.startswith("reludiag scan") and not cause.advice


@pytest.mark.parametrize("after", [evaluated, passed_once_more])
@pytest.mark.parametrize("steps", [10, 12])
def test_a_model_that_is_only_used_afterwards_is_as_the_snapshot_shows(
    after: End, steps: int
) -> None:
    cause = cause_of(after, steps)
    assert (cause.kind, cause.identifiable) == ("none", True)


def test_what_was_not_finite_before_the_first_step_is_of_no_learning_rate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 1))
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)  # type: ignore[operator]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with reludiag.Monitor(model, optimizer, every=5, probe=X, warn_over=None) as monitor:
        for _ in range(5):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
    cause = monitor.diagnose().causes[0]
    assert (cause.kind, cause.identifiable, cause.changes) == ("divergence", False, ())
    assert "before the first step" in cause.sentence and "checkpoint" in cause.advice

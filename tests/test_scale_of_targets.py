"""The scale of the targets: named where a squared error shows them far from 0, and only there."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reludiag
from reludiag.recording import read_recording

X = torch.randn(256, 6, generator=torch.Generator().manual_seed(1))
Y = torch.stack([(X[:, 0] * X[:, 1]).sin(), X[:, 2].abs() - X[:, 3]], dim=1)
Y = (Y - Y.mean(0)) / Y.std(0)
Loss = Callable[[Tensor, Tensor], Tensor]


def run(
    targets: Tensor,
    path: Path | None = None,
    lr: float = 0.1,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    loss: Loss = functional.mse_loss,
    steps: int = 40,
    outputs: int = 2,
) -> reludiag.Diagnosis:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, outputs))
    )
    trained = optimizer(model.parameters(), lr=lr)  # type: ignore[call-arg]
    order = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"every": 5, "probe": X, "evidence": 1.0, "path": path}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that units died
        with reludiag.Monitor(model, trained, **options) as monitor:
            for _ in range(steps):
                chosen = torch.randint(0, len(X), (64,), generator=order)
                trained.zero_grad()
                loss(model(X[chosen]), targets[chosen]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1e3)
                trained.step()
    return monitor.diagnose()


@pytest.mark.parametrize(("scale", "offset"), [(20.0, 0.0), (1.0, 20.0), (10.0, -20.0)])
def test_targets_far_from_0_are_named_with_their_mean_and_deviation(
    scale: float, offset: float
) -> None:
    assert {cause.kind for cause in run(Y).causes} == {"none"}  # at the same rate
    cause = run(scale * Y + offset).causes[0]
    assert (cause.kind, cause.identifiable) == ("scale_of_targets", False)
    change = cause.changes[0]
    assert (change.setting, change.after) == ("targets", "standardized")
    mean, std = map(float, str(cause.evidence[1].value).split(", "))
    assert mean == pytest.approx(offset, abs=0.2 * scale)
    assert std == pytest.approx(scale, rel=0.2)


def test_a_rate_that_kills_on_standardized_targets_is_the_rate() -> None:
    assert run(Y, lr=1.5).causes[0].kind in {"learning_rate", "divergence"}


def test_a_rate_that_would_kill_on_standardized_targets_too_is_the_rate() -> None:
    assert run(5 * Y, lr=3.0).causes[0].kind in {"learning_rate", "divergence"}


def test_steps_that_do_not_grow_with_the_targets_are_not_blamed_on_them() -> None:
    causes = run(5 * Y, lr=0.1, optimizer=torch.optim.Adam).causes
    assert causes[0].kind == "learning_rate"


def test_a_cross_entropy_shows_no_targets() -> None:
    classes = (Y[:, 0] > 0).long() + 2 * (Y[:, 1] > 0).long()
    loss = functional.cross_entropy
    causes = run(classes, lr=5.0, loss=loss, outputs=4).causes
    assert "scale_of_targets" not in {cause.kind for cause in causes}


def test_a_loss_that_is_no_squared_error_shows_no_targets() -> None:
    causes = run(Y, lr=2.0, loss=lambda y, t: 50 * functional.l1_loss(y, t)).causes
    assert "scale_of_targets" not in {cause.kind for cause in causes}


def test_a_divergence_by_the_targets_is_not_answered_with_the_rate() -> None:
    cause = run(1e4 * Y, lr=0.1, steps=10).causes[0]
    if cause.kind == "divergence":
        assert cause.changes[0].setting == "targets"
    else:
        assert cause.kind == "scale_of_targets"


def test_what_the_output_and_its_gradient_were_is_recorded_exactly(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    run(Y + 20, path, steps=1)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
    )
    chosen = torch.randint(0, len(X), (64,), generator=torch.Generator().manual_seed(0))
    y, t = model(X[chosen]).detach().double(), (Y + 20)[chosen].double()
    gradient = 2 * (y - t) / y.numel()
    (seen,) = read_recording(path).observations.output_gradients
    assert (seen.step, seen.output, seen.count) == (1, 0, 128)
    expected = (y.mean(), y.std(correction=0), gradient.mean(), gradient.std(correction=0))
    found = (seen.mean, seen.std, seen.gradient_mean, seen.gradient_std)
    assert found == pytest.approx([float(each) for each in expected], rel=1e-5, abs=1e-7)
    covariance = ((y - y.mean()) * (gradient - gradient.mean())).mean()
    assert seen.covariance == pytest.approx(float(covariance), rel=1e-4, abs=1e-9)


def test_a_run_with_the_measurement_trains_the_same_weights() -> None:
    def trained(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step() -> None:
            optimizer.zero_grad()
            y = model(X)
            y.mul_(2)  # an output that the training changes in place
            functional.mse_loss(y, Y).backward()
            optimizer.step()

        if watched:
            with reludiag.Monitor(model, optimizer, every=1, probe=X):
                for _ in range(5):
                    step()
        else:
            for _ in range(5):
                step()
        return [parameter.detach() for parameter in model.parameters()]

    for one, other in zip(trained(True), trained(False), strict=True):
        assert torch.equal(one, other)

"""The cause regularization: weight decay and penalties in the loss, told from the learning rate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import reludiag

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(5))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()


def mlp(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [[nn.BatchNorm1d(32)] if norm else [] for _ in range(2)]
    return nn.Sequential(
        *(nn.Linear(8, 32), *norms[0], nn.ReLU()),
        *(nn.Linear(32, 32), *norms[1], nn.ReLU()),
        nn.Linear(32, 4),
    )


Penalty = Callable[[list[Tensor]], Tensor]


def watched(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    steps: int = 150,
    norm: bool = False,
    penalty: Penalty | None = None,
    probe: bool = True,
    path: Path | None = None,
) -> reludiag.Diagnosis:
    model = mlp(norm)
    outputs: list[Tensor] = []
    for module in model:
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, args, output: outputs.append(output))
    order, steps_of = torch.Generator().manual_seed(1), optimizer(model)
    settings: dict[str, Any] = {"probe": X if probe else None, "evidence": False}
    settings |= {"every": 10, "path": path, "warn_over": None}
    with reludiag.Monitor(model, steps_of, **settings) as monitor:
        for _ in range(steps):
            chosen = torch.randint(0, len(X), (32,), generator=order)
            outputs.clear()
            steps_of.zero_grad()
            loss = cross_entropy(model(X[chosen]), Y[chosen])
            (loss + (penalty(outputs) if penalty else 0)).backward()
            steps_of.step()
    return monitor.diagnose()


def adam(lr: float, weight_decay: float = 0.0) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay)


def without_biases(model: nn.Module) -> torch.optim.Optimizer:
    parameters = [*model.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.3},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.1)


def first(diagnosis: reludiag.Diagnosis) -> Any:
    return diagnosis.causes[0]


def l1(weight: float) -> Penalty:
    return lambda outputs: weight * torch.stack([out.mean() for out in outputs]).sum()


def squares(weight: float) -> Penalty:
    return lambda outputs: (
        weight * torch.stack([out.square().sum(1).mean() for out in outputs]).sum()
    )


def weights(diagnosis: reludiag.Diagnosis) -> dict[str, Any]:
    return {row.what: row.value for row in first(diagnosis).evidence}


def test_a_decay_that_spares_the_biases_is_named_with_its_group() -> None:
    diagnosis = watched(without_biases)
    cause = first(diagnosis)
    assert (cause.kind, cause.identifiable) == ("regularization", False)
    assert cause.advice == "set weight_decay of group 0 from 0.3 to 0"
    (change,) = cause.changes
    assert (change.setting, change.where, change.before) == ("weight_decay", ("0/0",), 0.3)
    assert change.after == 0
    (change,) = cause.changes
    assert (change.setting, change.where, change.before) == ("weight_decay", ("0/0",), 0.3)
    assert change.after == 0
    assert "Weight decay shrank" in cause.sentence and "cannot prove it" in cause.sentence
    assert weights(diagnosis)["size of the weights"] < 0.5
    assert weights(diagnosis)["shrinkage by decay"] > 0.5


def test_deaths_by_the_learning_rate_beside_a_harmless_decay_are_of_the_rate() -> None:
    cause = first(watched(adam(0.3, weight_decay=1e-5), steps=60))
    assert (cause.kind, cause.identifiable) == ("learning_rate", False)
    assert "weight_decay" not in cause.advice


def test_a_large_rate_and_a_large_decay_are_both_candidates() -> None:
    cause = first(watched(adam(0.1, weight_decay=0.05)))
    assert (cause.kind, cause.identifiable) == ("undetermined", False)
    assert "by the learning rate or by regularization" in cause.sentence
    assert cause.advice == "set weight_decay of group 0 from 0.05 to 0, or use AdamW"
    assert cause.confirm == "reludiag replay TRAIN --set weight_decay=0.0"


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("penalty", [l1(10), squares(1)], ids=["L1", "squares"])
def test_a_penalty_on_activations_is_surely_the_cause(penalty: Penalty, probe: bool) -> None:
    diagnosis = watched(adam(2e-3), penalty=penalty, probe=probe)
    cause = first(diagnosis)
    assert (cause.kind, cause.identifiable) == ("regularization", True)
    assert weights(diagnosis)["push of a penalty"] > 2.5
    assert cause.advice.startswith("divide the weight of the penalty on activations in the loss by")
    assert 0 < cause.changes[0].after <= 0.1
    assert 0 < cause.changes[0].after <= 0.1


def test_deaths_by_the_learning_rate_beside_a_mild_penalty_are_of_the_rate() -> None:
    cause = first(watched(adam(0.3), penalty=l1(0.01), steps=60))
    assert cause.kind == "learning_rate"
    assert "penalty" not in cause.advice


def test_a_recording_and_its_json_give_the_same_cause(tmp_path: Path) -> None:
    diagnosis = watched(without_biases, path=tmp_path / "run")
    assert reludiag.load(tmp_path / "run").causes == diagnosis.causes


def test_a_decay_that_leaves_nothing_behind_a_norm_is_named_however_fast_the_steps() -> None:
    """Also where the units fire on the statistics of the batch, which shrank with the weights."""
    cause = first(watched(adam(0.03, weight_decay=1.0), norm=True))
    assert (cause.kind, cause.identifiable) == ("regularization", False)
    assert cause.changes[0].setting == "weight_decay"

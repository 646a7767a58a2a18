"""Dead units that a run began with: of a checkpoint, of pruning, of an earlier part of the run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import reludiag
from reludiag.initialization.layer_init import describe_layer
from reludiag.initialization.schemes import SCHEMES, draw

X = torch.randn(256, 20, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(48, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


def run(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, probe: Tensor | None = X
) -> reludiag.Diagnosis:
    if optimizer is None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    with reludiag.Monitor(model, optimizer, every=10, probe=probe) as monitor:
        train(model, optimizer, 20)
    return monitor.diagnose()


def killed() -> nn.Sequential:
    """Trained at a rate that killed units, and then at a good one."""
    model = network()
    train(model, torch.optim.Adam(model.parameters(), lr=0.1), 40)
    train(model, torch.optim.Adam(model.parameters(), lr=1e-3), 40)
    return model


def pruned() -> nn.Sequential:
    model = network()
    train(model, torch.optim.Adam(model.parameters(), lr=1e-3), 40)
    with torch.no_grad():
        model[0].weight[:16] = 0.0  # type: ignore[union-attr, operator]
        model[0].bias[:16] = 0.0  # type: ignore[union-attr, operator]
    return model


def masked() -> nn.Sequential:
    """Trained before; masks of a fresh draw are of the initialization."""
    model = killed()
    prune.ln_structured(model[0], "weight", 0.5, 2, dim=0)
    with torch.no_grad():
        model[0].bias[(model[0].weight == 0).all(1)] = -0.01  # type: ignore[union-attr, operator]
    return model


@pytest.mark.parametrize("made", [killed, pruned, masked])
@pytest.mark.parametrize("probe", [X, None], ids=["probe", "training"])
def test_units_that_came_with_the_weights_are_nobodys_to_draw_anew(
    made: Callable[[], nn.Module], probe: Tensor | None
) -> None:
    cause = run(made(), probe=probe).causes[0]
    assert (cause.kind, cause.identifiable) == ("inherited", True)
    assert "kaiming" not in cause.advice and not cause.confirm


def test_pruned_units_are_counted() -> None:
    evidence = {each.what: each.value for each in run(pruned()).causes[0].evidence}
    assert evidence["units without weights"] == 16


def test_a_run_that_goes_on_did_not_kill_what_was_dead() -> None:
    model = network()
    with torch.no_grad():  # a fresh draw, of which the weights alone do not tell
        model[0].bias[:10] = -50.0  # type: ignore[union-attr, operator]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    train(model, optimizer, 7)
    cause = run(model, optimizer).causes[0]
    assert cause.kind == "inherited"
    assert {each.what: each.value for each in cause.evidence}["earlier steps"] == 7


def test_a_fresh_head_on_trained_layers_is_the_initializations() -> None:
    model = killed()
    torch.manual_seed(1)
    nn.init.kaiming_normal_(model[2].weight)  # type: ignore[arg-type]
    nn.init.constant_(model[2].bias, -30.0)  # type: ignore[arg-type]
    cause = run(model).causes[0]
    assert (cause.kind, cause.identifiable) == ("initialization", False)


def test_units_that_die_later_are_not_inherited() -> None:
    model = network()
    train(model, torch.optim.Adam(model.parameters(), lr=1e-3), 60)
    cause = run(model, torch.optim.Adam(model.parameters(), lr=0.3)).causes[0]
    assert cause.kind == "learning_rate"


@given(
    scheme=st.sampled_from(SCHEMES),
    shape=st.sampled_from([(8, 8), (64, 9), (16, 200), (200, 16), (32, 16, 3, 3), (300, 300)]),
    seed=st.integers(0, 2**32),
    shift=st.sampled_from([0.0, -0.3]),
)
def test_a_fresh_draw_is_known_for_one(
    scheme: Any, shape: tuple[int, ...], seed: int, shift: float
) -> None:
    weight = draw(scheme, shape, torch.Generator().manual_seed(seed)).double().numpy() + shift
    layer = describe_layer("layer", weight, None)
    assert layer.is_drawn and layer.zero_units == 0
    assert "not_drawn" not in {problem.kind for problem in layer.problems}


def test_units_that_were_edited_show_in_the_weights() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 100))
    weight[:5] *= 4.0
    assert not describe_layer("layer", weight, None).is_drawn
    weight[5:8] = 0.0
    assert describe_layer("layer", weight, None).zero_units == 3
    transposed = np.ascontiguousarray(weight.T)
    assert describe_layer("layer", transposed, None, transposed=True).zero_units == 3


def test_an_examination_says_that_weights_were_trained() -> None:
    examined = reludiag.examine_initialization(killed(), [X])
    problems = {problem.kind for layer in examined.layers for problem in layer.problems}
    assert problems == {"not_drawn"}
    assert "not a fresh draw" in str(examined)


def shortly_trained(seed: int) -> nn.Sequential:
    """On a bright input, for so few steps that rows and columns are as by chance."""
    torch.manual_seed(seed)
    layers = [nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 24), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(24, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[:, :9].abs() + 6), Y).backward()
        optimizer.step()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight -= 0.12  # type: ignore[operator]
            layer.bias -= 0.1 + 0.2 * torch.rand(len(layer.bias))  # type: ignore[operator, arg-type]
    return model


def with_mean_below(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 24), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(24, 2))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight -= 0.3  # type: ignore[operator]
    return model


def first_cause(model: nn.Module) -> reludiag.Cause:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    with reludiag.Monitor(model, optimizer, every=5, probe=X[:, :9].abs()) as monitor:
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[:, :9].abs()), Y).backward()
            optimizer.step()
    return monitor.diagnose().causes[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_and_biases_that_no_default_gives_are_not_surely_a_draw(seed: int) -> None:
    cause = first_cause(shortly_trained(seed))
    assert (cause.kind, cause.identifiable) == ("inherited", False)
    assert cause.confirm == "reludiag init MODEL --data DATA"
    # With the biases of a fresh draw it is the weights' mean.
    cause = first_cause(with_mean_below(seed))
    assert (cause.kind, cause.identifiable) == ("initialization", True)

"""BatchNorm before a ReLU: the estimate without data, and how near it is to what is measured."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import relu

import reludiag
from reludiag.initialization.batchnorm import estimated_firing_rate, estimated_mean_activation
from reludiag.initialization.screening import SCREENING_COLUMNS, screening


def digits() -> Tensor:
    pixels = load_digits().data
    spread = pixels.std(axis=0)
    return torch.tensor(
        (pixels - pixels.mean(axis=0)) / np.where(spread > 0, spread, 1), dtype=torch.float32
    )


def fitted(layers: int, seed: int, units: int = 500) -> nn.Sequential:
    """Random layers whose BatchNorms have random gamma and beta and fit the digits."""
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for index in range(layers):
        norm = nn.BatchNorm1d(units, momentum=None)
        nn.init.normal_(norm.weight, 1.0, 0.5)
        nn.init.normal_(norm.bias, 0.0, 2.0)
        modules += [nn.Linear(64 if index == 0 else units, units), norm, nn.ReLU()]
    model = nn.Sequential(*modules)
    with torch.no_grad():
        model(digits())
    return model.eval()


def test_a_normal_pre_activation_fires_as_estimated() -> None:
    rng = np.random.default_rng(0)
    gamma, beta = np.array([1.0, -2.0, 0.3, 0.5]), np.array([0.0, 1.0, -0.5, -2.0])
    z = np.abs(gamma) * rng.normal(size=(1_000_000, 4)) + beta
    np.testing.assert_allclose(estimated_firing_rate(gamma, beta), (z > 0).mean(0), atol=2e-3)
    np.testing.assert_allclose(
        estimated_mean_activation(gamma, beta), np.maximum(z, 0).mean(0), atol=3e-3
    )


def test_a_gamma_of_zero_makes_a_constant_that_is_dead_unless_beta_is_positive() -> None:
    zero, beta = np.zeros(3), np.array([-1.0, 0.0, 2.0])
    assert estimated_firing_rate(zero, beta).tolist() == [0, 0, 1]
    assert estimated_mean_activation(zero, beta).tolist() == [0, 0, 2]


@pytest.mark.parametrize("layers", [1, 2])
def test_the_estimate_is_near_what_is_measured_on_digits(layers: int) -> None:
    errors = []
    for seed in range(4):
        model = fitted(layers, seed)
        estimate = screening(model)
        diagnosis = reludiag.scan(model, digits().split(256))
        last = f"{3 * layers - 1}"
        measured = diagnosis.units[diagnosis.units["site"] == last]["firing_rate"].to_numpy()
        chosen = estimate[estimate["site"] == last]["estimated_firing_rate"].to_numpy()
        errors.append(np.abs(measured - chosen))
    assert np.mean(errors) < 0.02
    assert np.max(errors) < 0.15


class Block(nn.Module):
    """BatchNorms before modules and functions, one ReLU called twice, an addition between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.bn3 = nn.BatchNorm2d(4, affine=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        z = torch.nn.functional.silu(self.bn1(self.conv1(x)))
        return relu(y + z) + relu(self.bn3(y))


def test_which_rectifier_follows_which_norm_is_read_from_the_graph() -> None:
    model = nn.ModuleDict({"block": Block()})["block"]
    with torch.no_grad():
        model.bn2.bias[1] = -4.0
    table = screening(model)
    assert {c: str(t) for c, t in table.dtypes.items()} == {
        column.name: column.dtype for column in SCREENING_COLUMNS
    }
    found = table.groupby("site", sort=False)["norm"].first().to_dict()
    assert found == {"act": "bn1", "act#1": "bn2", "Block:relu#1": "bn3"}
    row = table[(table["site"] == "act#1") & (table["unit"] == 1)]
    assert row["estimated_firing_rate"].item() == pytest.approx(3.17e-5, rel=1e-3)
    seen = screening(model, [torch.randn(2, 3, 8, 8)])
    assert set(zip(seen["site"], seen["norm"], strict=True)) >= {("act", "bn1"), ("act#1", "bn2")}


def test_a_forward_that_branches_on_its_input_needs_a_batch() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return relu(self.norm(x)) if x.sum() > -math.inf else x

    model = Branching()
    with pytest.raises(reludiag.ModelError, match="Give batches"):
        screening(model)
    assert len(screening(model, [torch.randn(3, 4)])) in {0, 4}


def test_a_model_without_such_a_pair_gives_an_empty_table() -> None:
    assert len(screening(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))) == 0

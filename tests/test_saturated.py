"""Units that pass no gradient and are not off: at an upper bound, or far below 0 of a leaky one."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reludiag
from reludiag.measure.saturation import SLOPE, TAILS
from reludiag.testing import assert_alive

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Biased(nn.Module):
    """Four units with these biases, of inputs between -4 and 4, before an activation."""

    def __init__(self, activation: Callable[[Tensor], Tensor], *biases: float) -> None:
        super().__init__()
        self.fc, self.activation = nn.Linear(4, 4).double(), activation
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(4))
            self.fc.bias.copy_(torch.tensor(biases))

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.fc(x))


def verdicts(model: nn.Module) -> list[str]:
    return list(reludiag.scan(model, X).units["verdict"])


CLIPPED = {
    "ReLU6": nn.ReLU6(),
    "Hardtanh": nn.Hardtanh(0, 0.3),
    "Hardsigmoid": nn.Hardsigmoid(),
    "relu6": functional.relu6,
    "clamp": lambda x: x.clamp(0, 1),
    "clamp by name": lambda x: torch.clamp(x, min=0, max=1),
    "hardtanh": lambda x: functional.hardtanh(x, 0.0, 2.0),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_a_unit_stuck_at_the_upper_bound_is_saturated(name: str) -> None:
    model = Biased(CLIPPED[name], 100.0, -100.0, 0.0, 3.0)
    assert verdicts(model)[:3] == ["saturated", "dead", "alive"]
    if name != "Hardsigmoid":
        half = model.bfloat16()
        assert reludiag.scan(half, X.bfloat16()).units["verdict"].iloc[0] == "saturated"


def test_a_unit_clipped_now_and_then_is_not_linear() -> None:
    model = Biased(nn.ReLU6(), 5.0, 5.0, 5.0, 5.0)
    assert set(verdicts(model)) == {"alive"}


def test_a_unit_that_is_constant_below_the_bound_passes_a_gradient() -> None:
    model = Biased(nn.ReLU6(), 1.0, 1.0, 1.0, 7.0)
    with torch.no_grad():
        model.fc.weight.zero_()
    assert verdicts(model) == ["constant"] * 3 + ["saturated"]


LEAKY = {
    "gelu": nn.GELU(), "silu": nn.SiLU(), "mish": nn.Mish(), "softplus": nn.Softplus(),
    "elu": nn.ELU(), "celu": nn.CELU(), "selu": nn.SELU(),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKY)
def test_the_slope_is_as_small_as_is_said_in_all_of_the_tail(name: str) -> None:
    tail = TAILS[name]
    x = torch.linspace(tail.below, tail.below - 200, 20_001, dtype=torch.float64).requires_grad_()
    y = LEAKY[name](x)
    y.sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) <= SLOPE
    assert float((y.detach() - tail.limit).abs().max()) <= tail.within
    before = torch.tensor(tail.below + 1, dtype=torch.float64, requires_grad=True)
    LEAKY[name](before).backward()
    assert before.grad is not None and abs(float(before.grad)) > SLOPE


@pytest.mark.parametrize("name", LEAKY)
@pytest.mark.parametrize("as_function", [False, True])
def test_a_leaky_unit_far_below_zero_is_saturated(name: str, as_function: bool) -> None:
    activation: Any = getattr(functional, name) if as_function else LEAKY[name]
    model = Biased(activation, -100.0, 0.0, TAILS[name].below + 4, 100.0)
    assert verdicts(model)[0] == "saturated"
    assert "saturated" not in verdicts(model)[1:]


def test_a_leaky_unit_that_gets_only_zeros_is_not_saturated() -> None:
    model = Biased(nn.GELU(), -100.0, 0.0, 0.0, 0.0)
    with torch.no_grad():
        model.fc.weight.zero_()
    assert verdicts(model) == ["saturated", "dormant", "dormant", "dormant"]


def test_other_settings_than_the_default_are_not_called_saturated_wrongly() -> None:
    for activation in (nn.Softplus(beta=0.01), nn.ELU(alpha=2.0), nn.CELU(alpha=100.0)):
        assert "saturated" not in verdicts(Biased(activation, -20.0, -20.0, -20.0, 0.0))


def test_saturated_units_are_said_beside_those_that_are_dead() -> None:
    text = str(reludiag.scan(Biased(nn.GELU(), -100.0, -100.0, 0.0, 0.0), X))
    assert "2 units of 'activation' are saturated" in " ".join(text.split())
    text = str(reludiag.scan(Biased(nn.ReLU6(), 100.0, -100.0, 0.0, 0.0), X))
    assert "1 unit of 'activation' is saturated" in " ".join(text.split())
    assert_alive(Biased(nn.ReLU6(), 100.0, 0.0, 0.0, 0.0), X)


def test_a_recording_knows_the_upper_bound(tmp_path: Path) -> None:
    model = Biased(nn.Hardtanh(0, 0.5), 100.0, 0.0, -100.0, 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    path = tmp_path / "run.reludiag"
    for probe in (None, X):
        with reludiag.Monitor(
            model, optimizer, path=path, every=2, probe=probe, overwrite=True
        ) as monitor:
            for _ in range(4):
                optimizer.zero_grad()
                model(X).sum().backward()
                optimizer.step()
        for diagnosis in (monitor.diagnose(), reludiag.load(path)):
            assert list(diagnosis.units["verdict"]) == ["saturated", "alive", "dead", "alive"]


def test_an_older_recording_opens_and_knows_no_upper_bound(tmp_path: Path) -> None:
    model, path = Biased(nn.ReLU6(), 100.0, 0.0, -100.0, 0.0), tmp_path / "run.reludiag"
    with reludiag.Monitor(model, path=path, probe=X) as monitor:
        monitor.step()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE site DROP COLUMN upper")
        db.execute("PRAGMA user_version = 5")
    db.close()
    assert list(reludiag.load(path).units["verdict"]) == ["constant", "alive", "dead", "alive"]


def test_a_network_of_saturated_units_is_not_called_healthy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.Hardtanh(0.0, 1.0), nn.Linear(16, 2)]
    with torch.no_grad():
        layers[0].bias[:] = 90.0
    diagnosis = reludiag.scan(nn.Sequential(*layers), torch.randn(64, 8))
    diagnosis.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "16 of 16 units are saturated: none is dead, but they pass no gradient" in page
    assert "<b>Yes." not in page and ">Yes.<" not in page

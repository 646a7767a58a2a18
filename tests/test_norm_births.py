"""Units that the weight and bias of a BatchNorm silence before any training."""

import pytest
import torch
from torch import Tensor, nn

import reludiag

X = torch.randn(256, 20, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def network(bias: float, weight: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)]
    with torch.no_grad():
        layers[1].weight[:20] = weight
        layers[1].bias[:20] = bias
    return nn.Sequential(*layers)


def cause_of(model: nn.Module, probe: Tensor | None) -> reludiag.Cause:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with reludiag.Monitor(model, optimizer, every=5, probe=probe) as monitor:
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
    return monitor.diagnose().causes[0]


@pytest.mark.parametrize(("bias", "weight"), [(-6.0, 1.0), (-0.1, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("probe", [X, None], ids=["probe", "training"])
def test_a_norm_that_silences_units_is_named(
    bias: float, weight: float, probe: Tensor | None
) -> None:
    cause = cause_of(network(bias, weight), probe)
    assert (cause.kind, cause.identifiable) == ("initialization", True)
    assert cause.advice == "start the weight of 1 at 1 and its bias at 0"


def test_a_norm_at_its_start_is_no_cause() -> None:
    assert cause_of(network(0.0), X).kind == "none"


def test_an_examination_names_the_norm() -> None:
    examined = reludiag.examine_initialization(network(-6.0), [X])
    problems = {problem.kind: problem for layer in examined.layers for problem in layer.problems}
    assert problems["norm"].value == 20
    assert "20 of 32 units fire on less than 0.14 %" in problems["norm"].sentence
    healthy = reludiag.examine_initialization(network(0.0), [X])
    assert "norm" not in {problem.kind for layer in healthy.layers for problem in layer.problems}


class Block(nn.Module):
    """A residual block whose branch starts at 0, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16))
        self.around = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16))
        nn.init.zeros_(self.branch[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.branch(x) + self.around(x))


def test_a_branch_that_starts_at_zero_silences_no_sum() -> None:
    torch.manual_seed(0)
    examined = reludiag.examine_initialization(nn.Sequential(Block(), nn.Linear(16, 2)), [X])
    assert "norm" not in {problem.kind for layer in examined.layers for problem in layer.problems}

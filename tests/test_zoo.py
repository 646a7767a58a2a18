"""reludiag beside an oracle that knows nothing of it: some models of `benchmarks/zoo/`.

Sites, units, dead sets, samples and every step of a ledger are compared.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmarks.zoo import by_hand, text, vision
from benchmarks.zoo.comparison import COMPARED, Built, compare
from tests.architectures import declare_missing_operators

declare_missing_operators()

STEPS = 5
BY_HAND = (
    "mlp",
    "spellings of a rectifier",
    "cnn with grouped convolutions",
    "convolution, flattened",
    "GroupNorm",
    "encoder layers",
    "Linear on NHWC",
    "recurrent cell",
    "sparse autoencoder",
    "one ReLU, three calls",
)
OF_LIBRARIES: dict[str, Callable[[], Built]] = {
    "torchvision/DenseNet": vision.MODELS["torchvision/DenseNet"],
    "timm/test_resnet": vision.MODELS["timm/test_resnet"],
    "transformers/T5Model": text.MODELS["transformers/T5Model"],
    "transformers/OPT": text.MODELS["transformers/OPT"],
}


def assert_agrees(name: str, build: Callable[[], Built]) -> None:
    row = compare(name, build, STEPS)
    assert row.wrong == []
    # Of what cannot be judged nothing is known, and here all can be.
    assert {column: row.columns[column] for column in COMPARED[:3]} == {
        "sites": row.columns["sites"],
        "axes": "yes",
        "dead": "yes",
    }
    assert row.columns["sites"].startswith("yes")
    assert row.dead > 0


@pytest.mark.parametrize("name", BY_HAND)
def test_what_the_oracle_sees_is_said_of_networks_by_hand(name: str) -> None:
    assert_agrees(name, by_hand.MODELS[name])


@pytest.mark.architectures
@pytest.mark.parametrize("name", OF_LIBRARIES)
def test_what_the_oracle_sees_is_said_of_networks_of_libraries(name: str) -> None:
    pytest.importorskip(name.partition("/")[0])
    assert_agrees(name, OF_LIBRARIES[name])


def test_a_wrong_dead_set_is_noticed() -> None:
    def build() -> Built:
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        other = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        return Built(model, (torch.randn(6, 8),), subject=other, ledger=False)

    row = compare("another model", build)
    assert row.columns["dead"] == "no"


def test_a_wrong_unit_axis_is_noticed() -> None:
    def build() -> Built:
        class Transposed(nn.Module):
            """What reludiag is given instead has its axes swapped."""

            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(8, 8)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.relu(self.fc(x).transpose(1, 2))

        class Straight(Transposed):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.relu(self.fc(x))

        return Built(Straight(), (torch.randn(6, 8, 8),), subject=Transposed(), ledger=False)

    assert compare("another axis", build).columns["axes"] == "no"

"""assert_alive: what passes, and how a failure reads."""

import pytest
import torch
from torch import nn

import reludiag
from reludiag.testing import assert_alive

DATA = torch.randn(100, 8, generator=torch.Generator().manual_seed(3))


def model(*biases: float, name: str = "relu") -> nn.Sequential:
    """Its units all have weights of 1 and these biases."""
    network = nn.Sequential()
    network.add_module("fc", nn.Linear(8, len(biases)))
    network.add_module(name, nn.ReLU())
    with torch.no_grad():
        network.fc.weight.fill_(1.0)
        network.fc.bias.copy_(torch.tensor(biases))
    return network


def test_a_model_whose_units_are_alive_passes_and_gives_its_diagnosis() -> None:
    diagnosis = assert_alive(model(0.0, 1.0), DATA)
    assert diagnosis.units["verdict"].tolist() == ["alive", "alive"]


@pytest.mark.parametrize(
    ("max_dead", "passes"),
    [("0%", False), ("24%", False), ("25%", True), ("0", False), ("1", True)],
)
def test_one_dead_unit_of_four_passes_from_a_quarter_on(max_dead: str, passes: bool) -> None:
    network = model(-1e3, 0.0, 0.0, 0.0)
    if passes:
        assert assert_alive(network, DATA, max_dead=max_dead).dead == 1
    else:
        with pytest.raises(AssertionError):
            assert_alive(network, DATA, max_dead=max_dead)


def test_a_failure_says_how_many_where_and_on_what_evidence() -> None:
    with pytest.raises(AssertionError) as failure:
        assert_alive(model(-1e3, 0.0, 0.0, 0.0), DATA, max_dead="5%")
    assert str(failure.value).splitlines() == [
        "1 of 4 units (25 %) are dead, more than max_dead='5%', on 100 samples:",
        "  relu  1 of 4  fed by fc",
        "The worst site is 'relu' (its weights: 'fc'): 1 of 4 units dead.",
        "Dead here means 0 of 100 samples: a firing rate below 3.0 % on data like this, with 95 % "
        "confidence.",
    ]


def test_units_that_are_not_finite_are_not_alive() -> None:
    with pytest.raises(AssertionError, match=r"1 of 2 units .50 %. are dead or not finite"):
        assert_alive(model(float("nan"), 0.0), DATA)


def test_a_failure_lists_ten_sites_and_counts_the_rest() -> None:
    network = nn.Sequential()
    for index in range(13):
        network.add_module(f"fc{index}", nn.Linear(8, 8))
        network.add_module(f"relu{index}", nn.ReLU())
        nn.init.constant_(network.get_submodule(f"fc{index}").bias, -1e3)
    with pytest.raises(AssertionError) as failure:
        assert_alive(network, DATA)
    lines = str(failure.value).splitlines()
    assert lines[10] == "  relu9  8 of 8  fed by fc9"
    assert lines[11] == "  and 3 more sites"


def test_a_failure_obeys_no_name() -> None:
    with pytest.raises(AssertionError) as failure:
        assert_alive(model(-1e3, name="\x1b[2J\nrelu"), DATA)
    assert "\x1b" not in str(failure.value)


def test_one_dead_unit_of_very_many_is_not_rounded_to_none() -> None:
    with pytest.raises(AssertionError, match=r"1 of 5,000 units .<0.1 %. are dead"):
        assert_alive(model(-1e3, *[1.0] * 4_999), DATA)


def test_a_limit_that_is_none_is_refused_by_its_name() -> None:
    with pytest.raises(reludiag.UsageError, match="max_dead 'few' was given"):
        assert_alive(model(0.0), DATA, max_dead="few")

"""Units that a mask leaves without weights, and those that a network's width and depth kill."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import reludiag
from reludiag.capture.model_state import copied
from reludiag.causes.explain import explain
from reludiag.initialization.masks import masked_units, remove_masks
from reludiag.measure.unit_counts import UnitCounts
from reludiag.recording import RecordedRun, RecordedSite
from reludiag.recording.observations import InputStatistics, Observations
from reludiag.sites.site import Rectifier, Site

X = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


class Rows(nn.Module):
    """A parametrization that keeps every second row."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(32).remainder(2).float().unsqueeze(1))

    def forward(self, weight: Tensor) -> Tensor:
        kept: Any = self.kept
        return weight * kept


class MaskedLinear(nn.Linear):
    """A mask of the user's own."""

    def __init__(self) -> None:
        super().__init__(16, 32)
        self.register_buffer("mask", torch.ones(32, 16))
        self.mask[::2] = 0  # type: ignore[index, operator]

    def forward(self, x: Tensor) -> Tensor:
        mask: Any = self.mask
        return nn.functional.linear(x, self.weight * mask, self.bias)


def pruned() -> nn.Linear:
    layer = nn.Linear(16, 32)
    prune.custom_from_mask(layer, "weight", Rows().kept.expand(32, 16))  # type: ignore[operator, union-attr]
    return layer


def parametrized() -> nn.Linear:
    layer = nn.Linear(16, 32)
    parametrize.register_parametrization(layer, "weight", Rows())
    return layer


LAYERS: dict[str, Callable[[], nn.Linear]] = {
    "prune": pruned,
    "parametrization": parametrized,
    "buffer": MaskedLinear,
}


def network(layer: nn.Linear) -> nn.Sequential:
    with torch.no_grad():
        layer.bias[::2] = -0.01
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 2))


def cause_of(model: nn.Module, steps: int = 10, lr: float = 1e-3) -> reludiag.Cause:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with reludiag.Monitor(model, optimizer, every=5, probe=X) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
    return monitor.diagnose().causes[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_masked_before_training_are_of_the_initialization(kind: str) -> None:
    torch.manual_seed(0)
    model = network(LAYERS[kind]())
    cause = cause_of(model)
    assert (cause.kind, cause.identifiable) == ("initialization", True)
    assert "the mask of 0 leaves 16 of 32 units no weight" in cause.sentence
    assert "mask" in {evidence.what for evidence in cause.evidence}
    assert "unless these units were pruned on purpose" in cause.advice
    examined = reludiag.examine_initialization(network(LAYERS[kind]()), [X], seeds=1)
    assert "mask" in {problem.kind for layer in examined.layers for problem in layer.problems}


def test_a_checkpoint_that_was_pruned_later_is_inherited() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
    cause_of(model, 100, lr=0.1)
    prune.random_structured(model[0], "weight", 0.5, dim=0)
    with torch.no_grad():
        model[0].bias[~model[0].weight_mask[:, 0].bool()] = -1.0  # type: ignore[index, union-attr, operator]
    assert cause_of(model).kind == "inherited"


@pytest.mark.parametrize("kind", LAYERS)
def test_the_masks_of_a_copy_are_removed_and_the_model_keeps_its_own(kind: str) -> None:
    model = network(LAYERS[kind]())
    before = model(X)
    twin = copied(model)
    remove_masks(twin)
    assert (twin[0](X) != twin[0].bias).any(0).all()  # type: ignore[union-attr]
    assert torch.equal(model(X), before)


def test_a_mask_of_single_weights_or_of_channels_of_a_transposed_convolution() -> None:
    layer = nn.Linear(4, 3)
    layer.register_buffer("mask", torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1.0]]))
    found = masked_units(layer, layer.weight, False)
    assert found is not None and found.tolist() == [False, True, False]
    turned = nn.ConvTranspose1d(2, 3, 2)
    turned.register_buffer("mask", torch.ones(2, 3, 2).index_fill(1, torch.tensor([2]), 0.0))
    found = masked_units(turned, turned.weight, True)
    assert found is not None and found.tolist() == [False, False, True]
    layer.mask.fill_(1)  # type: ignore[operator, union-attr]
    assert masked_units(layer, layer.weight, False) is None
    assert masked_units(nn.BatchNorm1d(3), torch.ones(3, 2), False) is None


# Width and depth


def born(shares: list[float], units: int, later: list[float] | None = None) -> RecordedRun:
    """A network with this share of each layer born dead; `later` is that at the end."""
    sites, ends = [], shares if later is None else later
    for index, (first, last) in enumerate(zip(shares, ends, strict=True)):
        dead = np.zeros((3, units), dtype=bool)
        dead[0, : round(first * units)] = True
        dead[1:, units - round(last * units) :] = True
        if later is None:
            dead[1:] = dead[0]
        name, known = str(index), np.ones((3, units), dtype=bool)
        site = Site(name, name, name, "", Rectifier("ReLU", True), "1", units, f"l{index}", None)
        counts = UnitCounts.nothing(units)
        sites.append(RecordedSite(site, None, counts, np.full(3, 500), dead, known, ~known))
    inputs = (InputStatistics("l0", 500, True, 0.1, 0.0),)
    facts = {"every": 10, "probe_samples": 500}
    return RecordedRun(facts, (0, 10, 20), tuple(sites), (), Observations(inputs=inputs))


@pytest.mark.parametrize("units", [2, 4, 8])
def test_births_in_layers_too_narrow_for_their_number_are_of_the_initialization(units: int) -> None:
    cause = explain(born([0.5] * 12, units)).causes[0]
    assert (cause.kind, cause.identifiable) == ("initialization", True)
    assert "too narrow for their number: 12, the narrowest of" in cause.sentence
    assert "at least 33 units wide" in cause.advice


def test_a_whole_layer_dead_by_chance_of_a_narrow_network_is_not_usual() -> None:
    shares = [0.25] * 6 + [1.0] + [0.5] * 5
    run = explain(born(shares, 4))
    assert {cause.kind for cause in run.causes} == {"initialization"}


def test_the_same_births_in_wide_layers_are_not_of_the_width() -> None:
    for cause in explain(born([0.5] * 12, 64)).causes:
        assert "narrow" not in cause.sentence


def test_wide_deep_networks_whose_dead_units_change_places_need_no_cause() -> None:
    shares = [0.0, 0.0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15]
    changed = explain(born(shares, 64, later=shares)).causes[0]
    assert (changed.kind, changed.identifiable) == ("none", False)  # a rate may have killed some
    more = explain(born(shares, 64, later=[share + 0.1 for share in shares])).causes[0]
    assert more.kind == "undetermined"

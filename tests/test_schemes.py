"""Initialization schemes: what is drawn, what is left alone, and what is refused."""

import math

import pytest
import torch
from torch import nn

import reludiag
from reludiag.initialization.schemes import ALIASES, SCHEMES, draw, fans_of, reinitialize

DRAWN = [scheme.name for scheme in SCHEMES]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 64, 32), nn.LayerNorm(32), nn.ReLU(),
        nn.Linear(32, 4, bias=False),
    )  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (64, 48, 3, 3)], ids=str)
def test_each_scheme_draws_the_variance_that_it_states(scheme, shape) -> None:
    weight = draw(scheme, shape, torch.Generator().manual_seed(0)).double()
    stated = scheme.variance(fans_of(shape))
    assert weight.var().item() == pytest.approx(stated, rel=5 * math.sqrt(2 / weight.numel()))
    assert abs(weight.mean().item()) < 5 * math.sqrt(stated / weight.numel())


def test_pytorch_redraws_exactly_what_pytorch_would() -> None:
    """Same bounds, biases too."""
    layer = nn.Linear(100, 4000)
    reinitialize(layer, "pytorch", seed=0)
    for values in (layer.weight, layer.bias):
        assert 0.0999 < values.abs().max() <= 0.1
        assert values.var().item() == pytest.approx(0.1**2 / 3, rel=0.05)


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_seed_gives_the_same_weights_and_touches_no_global_stream(name: str) -> None:
    first, second, third = network(), network(), network()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    reinitialize(first, name, seed=1)
    reinitialize(second, name, seed=1)
    reinitialize(third, name, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0].weight, second[0].weight)
    assert torch.equal(first[6].weight, second[6].weight)
    assert not torch.equal(first[6].weight, third[6].weight)


def test_biases_become_zero_and_norms_and_embeddings_stay() -> None:
    model = nn.ModuleDict({"net": network(), "embed": nn.Embedding(9, 4), "norm": nn.LayerNorm(4)})
    nn.init.constant_(model["norm"].weight, 3.0)
    embedding = model["embed"].weight.clone()
    reinitialize(model, "kaiming", seed=0)
    assert not model["net"][0].bias.any() and not model["net"][3].bias.any()
    assert torch.equal(model["embed"].weight, embedding)
    assert (model["norm"].weight == 3).all() and (model["net"][1].weight == 1).all()


def test_a_head_that_is_tied_to_an_embedding_stays_and_a_shared_layer_is_drawn_once() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 20))
    model[3].weight = model[0].weight
    model[2].weight = model[1].weight
    embedding = model[0].weight.clone()
    reinitialize(model, "normal", seed=0)
    alone = nn.Linear(8, 8)
    reinitialize(alone, "normal", seed=0)
    assert torch.equal(model[3].weight, embedding)
    assert torch.equal(model[2].weight, alone.weight)


def test_default_leaves_the_model_as_built() -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    reinitialize(model, "default", seed=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_short_names_mean_the_normal_ones(alias: str, name: str) -> None:
    first, second = network(), network()
    reinitialize(first, alias, seed=0)
    reinitialize(second, name, seed=0)
    assert torch.equal(first[0].weight, second[0].weight)


def test_an_unknown_name_is_refused_with_the_names() -> None:
    with pytest.raises(reludiag.UsageError, match=r"'kaimng'.*default, pytorch, kaiming_normal"):
        reinitialize(network(), "kaimng", seed=0)


def test_a_parametrized_weight_is_set_through_its_parametrization() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
    plain = nn.Linear(16, 8)
    reinitialize(layer, "kaiming", seed=3)
    reinitialize(plain, "kaiming", seed=3)
    torch.testing.assert_close(layer.weight, plain.weight)


def test_a_weight_that_cannot_be_set_is_refused() -> None:
    layer = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)))
    torch.nn.utils.parametrize.register_parametrization(layer[0], "bias", nn.Softplus())
    with pytest.raises(reludiag.UsageError, match="bias of 0 is computed"):
        reinitialize(layer, "kaiming", seed=0)
    with pytest.raises(reludiag.UsageError, match="0 is lazy"):
        reinitialize(nn.Sequential(nn.LazyLinear(4)), "kaiming", seed=0)

"""Born-dead shares: formulae against published numbers, simulation and exact cases."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn

from reludiag.initialization import chance_deaths

# N, H, exact for one direction, simulated on both half-lines of one dimension.
LU = [
    (2, 1, 0.2500, 0.0),
    (2, 3, 0.5781, 0.3344),
    (2, 5, 0.7627, 0.6202),
    (2, 10, 0.9437, 0.9079),
    (2, 20, 0.9968, 0.9944),
    (3, 3, 0.3301, 0.1168),
    (3, 5, 0.4871, 0.2907),
    (3, 10, 0.7369, 0.6316),
    (3, 20, 0.9308, 0.9046),
    (4, 3, 0.1760, 0.0352),
    (4, 10, 0.4755, 0.3361),
    (4, 20, 0.7249, 0.6512),
    (6, 10, 0.1457, 0.0644),
    (6, 20, 0.2702, 0.1905),
    (8, 20, 0.0753, 0.0403),
]


@pytest.mark.parametrize(("width", "depth", "exact", "simulated"), LU)
def test_the_bound_of_lu_et_al_holds_the_simulated_share(
    width: int, depth: int, exact: float, simulated: float
) -> None:
    assert chance_deaths.layer_dies_single_direction([width] * depth) == pytest.approx(
        exact, abs=5e-5
    )
    assert simulated <= exact


def test_networks_of_one_input_die_as_often_as_the_exact_formula_says() -> None:
    rng = np.random.default_rng(0)
    nets, width, depth = 20_000, 2, 5
    x = np.abs(rng.normal(size=(nets, 1, 1)))
    for layer in range(depth):
        weight = rng.normal(size=(nets, 1 if layer == 0 else width, width))
        x = np.maximum(x @ weight, 0)
    dead = (x == 0).all(axis=(1, 2)).mean()
    exact = chance_deaths.layer_dies_single_direction([width] * depth)
    assert exact == pytest.approx(0.7627, abs=5e-5)
    assert dead == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / nets))


def test_the_needed_width_is_the_smallest_that_is_safe() -> None:
    assert chance_deaths.needed_width(10, 0.01) == 10
    assert chance_deaths.layer_dies_single_direction([10] * 10) == pytest.approx(0.0097, abs=5e-5)
    for depth, chance in itertools.product((1, 3, 50), (0.2, 0.01, 1e-6)):
        width = chance_deaths.needed_width(depth, chance)
        assert chance_deaths.layer_dies_single_direction([width] * depth) <= chance
        assert width == 1 or chance_deaths.layer_dies_single_direction([width - 1] * depth) > chance


def test_a_very_wide_layer_has_a_small_chance_and_not_none() -> None:
    assert chance_deaths.layer_dies_single_direction([100]) == pytest.approx(2.0**-100)


def silent_on_two(cosine: float) -> float:
    """Chance that a unit is silent on both of two inputs: 1/2 - t / (2 pi), t their angle."""
    return 0.5 - math.acos(cosine) / (2 * math.pi)


def test_cosines_follow_he_networks() -> None:
    depths = {0: 0, 1: 0.3183, 2: 0.4937, 3: 0.6048, 5: 0.7359, 10: 0.8715, 20: 0.9484, 49: 0.9874}
    silent = {0: 0.25, 1: 0.3016, 2: 0.3322, 5: 0.3816, 10: 0.4184, 20: 0.4487, 49: 0.4747}
    for depth, cosine in depths.items():
        assert chance_deaths.cosine_map(0.0, depth) == pytest.approx(cosine, abs=5e-5)
    for depth, chance in silent.items():
        assert silent_on_two(chance_deaths.cosine_map(0.0, depth)) == pytest.approx(
            chance, abs=5e-5
        )
    np.testing.assert_allclose(chance_deaths.cosine_map(np.array([0.0, 1.0])), [1 / math.pi, 1.0])


# Mean cosine of the inputs of layer 1, 3, ... 30 on digits: what the integral gives, measured.
DIGITS = [
    (0.013, 0.000, 0.000),
    (0.498, 0.001, 0.000),
    (0.688, 0.013, 0.026),
    (0.850, 0.078, 0.079),
    (0.919, 0.158, 0.186),
    (0.958, 0.238, 0.263),
    (0.693, 0.013, 0.016),
    (0.791, 0.042, 0.055),
    (0.849, 0.077, 0.089),
    (0.912, 0.146, 0.143),
    (0.941, 0.197, 0.212),
    (0.966, 0.263, 0.290),
]


@pytest.mark.parametrize(("cosine", "predicted", "measured"), DIGITS)
def test_the_integral_predicts_what_was_measured_on_digits(
    cosine: float, predicted: float, measured: float
) -> None:
    found = chance_deaths.silent_on_all(cosine, 1797)
    assert found == pytest.approx(predicted, abs=1.5e-3)  # the cosine is rounded
    assert found == pytest.approx(measured, abs=0.03)


@pytest.mark.parametrize("cosine", [0.0, 0.2, 0.5, 0.9, 0.999, 1.0])
def test_the_integral_is_exact_for_one_and_two_inputs(cosine: float) -> None:
    assert chance_deaths.silent_on_all(cosine, 1) == pytest.approx(0.5)
    assert chance_deaths.silent_on_all(cosine, 2) == pytest.approx(silent_on_two(cosine))


@pytest.mark.parametrize("bias", [-3.0, -0.7, 0.0, 1.0])
@pytest.mark.parametrize(("cosine", "samples"), [(0.01, 3), (0.6, 50), (0.95, 1000)])
def test_the_integral_with_a_bias_matches_drawn_pre_activations(
    cosine: float, samples: int, bias: float
) -> None:
    rng, draws = np.random.default_rng(1), 200_000
    common = rng.normal(size=draws)
    # The largest of n normals from one uniform, by its exact quantile function.
    largest = scipy_stats.norm.isf(-np.expm1(np.log(rng.uniform(size=draws)) / samples))
    silent = bias + math.sqrt(cosine) * common + math.sqrt(1 - cosine) * largest <= 0
    found = chance_deaths.silent_with_bias(cosine, np.ones(samples), np.array([bias]))
    error = max(1e-5, math.sqrt(found * (1 - found) / draws))
    assert silent.mean() == pytest.approx(found, abs=4 * error)
    if bias == 0:
        assert found == pytest.approx(chance_deaths.silent_on_all(cosine, samples), abs=1e-4)


def test_inputs_of_different_lengths_and_biases_of_different_sizes_are_averaged_rightly() -> None:
    rng, draws, cosine = np.random.default_rng(2), 40_000, 0.4
    spreads, biases = rng.lognormal(0, 1, size=30), rng.normal(-1, 1, size=5)
    z = math.sqrt(cosine) * rng.normal(size=(draws, 1))
    z = spreads * (z + math.sqrt(1 - cosine) * rng.normal(size=(draws, 30)))
    silent = [((z + bias) <= 0).all(axis=1).mean() for bias in biases]
    found = chance_deaths.silent_with_bias(cosine, spreads, biases)
    assert found == pytest.approx(np.mean(silent), abs=0.005)
    many = chance_deaths.silent_with_bias(cosine, np.tile(spreads, 40), np.tile(biases, 40))
    assert many <= found


def test_a_bias_decides_alone_where_nothing_comes_in() -> None:
    nothing = np.zeros(4)
    assert chance_deaths.silent_with_bias(0.5, nothing, np.array([-1.0, 0.0])) == pytest.approx(1.0)
    assert chance_deaths.silent_with_bias(0.5, nothing, np.array([1.0])) == pytest.approx(0.0)


def test_the_integral_holds_at_the_extremes() -> None:
    assert chance_deaths.silent_on_all(-0.1, 5) == pytest.approx(2.0**-5)
    assert chance_deaths.silent_on_all(0.5, 0) == 1.0
    assert chance_deaths.silent_on_all(1 - 1e-12, 10) == pytest.approx(0.5, abs=1e-4)
    assert 0.45 < chance_deaths.silent_on_all(0.9999, 10**7) < 0.5
    shares = [chance_deaths.silent_on_all(0.9, n) for n in (1, 10, 100, 10_000, 1_000_000)]
    assert shares == sorted(shares, reverse=True) and shares[-1] > 0


def test_expected_shares_by_depth_follow_a_deep_network() -> None:
    rng = torch.Generator().manual_seed(0)
    samples, width, depth, nets = 500, 128, 10, 12
    x = torch.randn(samples, width, generator=rng)
    directions = nn.functional.normalize(x, dim=1).numpy()
    cosine = chance_deaths.mean_cosine_of_sum(directions.sum(axis=0), samples)
    expected = chance_deaths.born_dead_by_depth(cosine, samples, depth)
    dead = np.zeros(depth)
    for _ in range(nets):
        z = x
        for layer in range(depth):
            weight = torch.randn(width, width, generator=rng) * math.sqrt(2 / width)
            z = torch.relu(z @ weight)
            dead[layer] += (z == 0).all(dim=0).float().mean().item() / nets
    assert expected == sorted(expected)
    np.testing.assert_allclose(expected, dead, atol=0.03)


def test_the_gain_of_zero_bias_layers_changes_no_birth() -> None:
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    silent = []
    for gain in (0.1, math.sqrt(2), 10.0):
        torch.manual_seed(3)
        net = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(30))).double()
        z = x.double()
        for layer in net:
            nn.init.normal_(layer.weight, 0, gain / math.sqrt(32))
            z = torch.relu(layer(z))
            silent.append(set((z == 0).all(dim=0).nonzero().flatten().tolist()))
    assert silent[:30] == silent[30:60] == silent[60:]
    assert any(silent)


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    x = np.random.default_rng(0).normal(1.0, 1.0, size=(30, 7))
    pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.permutations(x, 2)]
    total = (x / np.linalg.norm(x, axis=1, keepdims=True)).sum(axis=0)
    assert chance_deaths.mean_cosine_of_sum(total, 30) == pytest.approx(np.mean(pairs))
    assert math.isnan(chance_deaths.mean_cosine_of_sum(total, 1))

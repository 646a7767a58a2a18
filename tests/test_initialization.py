"""A layer at step 0: its scheme is named rightly or not at all, and what is wrong is said."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import reludiag
from reludiag.initialization.layer_init import LayerInit, describe_layer, narrowness
from reludiag.initialization.schemes import SCHEMES, draw, fans_of

SHAPES = [
    (16, 16), (16, 20), (20, 16), (32, 16), (64, 64), (10, 128), (300, 200),
    (16, 16, 3, 3), (8, 3, 5, 5), (64, 3, 7, 7), (64, 32, 1, 1), (32, 1, 3, 3, 3), (24, 16, 5),
    (61, 60, 1, 1), (66, 67, 3, 3), (73, 72),
]  # fmt: skip
STANDARD = [
    "pytorch", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform",
    "lecun_normal", "lecun_uniform", "orthogonal", "normal", "truncated_normal",
]  # fmt: skip


def drawn(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    scheme = next(scheme for scheme in SCHEMES if scheme.name == name)
    return draw(scheme, shape, torch.Generator().manual_seed(seed)).numpy()


def described(weight: object, bias: object = None, **options: bool) -> LayerInit:
    return describe_layer(
        "fc2", np.asarray(weight), None if bias is None else np.asarray(bias), **options
    )


def kinds(layer: LayerInit) -> list[str]:
    return [problem.kind for problem in layer.problems]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_scheme_is_never_taken_for_another(shape: tuple[int, ...]) -> None:
    confused = {
        (scheme.name, layer.name)
        for scheme in SCHEMES
        for seed in range(8)
        for layer in [described(drawn(scheme.name, shape, seed))]
        if scheme.name not in (layer.scheme, *layer.alike)
    }
    assert not confused


def test_the_confusion_matrix_of_ten_schemes_is_diagonal_but_where_variances_coincide() -> None:
    shape, seeds = (32, 24), 20
    matrix = np.zeros((len(STANDARD), len(STANDARD)), dtype=int)
    for row, name in enumerate(STANDARD):
        for seed in range(seeds):
            matrix[row, STANDARD.index(described(drawn(name, shape, seed)).scheme)] += 1
    # At 32 x 24, Xavier's variance 2/56 and LeCun's 1/24 differ by 15 %.
    near = {"xavier_normal", "lecun_normal"}
    for row, name in enumerate(STANDARD):
        others = [STANDARD[column] for column in np.flatnonzero(matrix[row]) if column != row]
        assert not others or {name, *others} <= near, matrix


@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_equal_variances_cannot_be_told_apart(name: str) -> None:
    square = described(drawn(f"xavier_{name}", (64, 64), 0))
    assert {square.scheme, *square.alike} == {f"xavier_{name}", f"lecun_{name}"}
    assert " or " in square.name
    oblong = described(drawn(f"xavier_{name}", (64, 200), 0))
    assert (oblong.scheme, oblong.alike) == (f"xavier_{name}", ())


def test_few_weights_name_all_schemes_that_they_may_be_from() -> None:
    missed = sum(
        name not in (layer.scheme, *layer.alike)
        for name in STANDARD
        for seed in range(30)
        for layer in [described(drawn(name, (4, 4), seed))]
    )
    assert missed == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["pytorch", "kaiming_uniform", "xavier_normal", "lecun_truncated"])
def test_rounded_weights_keep_their_scheme(dtype: torch.dtype, name: str) -> None:
    weight = torch.as_tensor(drawn(name, (128, 200), 0)).to(dtype).float().numpy()
    layer = described(weight)
    assert name in (layer.scheme, *layer.alike)


@pytest.mark.parametrize(
    ("build", "scheme"),
    [
        (lambda: nn.Linear(100, 70), "pytorch"),
        (lambda: nn.Conv2d(12, 40, 3), "pytorch"),
        (lambda: nn.Conv2d(12, 48, 3, groups=4), "pytorch"),
        (lambda: nn.ConvTranspose2d(12, 40, 3), "pytorch"),
    ],
)
def test_layers_as_pytorch_builds_them_are_pytorchs(build, scheme: str) -> None:
    torch.manual_seed(0)
    module = build()
    transposed = isinstance(module, nn.ConvTranspose2d)
    layer = described(module.weight.detach(), module.bias.detach(), transposed=transposed)
    assert (layer.scheme, layer.alike, layer.bias) == (scheme, (), "pytorch")
    assert layer.fan_in == (12 * 9 if transposed else fans_of(module.weight.shape).fan_in)


@pytest.mark.parametrize("gain", [0.3, 1.0, math.sqrt(2)])
@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (32, 8, 3, 3), (100, 300)])
def test_orthogonal_weights_are_found_whatever_their_gain(shape, gain: float) -> None:
    weight = torch.empty(shape)
    nn.init.orthogonal_(weight, gain, generator=torch.Generator().manual_seed(0))
    assert described(weight).scheme == "orthogonal"


def test_weights_of_no_scheme_are_unknown_with_their_distribution() -> None:
    rng = np.random.default_rng(0)
    shape = (64, 64)
    normal = described(rng.normal(0, 0.07, shape))
    assert (normal.scheme, normal.distribution) == ("unknown", "normal")
    assert normal.std == pytest.approx(0.07, rel=0.05)
    assert normal.gain == pytest.approx(0.07 * 8, rel=0.05)
    assert normal.name == f"unknown (normal, std {normal.std:.3g})"
    uniform = described(rng.uniform(-0.33, 0.33, shape))
    assert (uniform.scheme, uniform.distribution) == ("unknown", "uniform")
    for odd in (
        rng.laplace(0, 0.125, shape),
        rng.standard_t(3, shape) * 0.1,
        np.where(rng.random(shape) < 0.1, rng.normal(0, 0.4, shape), 0),
    ):
        assert (described(odd).scheme, described(odd).distribution) == ("unknown", "other")


def test_constant_zero_identity_and_empty_weights_are_what_they_are() -> None:
    assert described(np.full((8, 8), 0.1)).scheme == "constant"
    assert described(np.zeros((8, 8))).scheme == "zero"
    assert described(np.eye(8)).scheme == "identity"
    assert described(np.zeros((0, 8))).distribution == "empty"
    assert kinds(described(np.full((8, 8), 0.1))) == ["constant"]
    assert not described(np.full((8, 8), 0.1)).problems[0].kills_at_birth
    assert described(np.full((8, 8), -0.1)).problems[0].kills_at_birth
    assert not described(np.zeros((8, 8)), np.ones(8)).problems[0].kills_at_birth
    assert described(np.zeros((8, 8)), np.zeros(8)).problems[0].kills_at_birth
    assert not described(np.eye(8)).problems


def test_weights_that_are_not_finite_are_said_to_be() -> None:
    weight = np.ones((4, 4))
    weight[0, :2] = np.nan
    layer = described(weight, np.zeros(4))
    assert (layer.distribution, layer.std, kinds(layer)) == ("nonfinite", None, ["nonfinite"])
    assert layer.problems[0].value == 2
    assert kinds(described(drawn("kaiming_normal", (64, 64), 0), np.full(64, np.inf))) == [
        "nonfinite"
    ]


def test_a_good_layer_has_nothing_wrong() -> None:
    for name in ("kaiming_normal", "kaiming_uniform", "xavier_normal", "lecun_uniform"):
        layer = described(drawn(name, (64, 64), 0), np.zeros(64))
        assert (layer.problems, layer.bias) == ((), "zero")


@pytest.mark.parametrize("start", [-1.0, -3.0, -10.0])
def test_a_negative_bias_is_measured_in_standard_deviations(start: float) -> None:
    layer = described(drawn("kaiming_normal", (64, 64), 0), np.full(64, start))
    assert kinds(layer) == ["negative_bias"]
    (problem,) = layer.problems
    assert problem.value == pytest.approx(-start / math.sqrt(2), rel=0.05)
    assert problem.kills_at_birth
    assert problem.advice == f"the bias of fc2 starts at {start:.3g}: start it at 0"
    assert layer.bias == "constant"
    assert "0.0 %" not in problem.sentence  # rarely is not never


def test_a_few_deep_biases_among_good_ones_are_counted() -> None:
    torch.manual_seed(0)
    module = nn.Linear(64, 64)
    bias = module.bias.detach().clone()
    bias[[3, 5, 9]] = -10
    layer = described(module.weight.detach(), bias)
    assert kinds(layer) == ["variance", "negative_bias"]
    assert layer.problems[1].sentence.startswith("3 of 64 biases of fc2")


@pytest.mark.parametrize("fan_in", [1, 2, 64])
@pytest.mark.parametrize("units", [1, 2, 64])
def test_pytorchs_own_biases_are_never_too_negative(units: int, fan_in: int) -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        module = nn.Linear(fan_in, units)
        layer = described(module.weight.detach(), module.bias.detach())
        assert "negative_bias" not in kinds(layer)


def test_weights_that_lean_to_one_side_are_found_and_their_scheme_too() -> None:
    shifted = described(drawn("kaiming_normal", (64, 100), 0) - 0.3, np.zeros(64))
    assert (shifted.scheme, kinds(shifted)) == ("kaiming_normal", ["weight_mean"])
    assert shifted.problems[0].value == pytest.approx(-0.3, abs=0.01)
    assert shifted.problems[0].kills_at_birth
    assert shifted.mean_z is not None and shifted.mean_z < -100
    upward = described(drawn("kaiming_normal", (64, 100), 0) + 0.3)
    assert kinds(upward) == ["weight_mean"] and not upward.problems[0].kills_at_birth


def test_a_wrong_gain_is_said_to_kill_no_unit_at_birth() -> None:
    for gain in (0.1, 10):
        weight = drawn("lecun_normal", (64, 64), 0) * gain
        (problem,) = described(weight, np.zeros(64)).problems
        assert problem.kind == "variance" and not problem.kills_at_birth
        assert "kills no unit at step 0" in problem.sentence
        assert problem.value == pytest.approx(gain**2 / 2, rel=0.1)


def test_pytorchs_default_has_a_sixth_of_hes_variance() -> None:
    torch.manual_seed(0)
    (problem,) = described(nn.Linear(256, 256).weight.detach()).problems
    assert problem.value == pytest.approx(1 / 6, rel=0.02)


def test_a_network_too_narrow_for_its_depth_is_told_how_wide_to_be() -> None:
    problem = narrowness([4] * 10)
    assert problem is not None and problem.value == pytest.approx(0.4755, abs=5e-5)
    assert problem.advice.startswith("make each layer at least 30 units wide")
    assert narrowness([64] * 30) is None
    assert narrowness([]) is None


def test_what_is_said_of_a_layer_goes_into_json() -> None:
    for weight in (drawn("pytorch", (8, 8), 0) - 1, np.full((3, 3), np.nan), np.zeros((0, 2))):
        layer = described(weight, np.full(len(weight), -3.0))
        content = json.loads(json.dumps(dataclasses.asdict(layer), allow_nan=False))
        assert content["module"] == "fc2" and isinstance(content["problems"], list)


def test_a_weight_of_one_axis_is_refused() -> None:
    with pytest.raises(reludiag.UsageError, match=r"weight of fc2 has shape \[5\]"):
        described(np.zeros(5))

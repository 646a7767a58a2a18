"""Statistics, verdicts and bounds, against brute force and the literature."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor, nn

import reludiag
from reludiag.measure.binomial import upper_bound
from reludiag.measure.unit_counts import UnitCounts
from reludiag.measure.unit_stats import UnitStats
from reludiag.measure.verdicts import VERDICT_TABLE

TEN_THOUSAND = 10_000


def verdicts(columns: list[list[float]], rectifier: nn.Module | None = None) -> list[str]:
    """The verdict of each column, fed to a rectifier as the values of one unit."""
    linear = nn.Linear(len(columns), len(columns), bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(len(columns)))
    model = nn.Sequential(linear, rectifier or nn.ReLU())
    return list(reludiag.scan(model, [torch.tensor(columns).T]).units["verdict"])


def test_the_verdicts_are_those_of_the_table() -> None:
    n = TEN_THOUSAND
    wave = [(-1.0) ** i for i in range(n)]
    columns = {
        "dead": [-1.0] * n,
        "rare": [1.0] * 9 + [-1.0] * (n - 9),
        "saturated": [7.0] * n,
        "dormant": [0.001 * value for value in wave],
        "constant": [1.0] * n,
        "always_on": [1.0 + i / n for i in range(n)],
        "alive": wave,
    }
    assert verdicts(list(columns.values()), nn.ReLU6()) == list(columns)


def test_a_unit_is_lost_if_its_verdict_says_so() -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0], [math.nan], [1.0], [0.0]]))
        model[0].bias.copy_(torch.tensor([-1.0, 0.0, 0.0, 1.0]))
    diagnosis = reludiag.scan(model, [torch.tensor([[-1.0], [1.0]])])
    names = list(diagnosis.units["verdict"])
    assert names == ["dead", "nonfinite", "alive", "constant"]
    lost = [verdict.name for verdict in VERDICT_TABLE if verdict.lost]
    assert diagnosis.lost == sum(name in lost for name in names) == 2


def test_the_limit_of_rare_is_a_tenth_of_a_percent() -> None:
    n, busy = TEN_THOUSAND, [(-1.0) ** i for i in range(TEN_THOUSAND)]
    for fired, verdict in [(0, "dead"), (1, "rare"), (9, "rare"), (10, "alive")]:
        # It fires hard, so that it is not dormant.
        assert verdicts([[1000.0] * fired + [-1.0] * (n - fired), busy])[0] == verdict


def test_what_fires_twice_in_ten_thousand_is_rare_never_dead() -> None:
    values = [-1.0] * (TEN_THOUSAND - 2) + [1.0, 1.0]
    assert verdicts([values, [1.0, -1.0] * (TEN_THOUSAND // 2)])[0] == "rare"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_neither_dead_nor_alive(value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[value, 0.0], [0.0, -1.0]]))
    units = reludiag.scan(model, [torch.rand(8, 2) + 0.1]).units
    expected = ["nonfinite", "dead"]
    assert list(units["verdict"]) == expected
    assert np.isnan(units["firing_rate_upper"][0])
    assert np.isnan(units["tau_score"][0])


def test_negative_zero_and_denormals() -> None:
    assert verdicts([[-0.0, -0.0], [1e-42, -1.0], [1.0, 0.5]], nn.ReLU())[0] == "dead"
    assert verdicts([[1e-42, -1.0], [1e-42, 2e-42]])[1] == "always_on"


def test_a_unit_that_fires_at_one_position_only_is_alive() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    x = torch.full((3, 1, 5, 5), -1.0)
    x[2, 0, 4, 4] = 1.0
    units = reludiag.scan(model, [x]).units
    assert list(units["fired"]) == [1, 1]
    assert list(units["samples"]) == [3, 3]
    assert list(units["active_fraction"]) == pytest.approx([1 / 75] * 2)


def test_leaky_units_are_measured_and_never_dead_nor_rare() -> None:
    units = verdicts([[-10.0, -20.0], [-10.0, -10.0], [1.0, -1.0], [1.0, 2.0]], nn.LeakyReLU())
    assert units == ["alive", "constant", "alive", "always_on"]


def test_thresholds_can_be_set() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    x = torch.cat([torch.ones(1, 1), -torch.ones(9, 1)])
    rare = reludiag.scan(model, [x], thresholds=reludiag.Thresholds(rare=0.2))
    assert list(rare.units["verdict"]) == ["rare"]


def test_a_silent_site_has_tau_scores_of_zero() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    assert list(reludiag.scan(model, [torch.randn(4, 2)]).units["tau_score"]) == [0.0] * 3


def test_the_bound_is_that_of_the_literature() -> None:
    assert upper_bound(0, 1000) == pytest.approx(0.0029912, abs=5e-8)
    assert upper_bound(0, 1797) == pytest.approx(0.0016657, abs=5e-8)
    for n in (1, 7, 1000):
        assert upper_bound(0, n) == pytest.approx(1 - 0.05 ** (1 / n))
        assert upper_bound(n, n) == 1.0
    assert upper_bound([0, 2, 10], 10) == pytest.approx([0.258866, 0.506901, 1.0], abs=1e-6)
    assert np.isnan(upper_bound([0, 0], 0)).all()


@given(st.integers(1, 6_000), st.data())
def test_the_bound_on_a_firing_rate_is_the_quantile_of_a_beta_distribution(
    samples: int, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(0, samples - 1), min_size=1, max_size=50))
    exact = special.betaincinv(np.array(counts) + 1, samples - np.array(counts), 0.95)
    assert upper_bound(counts, samples) == pytest.approx(exact, rel=1e-11, abs=1e-14)


def brute_force(x: Tensor, signed: bool) -> dict[str, list[float]]:
    """Unit by unit, value by value, in float64."""
    found: dict[str, list[float]] = {}
    for unit in range(x.shape[1]):
        rows = x[:, unit].double().tolist()
        values = [value for row in rows for value in row]

        def fires(value: float) -> bool:
            return value != 0 if signed else value > 0

        one = {
            "fired": sum(any(fires(v) for v in row) for row in rows),
            "active": sum(fires(v) for v in values),
            "total": sum(values),
            "total_absolute": sum(abs(v) for v in values),
            "total_square": sum(v * v for v in values),
            "maximum": max(values),
            "minimum": min(values),
            "nonfinite": any(not np.isfinite(v) for v in values),
            "silent": not any(fires(v) for v in values),
        }
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    return found


shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))


@given(shapes, st.sampled_from(["float32", "float64", "float16", "bfloat16"]), st.booleans(),
       st.integers(0, 2**20))  # fmt: skip
@settings(max_examples=150)
def test_statistics_equal_brute_force_and_merge_to_the_whole(
    shape: tuple[int, int, int], dtype: str, signed: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(getattr(torch, dtype))
    x = x if signed else x.clamp(min=0)
    x[torch.rand(shape, generator=generator) < 0.4] = 0

    def counted(part: Tensor) -> UnitCounts:
        stats = UnitStats.empty(shape[1], dtype=part.dtype, signed=signed)
        stats.update(part)
        return stats.counts()

    whole = counted(x)
    for name, expected in brute_force(x, signed).items():
        assert getattr(whole, name).tolist() == pytest.approx(expected, rel=1e-6), name
    merged = UnitCounts.nothing(shape[1])
    for part in x.split(2):
        merged = merged.merged(counted(part))
    assert (merged.samples, merged.positions) == (whole.samples, whole.positions)
    for name in brute_force(x, signed):
        assert getattr(merged, name).tolist() == pytest.approx(getattr(whole, name).tolist()), name


@given(st.integers(0, 2**20), st.sampled_from(["nchw", "channels_last", "rows", "tokens"]))
@settings(max_examples=60)
def test_layouts_do_not_matter(seed: int, layout: str) -> None:
    """A convolution and a Linear with the same weights see the same numbers in every layout.

    Of eighths: their products and sums are exact in float32, whatever the order of adding up.
    """
    generator = torch.Generator().manual_seed(seed)

    def eighths(*shape: int) -> Tensor:
        return torch.randint(-16, 17, shape, generator=generator) / 8

    conv, linear = nn.Conv2d(3, 5, 1), nn.Linear(3, 5)
    with torch.no_grad():
        conv.weight.copy_(eighths(5, 3, 1, 1))
        conv.bias.copy_(eighths(5))
        conv.bias[:2] -= 2.0
        linear.weight.copy_(conv.weight.flatten(1))
        linear.bias.copy_(conv.bias)
    x = eighths(4, 3, 2, 3)
    reference = reludiag.scan(nn.Sequential(conv, nn.ReLU()), [x]).units
    if layout == "nchw":
        units = reludiag.scan(nn.Sequential(conv, nn.Identity(), nn.ReLU6()), [x]).units
        reference = reference if reference["max_activation"].max() < 6 else units
    elif layout == "channels_last":
        model = nn.Sequential(conv, nn.ReLU()).to(memory_format=torch.channels_last)
        units = reludiag.scan(model, [x.to(memory_format=torch.channels_last)]).units
    else:
        tokens = x.permute(0, 2, 3, 1)
        tokens = tokens if layout == "rows" else tokens.flatten(1, 2)
        units = reludiag.scan(nn.Sequential(linear, nn.ReLU()), [tokens]).units
    for column in ("verdict", "samples", "fired", "active_fraction"):
        assert list(units[column]) == list(reference[column])
    assert list(units["mean_activation"]) == pytest.approx(list(reference["mean_activation"]))

"""Sums, counts and extremes are those of a count in float64, however memory is laid out."""

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reludiag
from reludiag.measure import reductions
from reludiag.measure.liveness import Liveness
from reludiag.measure.unit_stats import UnitStats

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = reductions._kernels.widths() if reductions._kernels else []


@pytest.fixture(params=["operators", *WIDTHS], ids=str)
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """How activations are read: by operators, or by vectors of so many bytes that this CPU has."""
    if request.param == "operators":
        monkeypatch.setattr(reductions, "_kernels", None)
        yield
        return
    assert reductions._kernels is not None
    reductions._kernels.use_width(request.param)
    yield
    reductions._kernels.use_width(WIDTHS[0])


@pytest.mark.skipif(
    shutil.which("c++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="needs a C++ compiler and the headers of Python",
)
def test_the_reductions_are_compiled_where_there_is_a_compiler() -> None:
    assert reductions._kernels is not None


@pytest.mark.skipif(not WIDTHS, reason="nothing was compiled")
def test_a_width_that_the_cpu_does_not_have_is_refused() -> None:
    assert reductions._kernels is not None
    with pytest.raises(ValueError, match="no vectors of 24 bytes"):
        reductions._kernels.use_width(24)


@st.composite
def activations(draw: st.DrawFn) -> tuple[Tensor, bool]:
    """(`[sample, unit, position]` or `[sample, unit]`, whether it can be negative)."""
    samples, units = draw(st.integers(1, 9)), draw(st.integers(1, 70))
    positions = draw(st.sampled_from([None, 1, 2, 4, 5, 8, 15, 16, 17, 49, 130]))
    signed, dtype = draw(st.booleans()), draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = (samples, units) if positions is None else (samples, units, positions)
    x = torch.randn(shape, generator=generator) * 3
    if not signed:
        x = x.clamp(min=0)
    rates = torch.rand(units, generator=generator) ** 4
    fires = torch.rand(shape, generator=generator) < rates.view(1, -1, *[1] * (len(shape) - 2))
    x = torch.where(fires, x, torch.tensor(draw(st.sampled_from([0.0, -0.0])))).to(dtype)
    for value in draw(st.lists(st.sampled_from([float("nan"), float("inf"), 1e-7]), max_size=2)):
        x.view(-1)[int(torch.randint(x.numel(), (), generator=generator))] = value
    if draw(st.booleans()):  # units next to each other in memory
        x = x.transpose(1, -1).contiguous().transpose(1, -1)
    if draw(st.booleans()):  # with gaps between samples
        x = torch.stack([x, x], dim=1)[:, 0]
    return x, signed


def expected(x: Tensor, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, maxima and minima, in float64."""
    y = x.double() if x.ndim == 3 else x.double().unsqueeze(2)
    firing = (y != 0) & ~y.isnan() if signed else y > 0
    rows = [firing.sum((0, 2)), firing.any(2).sum(0), y.sum((0, 2)), (y * y).sum((0, 2))]
    rows += [y.abs().sum((0, 2))] if signed else []
    return torch.stack([row.double() for row in rows]), y.amax((0, 2)), y.amin((0, 2))


@given(activations(), st.sampled_from([1, 2]))
@settings(max_examples=400)
def test_all_statistics_are_those_of_a_count_in_float64(
    reading: None, case: tuple[Tensor, bool], threads: int
) -> None:
    x, signed = case
    before_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stats = UnitStats.empty(x.shape[1], dtype=x.dtype, signed=signed)
        live = Liveness(x.shape[1], "cpu", x.dtype, signed)
        for _ in range(2):
            stats.update(x)
            live.observe(x)
    finally:
        torch.set_num_threads(before_threads)
    sums, highest, lowest = expected(x, signed)
    assert torch.equal(stats.sums[:2], 2 * sums[:2])
    torch.testing.assert_close(stats.sums[2:], 2 * sums[2:], rtol=1e-12, atol=1e-9, equal_nan=True)
    finite = ~sums[2].isnan()
    assert torch.equal(stats.maximum.double()[finite], highest[finite])
    assert torch.equal(stats.minimum.double()[finite], lowest[finite])
    assert not stats.maximum[~finite].isfinite().any()
    silent, nonfinite = live.mask()
    assert (torch.from_numpy(silent) == (sums[1] == 0))[finite].all()
    assert torch.from_numpy(nonfinite)[~finite & (sums[1] == 0)].all()


@given(activations(), st.booleans())
@settings(max_examples=200)
def test_the_highest_preactivation_is_known_of_all_units_that_never_fired(
    reading: None, case: tuple[Tensor, bool], passes: bool
) -> None:
    before, _ = case
    stats = UnitStats.empty(before.shape[1], dtype=before.dtype, passes_input=passes)
    stats.update(before.clamp(min=0), before)
    sums, _, _ = expected(before.clamp(min=0), signed=False)
    _, highest, _ = expected(before, signed=True)
    asked = sums[1] == 0 if passes else torch.ones(len(highest), dtype=torch.bool)
    torch.testing.assert_close(
        stats.before_maximum[asked], highest.float()[asked], rtol=0, atol=0, equal_nan=True
    )


def test_many_units_are_shared_between_threads_without_losing_one(reading: None) -> None:
    threads = torch.get_num_threads()
    try:
        for torch_threads in (1, 2, 3, 7):
            torch.set_num_threads(torch_threads)
            for units in (63, 64, 65, 700, 1030):
                x = torch.randn(2, units, 64, generator=torch.Generator().manual_seed(units))
                for laid in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
                    stats = UnitStats.empty(units)
                    stats.update(laid.clamp(min=0))
                    sums, _, _ = expected(x.clamp(min=0), signed=False)
                    torch.testing.assert_close(stats.sums, sums, rtol=1e-12, atol=0)
    finally:
        torch.set_num_threads(threads)


def test_a_model_that_changes_its_type_on_the_way_is_counted_all_the_same(reading: None) -> None:
    stats = UnitStats.empty(3, dtype=torch.float32)
    stats.update(torch.tensor([[1.0, 0.0, 2.0]]))
    stats.update(torch.tensor([[0.0, 0.0, 3.0]], dtype=torch.float64))
    assert stats.sums[1].tolist() == [1, 0, 2]
    assert stats.maximum.tolist() == [1, 0, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_counts_and_sums_go_on_beyond_what_float32_can_count(
    reading: None, dtype: torch.dtype
) -> None:
    stats = UnitStats.empty(1, dtype=dtype)
    for positions in (2**24, 1, 2):
        stats.update(torch.ones(1, 1, positions, dtype=dtype))
    assert stats.sums[:, 0].tolist() == [2**24 + 3, 3, 2**24 + 3, 2**24 + 3]


@pytest.mark.parametrize("signed", [False, True])
def test_what_float32_cannot_hold_is_neither_silent_nor_infinite(
    reading: None, signed: bool
) -> None:
    for first in (torch.float32, torch.float64):
        live = Liveness(3, "cpu", first, signed)
        live.observe(torch.tensor([[1e-300, 0.0, 1e300]], dtype=torch.float64))
        silent, nonfinite = live.mask()
        assert silent.tolist() == [False, True, False]
        assert not nonfinite.any()


def test_the_imaginary_part_of_a_conjugate_is_read_with_its_sign(reading: None) -> None:
    class Imaginary(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.conj().imag)

    x = torch.complex(torch.zeros(8, 3), torch.rand(8, 3) + 1)
    units = reludiag.scan(Imaginary(), [x, x]).units
    assert (units["verdict"] == "dead").all()
    assert units["max_preactivation"].to_numpy() == pytest.approx((-x.imag).amax(0).numpy())


@pytest.mark.parametrize("positions", [None, 3, 4, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_samples_are_shared_between_threads_without_losing_one(
    reading: None, dtype: torch.dtype, positions: int | None
) -> None:
    shape = (700, 389) if positions is None else (-(-(2**17) // 77 // positions), 77, positions)
    shape = (max(shape[0], 40), *shape[1:])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).clamp(min=0).to(dtype)
    x[:, 5] = 0
    x[3, 7], x[-2, 11], x[-1, 13] = float("nan"), float("nan"), float("inf")
    sums, highest, lowest = expected(x, signed=False)
    known = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            stats = UnitStats.empty(shape[1], dtype=dtype)
            for _ in range(2):
                stats.update(x)
            torch.testing.assert_close(stats.sums, 2 * sums, rtol=1e-12, atol=0, equal_nan=True)
            torch.testing.assert_close(
                stats.maximum.double(), highest, rtol=0, atol=0, equal_nan=True
            )
            torch.testing.assert_close(
                stats.minimum.double(), lowest, rtol=0, atol=0, equal_nan=True
            )
    finally:
        torch.set_num_threads(known)

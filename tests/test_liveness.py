"""Liveness is exact in every window, whatever the scheme that makes it cheap leaves unread."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reludiag
from reludiag.measure.liveness import Liveness
from reludiag.recording import read_recording

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("rows", "tokens", "nchw", "channels_last")
WINDOWS = 10  # of each combination and each seed
STEPS = 8


def passing(units: int, layout: str, dtype: torch.dtype) -> nn.Sequential:
    """A layer that hands on its input as it is, and a ReLU."""
    layer = nn.Linear(units, units) if layout in ("rows", "tokens") else nn.Conv2d(units, units, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(units).view(layer.weight.shape))
        layer.bias.zero_()
    return nn.Sequential(layer, nn.ReLU(inplace=bool(units % 2))).to(dtype)


def activations(generator: torch.Generator, rates: Tensor, layout: str) -> Tensor:
    """Pre-activations that are positive where a unit's rate says so, and seldom at that."""
    units, samples = len(rates), int(torch.randint(1, 5, (), generator=generator))
    shape = {"rows": (samples,), "tokens": (samples, 3)}.get(layout, (samples, 2, 3))
    x = -torch.rand(*shape, units, generator=generator) - 0.01
    fires = torch.rand(*shape, units, generator=generator) < rates
    x = torch.where(fires, torch.rand(*shape, units, generator=generator) + 0.01, x)
    if layout in ("rows", "tokens"):
        return x
    x = x.movedim(-1, 1)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x.contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dead_of_every_window_are_those_of_a_full_count(
    dtype: torch.dtype, layout: str, tmp_path: Path, reading: str
) -> None:
    """10,240 steps in all, over windows of all phases of the scheme."""
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        units = random.Random(seed).choice((5, 16, 40, 64))
        # From units that always fire to units that never do, and rare ones in between.
        rates = torch.rand(units, generator=generator) ** 6
        rates[torch.rand(units, generator=generator) < (0.0, 0.05, 0.5, 0.9)[seed]] = 0.0
        model = passing(units, layout, dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        fired = np.zeros((WINDOWS, units), dtype=bool)
        path = tmp_path / f"{seed}.reludiag"
        with reludiag.Monitor(
            model, optimizer, path=path, every=STEPS, stats_every=(1, 3, 8, 100)[seed]
        ):
            for window, _ in itertools.product(range(WINDOWS), range(STEPS)):
                x = activations(generator, rates, layout).to(dtype)
                model(x)
                positive = (x > 0) if layout in ("rows", "tokens") else (x > 0).movedim(1, -1)
                fired[window] |= positive.reshape(-1, units).any(0).numpy()
                optimizer.step()
        (site,) = read_recording(path).sites
        assert (site.dead[1:] == ~fired).all()


special = st.sampled_from(
    [0.0, -0.0, 1.0, 1e-42, 3e-39, float("inf"), float("nan"), -float("nan"), 65504.0]
)


@settings(max_examples=300)
@given(
    st.lists(st.lists(special, min_size=6, max_size=6), min_size=1, max_size=9),
    st.sampled_from(DTYPES),
    st.booleans(),
)
@example(
    calls=[[0.0] * 6, [0.0, 0.0, 0.0, 0.0, -0.0, -float("nan")]], dtype=torch.float16, signed=False
)
def test_special_values_are_neither_missed_nor_taken_for_silence(
    reading: str, calls: list[list[float]], dtype: torch.dtype, signed: bool
) -> None:
    live = Liveness(3, "cpu", dtype, signed)
    seen = torch.tensor(calls, dtype=dtype).view(-1, 1, 3, 2)
    for x in seen:
        live.observe(x)
    silent, nonfinite = live.mask()
    for unit in range(3):
        values = seen[:, 0, unit].double().flatten()
        fires = bool((values > 0).any() or (signed and (values != 0).any()))
        lost = bool((~values.isfinite()).any())
        # Once a unit has fired it may go unread; a unit called silent has been read throughout.
        assert not (silent[unit] and fires and not nonfinite[unit])
        if not fires and not lost:
            assert silent[unit] and not nonfinite[unit]
        if lost and not fires:
            assert nonfinite[unit]

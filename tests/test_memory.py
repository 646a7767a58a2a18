"""Memory: so many bytes a unit on the model's device, whatever the batch, and no activation."""

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import reludiag

UNITS = 10_000
LIMIT = 64
PANDAS = str(Path(pd.__file__).parent)


@pytest.fixture(autouse=True)
def only_what_a_test_makes() -> Iterator[None]:
    """Millions of objects are there already, and looking through them takes seconds each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def bytes_in_tensors() -> int:
    """Of all tensors that Python knows of and this test made, each memory once."""
    gc.collect()
    storages = [o.untyped_storage() for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(inplace=True), nn.Hardswish(), nn.GELU()],
    ids=lambda activation: repr(activation),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_watched_unit_takes_at_most_64_bytes(
    activation: nn.Module, dtype: torch.dtype, reading: str
) -> None:
    taken = [
        watched_bytes(nn.Sequential(nn.Linear(2, units), activation).to(dtype), batch)
        for units, batch in ((UNITS, 4), (UNITS, 40), (2 * UNITS, 4))
    ]
    assert taken[0] == pytest.approx(taken[1], abs=0.01 * UNITS)  # nothing of the batch is kept
    # A layer has samples of its weights as well, the same for any width.
    assert 40 < (taken[2] - taken[0]) / UNITS <= LIMIT + 0.01


def watched_bytes(model: nn.Sequential, batch: int) -> int:
    """What a Monitor of this model has in tensors after three steps."""
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.bias[:9] = -100.0  # some silent ones, so that it has to stay awake
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = bytes_in_tensors()
    with reludiag.Monitor(model, optimizer, every=100, stats_every=2):
        for _ in range(3):
            model(torch.randn(batch, 2, dtype=layer.weight.dtype)).sum().backward()
            optimizer.step()
        return bytes_in_tensors() - before


class Wide(nn.Module):
    """Sites of so many units each, in a network that is small beside them."""

    def __init__(self, sites: int, units: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, units) for _ in range(sites))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.relu(layer(x)).unflatten(1, (4, -1)).mean(2)
        return x


def work(sites: int, folder: Path) -> tuple[reludiag.Diagnosis, int, int]:
    """A scan of sites of 20 units each, and what it took to have all of it written: the functions
    called, and the rows of the tables whose methods were called.
    """
    model = Wide(sites, 20)
    with torch.no_grad():
        model.layers[77].bias[11] = -100.0
    batches = [torch.randn(4, 4) for _ in range(3)]
    calls = rows = 0

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls, rows
        calls += event in ("call", "c_call")
        if event == "call" and frame.f_code.co_filename.startswith(PANDAS):
            owner = frame.f_locals.get("self")
            if isinstance(owner, pd.DataFrame | pd.Series | pd.Index):
                with contextlib.suppress(AttributeError):  # it is being made
                    rows += len(owner)

    sys.setprofile(count)
    try:
        diagnosis = reludiag.scan(model, batches)
        assert len(str(diagnosis).splitlines()) < 200
        diagnosis.to_csv(folder / "units.csv")
        diagnosis.to_csv(folder / "all.csv", all_units=True)
    finally:
        sys.setprofile(None)
    return diagnosis, calls, rows


@pytest.mark.slow
def test_300_sites_take_no_more_work_than_their_number(tmp_path: Path) -> None:
    work(100, tmp_path)  # what happens once, such as imports
    (_, *fewer), (diagnosis, *more) = work(100, tmp_path), work(300, tmp_path)
    assert len(diagnosis.sites) == 300 and len(diagnosis.units) == 6_000
    dead = diagnosis.units.query("site == 'relu#77' and unit == 11")
    assert list(dead["verdict"]) == ["dead"]
    for before, after in zip(fewer, more, strict=True):
        assert before > 10_000
        assert after < 4 * before  # as their square it would be 9 times

"""Several processes and other devices: what is counted there is what is counted here."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import reludiag
from tests.forked import CONTEXT

RANKS = 2


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU()]
    return nn.Sequential(*layers)


def train_one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    model = network()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(rank)
    fired = torch.zeros(16, dtype=torch.int64)

    def count(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        fired.add_((output > 0).sum(0))

    model[2].register_forward_hook(count)
    buffers = set(dict(model.named_buffers()))
    with reludiag.Monitor(model, optimizer, every=10, stats_every=1) as monitor:
        for _ in range(10):
            optimizer.zero_grad()
            x = torch.randn(8, 8, generator=generator) - 3 * rank
            parallel(x).square().mean().backward()
            optimizer.step()
    assert set(dict(model.named_buffers())) == buffers
    units = monitor.diagnose().units
    torch.save((units["fired"].tolist()[:16], fired.tolist()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="gloo cannot be had")
def test_each_rank_counts_its_own_batches(tmp_path: Path) -> None:
    """The broadcast of rank 0's buffers, which comes with every forward, overwrites no count."""
    ranks = [CONTEXT.Process(target=train_one_rank, args=(n, str(tmp_path))) for n in range(RANKS)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * RANKS
    counted = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    assert counted[0][0] == counted[0][1]
    assert counted[1][0] == counted[1][1]
    assert counted[0][1] != counted[1][1]


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def recorded(device: str, stats_every: int) -> pd.DataFrame:
    # In float64: a GPU adds up in another order, and no unit is to fire by a rounding.
    model = network().double().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 8, generator=generator).double().to(device) for _ in range(30)]
    with reludiag.Monitor(model, optimizer, every=20, stats_every=stats_every) as monitor:
        for step, x in enumerate(batches):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            watched = device == "cuda" and 0 < step < 19  # a snapshot may wait for the device
            if watched:
                torch.cuda.set_sync_debug_mode("error")
            try:
                model(x)
                optimizer.step()
            finally:
                if watched:
                    torch.cuda.set_sync_debug_mode("default")
    return monitor.diagnose().units


@cuda
@pytest.mark.parametrize("stats_every", [1, 16])
def test_a_gpu_is_not_waited_for_and_counts_the_same(stats_every: int) -> None:
    columns = ["site", "unit", "verdict", "samples", "counted", "fired", "unit_axis", "producer"]
    here, there = recorded("cpu", stats_every), recorded("cuda", stats_every)
    pd.testing.assert_frame_equal(here[columns], there[columns])

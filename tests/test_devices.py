"""Several processes and other devices: what is counted there is what is counted here."""

import contextlib
from collections.abc import Iterator
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


ON_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@contextlib.contextmanager
def not_waiting(device: str) -> Iterator[None]:
    """An error where anything inside waits for a GPU."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
            # A snapshot may wait for the device.
            with not_waiting(device) if 0 < step < 19 else contextlib.nullcontext():
                model(x)
                optimizer.step()
    return monitor.diagnose().units


@pytest.mark.cuda
@pytest.mark.parametrize("stats_every", [1, 16])
def test_a_gpu_is_not_waited_for_and_counts_the_same(stats_every: int) -> None:
    columns = ["site", "unit", "verdict", "samples", "counted", "fired", "unit_axis", "producer"]
    here, there = recorded("cpu", stats_every), recorded("cuda", stats_every)
    pd.testing.assert_frame_equal(here[columns], there[columns])


class Squared(nn.Module):
    """The feed-forward part of a transformer with ReLU squared."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape `[sample, token, feature]`."""
        return x + self.down(nn.functional.relu(self.up(self.norm(x))).square())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", ON_DEVICES)
def test_what_fires_under_autocast_is_what_a_hook_sees(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Squared().to(device)
    with torch.no_grad():
        model.up.bias[:5] = -100.0
    fired = torch.zeros(32, dtype=torch.int64, device=device)
    watching = False

    def count(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if watching:
            fired.add_((output > 0).any(1).sum(0))

    model.up.register_forward_hook(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    with reludiag.Monitor(model, optimizer, every=10, stats_every=1) as monitor:
        for step in range(10):
            watching = True
            x = torch.randn(4, 6, 8, device=device)
            with torch.autocast(device, dtype):
                loss = model(x).square().mean()
            scaler.scale(loss).backward()
            # The scaler reads whether the gradients are finite.
            waits = step in (0, 9) or scaler.is_enabled()
            with contextlib.nullcontext() if waits else not_waiting(device):
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    units = monitor.diagnose().units
    assert units["fired"].tolist() == fired.tolist()
    assert set(units[units["verdict"] == "dead"]["unit"]) >= set(range(5))


@pytest.mark.cuda
def test_a_compiled_step_is_one_graph_and_is_never_compiled_again() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = network().cuda()
    compiled = torch.compile(model, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    graphs = []
    with reludiag.Monitor(model, optimizer, every=10, stats_every=3) as monitor:
        for _ in range(40):
            compiled(torch.randn(8, 8, device="cuda")).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[9] == graphs[-1]
    assert not torch._dynamo.utils.counters["graph_break"]
    assert monitor.diagnose().sites["samples"].tolist() == [80, 80]


@pytest.mark.cuda
def test_a_monitored_step_can_be_captured_in_a_cuda_graph() -> None:
    """What a replay runs is counted, too: a unit that fires in replays alone is not dead."""

    def trained(watch: bool) -> tuple[list[torch.Tensor], Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).cuda()
        with torch.no_grad():
            model[0].weight[:2] = 0.0  # type: ignore[union-attr, operator]
            model[0].bias[:2] = -1.0  # type: ignore[union-attr, operator]
            model[0].weight[1, 0] = 1.0  # type: ignore[union-attr, operator]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, foreach=True)
        x = torch.zeros(32, 8, device="cuda")
        monitor = reludiag.Monitor(model, optimizer, every=1000)
        with monitor if watch else contextlib.nullcontext():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(20):
                    optimizer.zero_grad(set_to_none=True)
                    model(x).square().mean().backward()
                    optimizer.step()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                model(x).square().mean().backward()
                optimizer.step()
            for _ in range(10):
                x.fill_(2.0)
                graph.replay()
            torch.cuda.synchronize()
        state = [parameter.detach().clone() for parameter in model.parameters()]
        return state, monitor.diagnose().units if watch else None

    bare, _ = trained(watch=False)
    watched, units = trained(watch=True)
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    dead = set(units[units["verdict"] == "dead"]["unit"])
    assert 0 in dead and 1 not in dead

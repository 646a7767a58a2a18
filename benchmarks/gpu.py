"""What a Monitor adds to a training step on a GPU.

Method: copies of one network train in turn, 20 steps each, in random order, under bfloat16
autocast: bare, bare again (A/A, which shows the noise), monitored with statistics of every 16th
step (the default), and monitored with statistics of every step. Each step is between two CUDA
events, which are read after the turn, so that nothing waits. The turns cover whole windows of 100
steps, with their snapshots. `ratio` is the mean step / the mean bare step. `floor` is 1 + the time
to read the outputs of all rectifiers once, in each step, at the bandwidth of a copy / the mean bare
step: what a kernel of its own costs at least. Before it, the tests of `pytest -m cuda` run: no step
waits for the device, counts equal those of the CPU, one compiled graph, capture in a CUDA graph.
"""

import argparse
import copy
import functools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from report import Table, write_section
from torch import Tensor, nn
from torch.nn import functional
from workloads import resnet

import reludiag
from reludiag.measure import reductions
from reludiag.measure.unit_stats import UnitStats

WINDOW, TURN, WARM_UP = 100, 20, 40
RESNET = (256, 3, 64, 64)
WIDTH, TOKENS, SEQUENCES, HEADS = 1024, 1024, 16, 16


class SquaredBlock(nn.Module):
    """A transformer block with ReLU squared (So et al. 2021, "Primer")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of shape `[sample, token, feature]`."""
        heads = self.qkv(self.before_attention(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(functional.relu(self.up(self.before_mlp(x))).square())


def blocks(width: int) -> nn.Module:
    """Four of them."""
    return nn.Sequential(*[SquaredBlock(width) for _ in range(4)])


class Training:
    """A network in training on a device, one step at a time."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], device: str) -> None:
        self.model, self.device = copy.deepcopy(model).to(device), device
        self.batches = [torch.randn(shape, device=device) for _ in range(4)]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.steps = 0

    def step(self) -> None:
        """Forward, backward, update."""
        x = self.batches[self.steps % len(self.batches)]
        self.steps += 1
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.model(x).float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Clock:
    """Times calls on a device without waiting for it; `milliseconds` waits."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._taken: list[float] = []

    def time(self, call: Callable[[], object]) -> None:
        """Call it."""
        if self._device == "cpu":
            start = time.perf_counter()
            call()
            self._taken.append(1000 * (time.perf_counter() - start))
            return
        span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        span[0].record()
        call()
        span[1].record()
        self._spans.append(span)

    def milliseconds(self) -> list[float]:
        """Of each call so far."""
        if self._spans:
            torch.cuda.synchronize()
            self._taken += [begin.elapsed_time(end) for begin, end in self._spans]
            self._spans = []
        return self._taken


def timed(call: Callable[[], object], device: str, times: int = 50) -> float:
    """Median milliseconds of a call."""
    clock = Clock(device)
    for _ in range(times // 5):
        call()
    for _ in range(times):
        clock.time(call)
    return statistics.median(clock.milliseconds())


def bandwidth(device: str) -> float:
    """Bytes a millisecond of a copy, which reads and writes."""
    source = torch.empty(2**28 if device == "cuda" else 2**22, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / timed(lambda: target.copy_(source), device)


def rectified_bytes(training: Training) -> int:
    """Bytes in the outputs of all rectifiers, in one step."""
    total = 0

    def note(rectifier: Tensor) -> Tensor:
        nonlocal total
        total += rectifier.numel() * rectifier.element_size()
        return rectifier

    class Outputs(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            return note(result) if func in (functional.relu, torch.relu, torch.relu_) else result

    with Outputs(), torch.no_grad(), torch.autocast(training.device, torch.bfloat16):
        training.model(training.batches[0])
    return total


def measure(model: nn.Module, shape: tuple[int, ...], device: str, windows: int) -> Table:
    """A row for each way of training."""
    names = ("bare", "bare (A/A)", "monitored", "all statistics")
    trainings = {name: Training(model, shape, device) for name in names}
    floor = rectified_bytes(trainings["bare"]) / bandwidth(device)
    clocks = {name: Clock(device) for name in names}
    table = Table("", "ms/step", "ratio", "floor")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, every in (("monitored", 16), ("all statistics", 1)):
            training = trainings[name]
            stack.enter_context(
                reludiag.Monitor(
                    training.model,
                    training.optimizer,
                    path=folder / f"{every}.reludiag",
                    every=WINDOW,
                    stats_every=every,
                )
            )
        for training in trainings.values():
            for _ in range(WARM_UP):
                training.step()
        for _ in range(windows * WINDOW // TURN):
            for name in random.sample(names, len(names)):
                for _ in range(TURN):
                    clocks[name].time(trainings[name].step)
                clocks[name].milliseconds()
    taken = {name: statistics.mean(clock.milliseconds()) for name, clock in clocks.items()}
    for name, milliseconds in taken.items():
        ratio = milliseconds / taken["bare"]
        least = "" if name.startswith("bare") else f"{1 + floor / taken['bare']:.4f}"
        table.add(name, f"{milliseconds:.3f}", f"{ratio:.4f}", least)
    return table


def kernels(device: str, small: bool) -> Table:
    """What the reductions cost, as a multiple of reading the tensor once."""
    table = Table("activations [sample, unit, position]", "floor, ms", "liveness", "all statistics")
    speed = bandwidth(device)
    shapes = ((256, 64, 1024), (256, 512, 16), (SEQUENCES * TOKENS, 4 * WIDTH))
    for shape in shapes:
        shape = tuple(min(n, 8) for n in shape) if small else shape
        x = torch.randn(shape, device=device, dtype=torch.bfloat16).relu()
        states = torch.zeros(shape[1], dtype=torch.uint8, device=device)
        highest = torch.full((shape[1],), -float("inf"), device=device)
        stats = UnitStats.empty(shape[1], device, x.dtype, passes_input=True)
        calls = (
            functools.partial(reductions.note_firing, x, None, False, states, highest),
            functools.partial(stats.update, x),
        )
        least = x.numel() * x.element_size() / speed
        multiples = (f"{timed(call, device) / least:.2f}" for call in calls)
        table.add(str(list(shape)), f"{least:.4f}", *multiples)
    return table


def main() -> None:
    """Run the tests, measure, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--windows", type=int, default=2, help="of 100 steps each")
    parser.add_argument(
        "--dry", action="store_true", help="tiny networks on the CPU: does the script run?"
    )
    options = parser.parse_args()
    device = "cpu" if options.dry else "cuda"
    if not options.dry:
        if not torch.cuda.is_available():
            sys.exit("no GPU was found. --dry runs the same on tiny networks on the CPU")
        tests = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests/test_devices.py"]
        subprocess.run(tests, check=False, cwd=Path(__file__).parents[1])
    torch.manual_seed(0)
    width = 64 if options.dry else WIDTH
    networks: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "resnet": (resnet(), (2, 3, 32, 32) if options.dry else RESNET),
        "relu2": (blocks(width), (2, 8, width) if options.dry else (SEQUENCES, TOKENS, WIDTH)),
    }
    for name, (model, shape) in networks.items():
        print(name, list(shape))
        table = measure(model, shape, device, options.windows)
        if not options.dry:
            write_section(f"gpu {name}", f"On a GPU: {name} {list(shape)}.\n\n{__doc__}", table)
    table = kernels(device, options.dry)
    if not options.dry:
        method = "On a GPU: what a reduction costs, as a multiple of reading the tensor once."
        write_section("gpu kernels", method, table)


if __name__ == "__main__":
    main()

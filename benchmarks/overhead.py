"""What a Monitor adds to a training step.

Method: one process, one thread; each round runs the same number of steps bare, bare again (A/A:
the noise), and under a Monitor, in random order; medians of the wall time per step over the
rounds. Snapshots are in the time. Without a probe the hooks run on every batch; with one, nothing
runs between snapshots.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import reludiag

ROUNDS, STEPS, EVERY = 12, 100, 100


def mlp() -> tuple[nn.Module, Tensor]:
    """784-1024-1024-10 at batch 128."""
    layers = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 10)), torch.randn(128, 784)


def cnn() -> tuple[nn.Module, Tensor]:
    """Three convolutions at 32 x 3 x 32 x 32."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *head), torch.randn(32, 3, 32, 32)


def train(build: Callable[[], tuple[nn.Module, Tensor]], watch: str, folder: Path) -> float:
    """Seconds per step."""
    model, x = build()
    y = torch.randint(0, 10, (len(x),))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    steps(5)
    start = time.perf_counter()
    if watch.startswith("bare"):
        steps(STEPS)
    else:
        probe = x if watch == "probe" else None
        path = folder / "run.reludiag"
        with reludiag.Monitor(
            model, optimizer, path=path, every=EVERY, probe=probe, overwrite=True
        ):
            steps(STEPS)
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    print(f"{'model':6} {'':12} {'ms/step':>8} {'ratio':>6}")
    for build in (mlp, cnn):
        times: dict[str, list[float]] = {w: [] for w in ("bare", "bare (A/A)", "window", "probe")}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(ROUNDS):
                for watch in random.sample(list(times), len(times)):
                    times[watch].append(train(build, watch, Path(folder)))
        base = statistics.median(times["bare"])
        for watch, values in times.items():
            median = statistics.median(values)
            print(f"{build.__name__:6} {watch:12} {1000 * median:8.2f} {median / base:6.3f}")


if __name__ == "__main__":
    main()

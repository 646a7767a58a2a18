"""What a scan costs: against a bare forward over the same data, and of a million units.

Method: one process, all threads. The bare forward is `model(x)` under `no_grad` in eval mode over
the same batches, in turn with `reludiag.scan` of them, in random order; medians are compared. The
scan's verdicts are included. The large model is a chain of 500 pairs of Linear and ReLU of 2,000
units each; its reports are timed as well, and the memory is what they add at their highest.
"""

import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import Table, write_section
from torch import nn
from workloads import WORKLOADS, Workload

import reludiag

BATCHES, ROUNDS = 32, 5


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(workload: Workload) -> dict[str, float]:
    """Median seconds of the bare forward, of the same again (A/A), and of a scan."""
    torch.manual_seed(0)
    model = workload.build().eval()
    batches = [torch.randn(workload.shape) for _ in range(BATCHES)]

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    kinds = {"bare": bare, "A/A": bare, "scan": lambda: reludiag.scan(model, batches)}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind in random.sample(list(kinds), len(kinds)):
            taken[kind].append(seconds(kinds[kind]))
    return {kind: statistics.median(times) for kind, times in taken.items()}


def megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def a_million_units() -> list[tuple[str, str]]:
    """(What, how much) of the large model."""
    layers = [layer for _ in range(500) for layer in (nn.Linear(2000, 2000), nn.ReLU())]
    with torch.no_grad():
        for layer in layers[::2]:  # one matrix for all: 8 GB of weights are not the matter here
            layer.weight = layers[0].weight
    model, batches = nn.Sequential(*layers).eval(), [torch.randn(16, 2000) for _ in range(4)]
    with torch.no_grad():
        bare = seconds(lambda: [model(batch) for batch in batches])
    before = megabytes()
    found: list[reludiag.Diagnosis] = []
    scanned = seconds(lambda: found.append(reludiag.scan(model, batches)))
    rows = [
        ("bare forward of 4 batches", f"{bare:.1f} s"),
        ("scan of the same, with verdicts", f"{scanned:.1f} s"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        csv = seconds(lambda: found[0].to_csv(Path(folder) / "dead.csv"))
        json = seconds(lambda: found[0].to_json(Path(folder) / "report.json"))
    rows += [("CSV of all", f"{csv:.1f} s"), ("JSON of all", f"{json:.1f} s")]
    return [*rows, ("memory added", f"{megabytes() - before:.0f} MB")]


def main() -> None:
    """Measure and write both tables."""
    table = Table("network", "bare, ms a batch", "A/A", "scan")
    for workload in WORKLOADS:
        found = measure(workload)
        table.add(
            workload.name,
            f"{1000 * found['bare'] / BATCHES:.1f}",
            f"{found['A/A'] / found['bare']:.3f}",
            f"{found['scan'] / found['bare']:.3f}",
        )
    write_section("scan", __doc__ or "", table)
    large = Table("1,000,000 units in 500 sites", "")
    for what, much in a_million_units():
        large.add(what, much)
    write_section("million", "A million units.", large)


if __name__ == "__main__":
    main()

"""What a scan costs: against a bare forward over the same data, and of a million units.

Method: one process, all threads. While `reludiag.scan` runs, its data gives each batch to two twins
of the network as well, one for the A/A row: bare `model(x)` under `no_grad` in eval mode. So each
batch is timed three times in turn, in random order, and each time with weights of its own: those
that were in use a moment ago are read faster. `scan` is the median time of a batch in it, reading
the data's values included, over the bare median. `once` is what the scan takes beside: set-up,
verdicts, and what its first two batches take longer than others. The last column is the whole scan
of 50,000 samples, over 50,000 samples bare. The C library is told to keep the memory that it has:
otherwise page faults come and go by chance, and are a fifth of a pass. The large model is a chain
of 500 pairs of Linear and ReLU of 2,000 units each; its reports are timed as well.
"""

import copy
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from report import Table, write_section
from torch import Tensor, nn
from workloads import WORKLOADS, Workload

import reludiag

SECONDS, SAMPLES, WARM_UP = 8.0, 50_000, 2
KEEP = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Interleaved:
    """Batches for a scan, each also given to two bare networks; the time of each is kept."""

    def __init__(self, workload: Workload, network: nn.Module) -> None:
        self._twins = {kind: copy.deepcopy(network) for kind in ("bare", "A/A")}
        self.batches = [torch.randn(workload.shape) for _ in range(16)]
        self.times: dict[str, list[float]] = {"bare": [], "A/A": [], "scan": []}
        self.elsewhere = 0.0
        """Seconds that were not the scan's."""

    def run(self, kind: str, batch: Tensor) -> None:
        """Time a bare network's forward."""
        self.times[kind].append(seconds(lambda: self._twins[kind](batch)))

    def __iter__(self) -> Iterator[Tensor]:
        begin = time.perf_counter()
        while time.perf_counter() - begin < SECONDS:
            start = time.perf_counter()
            batch = random.choice(self.batches)
            kinds = random.sample(list(self.times), 3)
            for kind in kinds[: kinds.index("scan")]:
                self.run(kind, batch)
            given = time.perf_counter()
            yield batch
            back = time.perf_counter()
            self.times["scan"].append(back - given)
            for kind in kinds[kinds.index("scan") + 1 :]:
                self.run(kind, batch)
            self.elsewhere += time.perf_counter() - start - (back - given)


def measure(workload: Workload) -> dict[str, float]:
    """Median seconds of a bare batch, of the same again (A/A), and in a scan; seconds once."""
    torch.manual_seed(0)
    model = workload.build().eval()
    reludiag.scan(model, [torch.randn(workload.shape)])  # imports
    data = Interleaved(workload, model)
    whole = seconds(lambda: reludiag.scan(model, data)) - data.elsewhere
    found = {kind: statistics.median(times[WARM_UP:]) for kind, times in data.times.items()}
    others = sum(data.times["scan"][WARM_UP:]) + WARM_UP * found["scan"]
    return {**found, "once": whole - others}


def megabytes(highest: bool) -> float:
    """The memory that this process has, or the most that it had since `forget_highest`."""
    status = Path("/proc/self/status").read_text()
    name = "VmHWM" if highest else "VmRSS"
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def forget_highest() -> None:
    """Count the highest memory from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def a_million_units() -> list[tuple[str, str]]:
    """(What, how much) of the large model."""
    layers = [layer for _ in range(500) for layer in (nn.Linear(2000, 2000), nn.ReLU())]
    with torch.no_grad():
        for layer in layers[::2]:  # one matrix for all: 8 GB of weights are not the matter here
            layer.weight = layers[0].weight
    model, batches = nn.Sequential(*layers).eval(), [torch.randn(16, 2000) for _ in range(4)]
    with torch.no_grad():
        bare = seconds(lambda: [model(batch) for batch in batches])
    forget_highest()
    before = megabytes(highest=False)
    found: list[reludiag.Diagnosis] = []
    scanned = seconds(lambda: found.append(reludiag.scan(model, batches)))
    scan_memory = megabytes(highest=True) - before
    rows = [
        ("bare forward of 4 batches", f"{bare:.1f} s"),
        ("scan of the same, with verdicts", f"{scanned:.1f} s"),
        ("memory that the scan added at its highest", f"{scan_memory:.0f} MB"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        csv = seconds(lambda: found[0].to_csv(Path(folder) / "dead.csv"))
        json = seconds(lambda: found[0].to_json(Path(folder) / "report.json"))
    rows += [("CSV of all", f"{csv:.1f} s"), ("JSON of all", f"{json:.1f} s")]
    return [*rows, ("the same with its reports", f"{megabytes(highest=True) - before:.0f} MB")]


def main() -> None:
    """Measure and write both tables."""
    if not KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    table = Table("network", "bare, ms a batch", "A/A", "scan", "once, ms", "50,000 samples")
    for workload in WORKLOADS:
        found = measure(workload)
        bare, ratio = found["bare"], found["scan"] / found["bare"]
        table.add(
            workload.name,
            f"{1000 * bare:.2f}",
            f"{found['A/A'] / bare:.3f}",
            f"{ratio:.3f}",
            f"{1000 * found['once']:.0f}",
            f"{ratio + found['once'] / (bare * SAMPLES / workload.shape[0]):.3f}",
        )
    write_section("scan", __doc__ or "", table)
    large = Table("1,000,000 units in 500 sites", "")
    for what, much in a_million_units():
        large.add(what, much)
    write_section("million", "A million units.", large)


if __name__ == "__main__":
    main()

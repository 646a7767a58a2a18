"""What a scan costs: compared with a bare forward pass over the same data, and for a million units.

Method: one process, all threads. While `reludiag.scan` runs, two copies of the network get the
same batches, as bare `model(x)` under `no_grad` in eval mode; one of them is for the A/A row. The
three take turns of a fifth of a second, in random order. `scan` is the median turn of the scan,
including reading the data's values, / the median bare turn. `once` is the time that a scan takes
once: set-up, verdicts, and the extra time of its first two batches. The last column is a whole
scan of 50,000 samples / 50,000 samples bare. The C library is set to keep its memory: otherwise
random page faults take up to a fifth of a pass. The large model is a chain of 500 pairs of Linear
and ReLU with 2,000 units each; its reports are timed, too.
"""

import copy
import math
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

SECONDS, TURN, SAMPLES, WARM_UP = 12.0, 0.2, 50_000, 2
KEEP = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Interleaved:
    """Batches for a scan, each also run by two bare networks; keeps the time of each."""

    def __init__(self, workload: Workload, network: nn.Module) -> None:
        self._twins = {kind: copy.deepcopy(network) for kind in ("bare", "A/A")}
        self.batches = [torch.randn(workload.shape) for _ in range(16)]
        self.times: dict[str, list[float]] = {"bare": [], "A/A": [], "scan": []}
        """Seconds per batch, of each turn."""
        self.turns = 0.0
        """Seconds of the scan's turns, and of everything that is not the scan."""

    def run(self, kind: str, turn: list[Tensor]) -> None:
        """Time a bare network's turn."""
        start = time.perf_counter()
        for batch in turn:
            self._twins[kind](batch)
        self.times[kind].append((time.perf_counter() - start) / len(turn))

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches[:WARM_UP]
        begin = time.perf_counter()
        self.run("bare", self.batches)
        length = math.ceil(TURN / self.times["bare"].pop())
        while time.perf_counter() - begin < SECONDS:
            turn = random.choices(self.batches, k=length)
            for kind in random.sample(list(self.times), 3):
                if kind != "scan":
                    self.run(kind, turn)
                    continue
                start = time.perf_counter()
                yield from turn
                self.times["scan"].append((time.perf_counter() - start) / length)
        self.turns = time.perf_counter() - begin


def measure(workload: Workload) -> dict[str, float]:
    """Median seconds of a bare batch, of the same again (A/A), and in a scan; seconds once."""
    torch.manual_seed(0)
    model = workload.build().eval()
    reludiag.scan(model, [torch.randn(workload.shape)])  # imports
    data = Interleaved(workload, model)
    whole = seconds(lambda: reludiag.scan(model, data))
    found = {kind: statistics.median(times) for kind, times in data.times.items()}
    return {**found, "once": whole - data.turns - WARM_UP * found["scan"]}


def megabytes(highest: bool) -> float:
    """The memory of this process, now or at its highest since `forget_highest`."""
    status = Path("/proc/self/status").read_text()
    name = "VmHWM" if highest else "VmRSS"
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def forget_highest() -> None:
    """Count the highest memory from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def a_million_units() -> list[tuple[str, str]]:
    """(Label, amount) for the large model."""
    layers = [layer for _ in range(500) for layer in (nn.Linear(2000, 2000), nn.ReLU())]
    with torch.no_grad():
        for layer in layers[::2]:  # shared: 8 GB of weights would add nothing
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

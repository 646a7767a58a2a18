"""What each reduction costs, as a multiple of reading the tensor once.

Method: one process, one thread. A read is `y.sum()` of the same tensor. In each round all
reductions are timed in random order on new activations; the table gives the median ratio to the
read of the same round. `observe` checks which units fire in one batch, with half of the units,
which never fire, left to watch, and with one in 16 left. `update` computes all statistics: firing
counts, active positions, sum, sum of squares, maximum and minimum; the next column adds the
maximum pre-activation of the units that never fired. The last three columns are plain PyTorch, for
comparison.
"""

import random
import statistics
import time
from collections.abc import Callable

import torch
from report import Table, write_section
from torch import Tensor

from reludiag.measure.liveness import Liveness
from reludiag.measure.unit_stats import UnitStats

ROUNDS = 30
# Name, shape of the activations, permutation to [sample, unit, position].
SHAPES = {
    "rows [128, 1024]": ((128, 1024), (0, 1)),
    "NCHW [64, 64, 32, 32]": ((64, 64, 1024), (0, 1, 2)),
    "channels last, same": ((64, 1024, 64), (0, 2, 1)),
    "NCHW [32, 256, 14, 14]": ((32, 256, 196), (0, 1, 2)),
    "tokens [8, 128, 3072]": ((8, 128, 3072), (0, 2, 1)),
}


def kernels(x: Tensor, before: Tensor) -> dict[str, Callable[[], object]]:
    """The timed functions, on activations `[sample, unit]` or `[sample, unit, position]`."""
    units, dtype = x.shape[1], x.dtype
    stats = UnitStats.empty(units, dtype=dtype, passes_input=True)
    watching = Liveness(units, "cpu", dtype, signed=False)
    few = Liveness(units, "cpu", dtype, signed=False)
    awake = x.clone()
    awake[:, : units // 16] = 0
    awake[:, units // 16 :] += 1
    few.observe(awake)
    dims = [dim for dim in range(x.ndim) if dim != 1]
    return {
        "observe, half left": lambda: watching.observe(x),
        "observe, few left": lambda: few.observe(x),
        "update": lambda: stats.update(x),
        "update with maximum before": lambda: stats.update(x, before),
        "x.amax(dims)": lambda: x.amax(dims),
        "(x > 0).sum(dims)": lambda: (x > 0).sum(dims),
        "x.count_nonzero(dims)": lambda: x.count_nonzero(dims),
    }


def measure(shape: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype) -> dict[str, float]:
    """Name -> median multiple of a read."""
    before = torch.randn(shape).to(dtype)
    # Half of the units never fire, as in a sick network, so they stay watched.
    unit_axis = order.index(1) if len(order) == 2 else order[1]
    before.narrow(unit_axis, 0, shape[unit_axis] // 2).abs_().neg_()
    x = before.clamp(min=0).permute(order)
    timed = {"read": lambda: x.sum(), **kernels(x, before.permute(order))}
    ratios: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        seconds = {}
        for name in random.sample(list(timed), len(timed)):
            start = time.perf_counter()
            timed[name]()
            seconds[name] = time.perf_counter() - start
        for name, taken in seconds.items():
            ratios[name].append(taken / seconds["read"])
    return {name: statistics.median(found) for name, found in ratios.items() if name != "read"}


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table: Table | None = None
    for name, (shape, order) in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            found = measure(shape, order, dtype)
            table = table or Table("activations", "dtype", *found)
            table.add(name, str(dtype)[6:], *(f"{value:.1f}" for value in found.values()))
    assert table is not None
    write_section("kernels", __doc__ or "", table)


if __name__ == "__main__":
    main()

"""What a Monitor adds to a training step.

Method: one process, one thread. Copies of one network train in turn: bare, bare again (A/A, which
shows the noise), monitored with statistics of every 16th step (the default), and monitored with
statistics of every step. In each round they take turns of 20 steps in random order; the A/A and
the last copy take part in every fifth round only. The rounds cover whole windows of 100 steps,
including the first batch, sampled steps and the snapshot. The two ratios are:

- inside: 1 + the mean time in reludiag's hooks, modes and snapshots / the mean bare step;
- wall: the median step / the median bare step; differences below the noise of the A/A row mean
  nothing.

Half dead: the biases keep half of the units before each ReLU dead all the time.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from report import Table, write_section
from workloads import WORKLOADS, Training, Workload

import reludiag
import reludiag.capture.hooks
import reludiag.evidence.step_watch
import reludiag.monitoring.clock
import reludiag.sites.functional

WINDOW, TURN, WARM_UP = 100, 20, 40


class Inside:
    """The time spent in reludiag's code; nested calls are counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time added to the total."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return function(*args, **kwargs)
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._depth -= 1

        return call

    def timed_mode(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A mode's handler, without the time in the user's operator."""

        def call(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            user = 0.0

            def operator(*a: Any, **k: Any) -> Any:
                nonlocal user
                begun = time.perf_counter()
                try:
                    return func(*a, **k)
                finally:
                    user += time.perf_counter() - begun

            operator.__name__ = getattr(func, "__name__", "")
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(mode, operator, types, args, kwargs)
            finally:
                self.seconds += time.perf_counter() - start - user
                self._depth -= 1

        return call

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure reludiag's code inside; the clock is stopped outside."""
        places = [
            (reludiag.capture.hooks.Hook, "__call__", self.timed),
            (reludiag.monitoring.clock.BeforeStep, "__call__", self.timed),
            (reludiag.monitoring.clock.AfterStep, "__call__", self.timed),
            (reludiag.evidence.step_watch.AroundStep, "__call__", self.timed),
            (reludiag.sites.functional.RectifierMode, "__torch_function__", self.timed_mode),
        ]
        kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
        for owner, name, wrap in places:
            setattr(owner, name, wrap(getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, original in kept:
                setattr(owner, name, original)


def torchmortem(training: Training) -> Any:
    """Another tool next to reludiag, if it is installed."""
    import torchmortem

    return torchmortem.Torchmortem(training.model, training.optimizer)


def neural_observatory(training: Training) -> Any:
    """Another tool."""
    import neural_observatory

    return neural_observatory.Observatory(training.model)


PEERS = {"torchmortem": torchmortem, "neural-observatory": neural_observatory}


def measure(
    workload: Workload, half_dead: bool, windows: int, peer: str | None
) -> list[tuple[str, float, float, float]]:
    """Rows of (what, milliseconds, inside, wall)."""
    names = ["bare", "bare (A/A)", "monitored", "all statistics"] + ([peer] if peer else [])
    settings = {"monitored": 16, "all statistics": 1}
    trainings = {name: Training(workload, half_dead) for name in names}
    seldom = {1: ("bare (A/A)",), 3: ("all statistics",)}
    inside = {name: Inside() for name in settings}
    times: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        for training in trainings.values():
            for _ in range(3):
                training.step()
        for name, every in settings.items():
            training = trainings[name]
            stack.enter_context(
                reludiag.Monitor(
                    training.model, training.optimizer, every=WINDOW, stats_every=every
                )
            )
            # The first forward pass is followed operator by operator, and the model has to run
            # the same way for some steps before the Monitor skips anything.
            for _ in range(WARM_UP if every > 1 else 3):
                training.step()
        if peer:
            stack.enter_context(PEERS[peer](trainings[peer]))
        for turn in range(windows * WINDOW // TURN):
            taking = ["bare", "monitored", *names[4:], *seldom.get(turn % 5, ())]
            for name in random.sample(taking, len(taking)):
                with ExitStack() as measured:
                    if name in inside:
                        measured.enter_context(inside[name].measuring())
                    for _ in range(TURN):
                        start = time.perf_counter()
                        trainings[name].step()
                        times[name].append(time.perf_counter() - start)
    bare = statistics.median(times["bare"])
    mean = statistics.mean(times["bare"])
    return [
        (
            name,
            1000 * statistics.median(taken),
            1 + inside[name].seconds / len(taken) / mean if name in inside else float("nan"),
            statistics.median(taken) / bare,
        )
        for name, taken in times.items()
    ]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="What a Monitor adds to a training step.")
    parser.add_argument(
        "--windows", type=int, default=1, help="number of windows, of 100 steps each"
    )
    parser.add_argument("--only", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--peer", choices=list(PEERS), help="an installed tool to compare with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("network", "units", "", "ms/step", "inside", "wall")
    for workload in WORKLOADS:
        if options.only not in (None, workload.name):
            continue
        windows = options.windows * (7 if workload.name == "mlp" else 1)
        for half_dead in (False, True):
            for name, milliseconds, inside, wall in measure(
                workload, half_dead, windows, options.peer
            ):
                table.add(
                    workload.name,
                    "half dead" if half_dead else "healthy",
                    name,
                    f"{milliseconds:.2f}",
                    "" if inside != inside else f"{inside:.4f}",
                    f"{wall:.3f}",
                )
    write_section("overhead", __doc__ or "", table)


if __name__ == "__main__":
    main()

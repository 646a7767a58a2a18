"""The steps of a training run: hooks on its optimizers, at next to no cost where nothing happens.

In training this code is cold each time, so that each line of it counts: what has to be done in
every step stands here, and calls the rest only where there is something to do.
"""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


class Clock:
    """Counts the steps of a run."""

    __slots__ = ("idle_until", "step")

    def __init__(self) -> None:
        self.step = 0
        """Number of steps that have ended."""
        self.idle_until = 0
        """The next step at whose end there is something to do."""


class BeforeStep:
    """An optimizer's hook: calls `changed(args, kwargs)` where its learning rates have changed.

    `rates` are those known.
    """

    def __init__(self, rates: list[float], changed: Callable[[Any, Any], Any]) -> None:
        self._rates, self._changed = rates, changed

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Before a step. Returns what it is to be called with instead, or None."""
        groups, rates = optimizer.param_groups, self._rates
        if len(groups) != len(rates):
            return self._changed(args, kwargs)
        for group, rate in zip(groups, rates, strict=True):
            if group["lr"] != rate:
                return self._changed(args, kwargs)
        return None


class AfterStep:
    """An optimizer's hook: calls `ended()` after a step, unless the clock says to be idle."""

    def __init__(self, clock: Clock, ended: Callable[[], None]) -> None:
        self._clock, self._ended = clock, ended

    def __call__(self, *_: Any) -> None:
        """After a step."""
        clock = self._clock
        if clock.step + 1 < clock.idle_until:
            clock.step += 1
        else:
            self._ended()


def innermost(optimizer: Any) -> Any:
    """The optimizer inside wrappers such as Accelerate's, which have no hooks of their own."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer

"""Clock: counts the steps of a training run by hooks on its optimizers, at almost no cost.

During training this code is never in the CPU's caches, so each line counts. Only what every step
needs is here; the rest is called only if there is something to do.
"""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from reludiag.sites.guard import Guard


class Clock:
    """Counts the steps of a run."""

    __slots__ = ("idle_until", "step")

    def __init__(self) -> None:
        self.step = 0
        """Number of steps that have ended."""
        self.idle_until = 0
        """The next step at whose end there is something to do."""


class BeforeStep:
    """A hook of an optimizer: calls `changed(args, kwargs)` if its learning rates have changed.

    `rates` are the known rates.
    """

    def __init__(
        self, rates: list[float], changed: Callable[[Any, Any], Any], guard: Guard
    ) -> None:
        self._rates, self._changed, self._guard = rates, changed, guard

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Called before a step. Returns the new arguments of the step, or None."""
        guard = self._guard
        if guard.error is not None:
            return None
        try:
            groups, rates = optimizer.param_groups, self._rates
            if len(groups) == len(rates):
                for group, rate in zip(groups, rates, strict=True):
                    if group["lr"] != rate:
                        break
                else:
                    return None
        except Exception as error:
            guard.fail(error)
            return None
        return self._changed(args, kwargs)


class AfterStep:
    """A hook of an optimizer: calls `ended()` after a step, unless the clock is idle."""

    def __init__(self, clock: Clock, ended: Callable[[], None]) -> None:
        self._clock, self._ended = clock, ended

    def __call__(self, *_: Any) -> None:
        """After a step."""
        clock = self._clock
        if clock.step + 1 < clock.idle_until:
            clock.step += 1
        else:
            self._ended()  # lets no error of reludiag out


def innermost(optimizer: Any) -> Any:
    """The optimizer inside wrappers without hooks, such as Accelerate's."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer

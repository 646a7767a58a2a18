"""Budget: how much of a run's time may be spent on the evidence of deaths."""

import contextlib
from collections.abc import Callable, Iterator
from time import monotonic, process_time

from torch import nn

Clock = Callable[[], float]
"""Gives seconds, since any moment."""

DEFAULT_SHARE = 0.05
ALLOWANCE = 10.0
"""Seconds that may be spent whatever their share. In a run of seconds, a share of the time is no
time at all, and the first deaths tell most; of a run that takes minutes, ten seconds are little.
"""


def clock_of(model: nn.Module) -> Clock:
    """The time of the processor for a model that runs on it: a machine that is busy, or stops for a
    while, changes nothing then. Else the time of day, in which a GPU works as well. Neither waits
    for a GPU.
    """
    on_processor = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return process_time if on_processor else monotonic


class Budget:
    """A share of the time since `begin`, but at least `ALLOWANCE` seconds."""

    def __init__(self, share: float, clock: Clock) -> None:
        self.share, self._clock = share, clock
        self._begun = 0.0
        self._spent = 0.0
        self._times = 0

    def begin(self) -> None:
        """The run begins."""
        self._begun = self._clock()

    def allows(self) -> bool:
        """Whether there is time for one more of what was done until now, of usual length.

        The length of the first is not known: there is always time for it.
        """
        usual = self._spent / max(1, self._times)
        elapsed = self._clock() - self._begun
        return self._spent + usual <= max(ALLOWANCE, self.share * (elapsed + usual))

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Around what takes the time, also if it raises."""
        begun = self._clock()
        try:
            yield
        finally:
            self._spent += self._clock() - begun
            self._times += 1

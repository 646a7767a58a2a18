"""Session: a Monitor that is entered and left by a framework's events, not by a `with`."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from reludiag.monitoring.monitor import Monitor


class Session:
    """Makes a Monitor with `settings` each time that a training begins."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._open: Monitor | None = None
        self.monitor: Monitor | None = None
        """Of the training that began last."""

    def begin(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]) -> None:
        """Watch a training; one that never ended is given up first."""
        self.end(RuntimeError("another training began"))
        self.monitor = Monitor(model, optimizer, **self._settings)
        self._open = self.monitor.__enter__()

    def end(self, error: BaseException | None = None) -> None:
        """Complete the recording, if a training is watched; `error` is what ended it."""
        monitor, self._open = self._open, None
        if monitor is not None:
            monitor.__exit__(None if error is None else type(error), error, None)

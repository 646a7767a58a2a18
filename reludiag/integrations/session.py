"""Session: a Monitor that is started and stopped by events of a framework instead of `with`."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from reludiag.errors import ReludiagError
from reludiag.monitoring.monitor import Monitor
from reludiag.sites.guard import described, warn


class Session:
    """Creates a Monitor with `settings` each time a training starts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._open: Monitor | None = None
        self.monitor: Monitor | None = None
        """The Monitor of the last training."""

    def begin(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]) -> None:
        """Watch a training; a previous one that never ended is closed first."""
        self.end(RuntimeError("another training started"))
        try:
            self.monitor = Monitor(model, optimizer, **self._settings)
            self._open = self.monitor.__enter__()
        except ReludiagError:  # settings that do not fit this training
            raise
        except Exception as error:
            warn(f"reludiag: this training is not watched ({described(error)})")

    def end(self, error: BaseException | None = None) -> None:
        """Complete the recording, if there is one; `error` is what ended the training."""
        monitor, self._open = self._open, None
        if monitor is not None:
            monitor.__exit__(None if error is None else type(error), error, None)

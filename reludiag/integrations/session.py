"""Session: a Monitor that is started and stopped by events of a framework instead of `with`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from reludiag.errors import ReludiagError
from reludiag.monitoring.metric_log import LONGEST_NAME, is_number
from reludiag.monitoring.monitor import Monitor
from reludiag.monitoring.resuming import resuming_at
from reludiag.sites.guard import described, warn


class Session:
    """Creates a Monitor with `settings` each time a training starts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._open: Monitor | None = None
        self._known: dict[str, Any] = {}
        self.monitor: Monitor | None = None
        """The Monitor of the last training."""

    def begin(
        self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], step: int = 0
    ) -> None:
        """Watch a training; a previous one that never ended is closed first.

        After the `step` steps of an earlier training, it goes on with the recording of that one.
        """
        self.end(RuntimeError("another training started"))
        try:
            self.monitor = Monitor(model, optimizer, **resuming_at(step, self._settings))
            self._open = self.monitor.__enter__()
        except ReludiagError:  # settings that do not fit this training
            raise
        except Exception as error:
            warn(f"reludiag: this training is not watched ({described(error)})")

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Pass on the numbers among a framework's metrics that it has measured since the last call:
        it keeps old ones, too.
        """
        new = {name: x for name, x in metrics.items() if self._known.get(name) is not x}
        self.skip(metrics)
        if self._open is not None:
            named = {str(name)[:LONGEST_NAME]: value for name, value in new.items()}
            self._open.log({name: value for name, value in named.items() if is_number(value)})

    def skip(self, metrics: Mapping[str, Any]) -> None:
        """Do not pass these on, as long as they are not measured again."""
        self._known = dict(metrics)

    def end(self, error: BaseException | None = None) -> None:
        """Complete the recording, if there is one; `error` is what ended the training."""
        monitor, self._open = self._open, None
        if monitor is not None:
            monitor.__exit__(None if error is None else type(error), error, None)

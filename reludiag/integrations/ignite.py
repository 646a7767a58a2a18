"""Ignite: a handler that watches the training of an Engine.

    ReludiagHandler(model, optimizer, path="run.reludiag").attach(trainer)

`with reludiag.Monitor(model, optimizer): trainer.run(loader)` does the same.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from reludiag.errors import MissingLibraryError
from reludiag.integrations.session import Session
from reludiag.monitoring.monitor import Monitor

try:
    from ignite.engine import Events
except ImportError as error:
    raise MissingLibraryError("Ignite", "ignite") from error


class ReludiagHandler:
    """A Monitor around each `run` of the engine; takes all settings of Monitor.

    It can be attached before or after a learning rate scheduler. The metrics of the engine are
    recorded.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], **settings: Any
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._session = Session(settings)

    @property
    def monitor(self) -> Monitor | None:
        """The Monitor of the last run, for its `diagnose()`; None before the first run."""
        return self._session.monitor

    def attach(self, engine: Any) -> None:
        """Watch the runs of the training engine. Attach it after handlers of exceptions: an
        exception of a run is raised again.
        """
        engine.add_event_handler(Events.STARTED, self._begin)
        for ended in (Events.COMPLETED, Events.TERMINATE):  # terminated, it may not complete
            engine.add_event_handler(ended, lambda: self._session.end())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._log)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _begin(self) -> None:
        self._session.begin(self._model, self._optimizer)

    def _log(self, engine: Any) -> None:
        self._session.log(engine.state.metrics)

    def _fail(self, engine: Any, error: BaseException) -> None:
        self._session.end(error)
        raise error  # an engine with a handler for exceptions does not raise them itself

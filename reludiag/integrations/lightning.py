"""Lightning: a callback that watches what the Trainer fits.

trainer = Trainer(callbacks=[ReludiagCallback(path="run.reludiag", every=50)])
"""

from typing import Any

from reludiag.errors import MissingLibraryError
from reludiag.integrations.session import Session
from reludiag.monitoring.monitor import Monitor

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise MissingLibraryError("Lightning", "lightning") from error


class ReludiagCallback(Callback):
    """A Monitor around `fit`, from after the sanity check on; takes all settings of Monitor.

    For Trainers of `lightning` and of `pytorch_lightning`. Validation is kept apart, as it runs in
    eval mode; a step is one of the optimizer, whatever is accumulated. In a run of several
    processes the first one is watched.
    """

    def __init__(self, **settings: Any) -> None:
        self._session = Session(settings)

    @property
    def monitor(self) -> Monitor | None:
        """That of the last fit, for its `diagnose()`; None before the first."""
        return self._session.monitor

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin; by now the optimizers are made."""
        if trainer.is_global_zero:
            self._session.begin(pl_module, trainer.optimizers)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Complete the recording."""
        self._session.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Complete the recording, saying what ended the training."""
        self._session.end(exception)

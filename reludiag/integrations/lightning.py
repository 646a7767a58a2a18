"""Lightning: a callback that watches the training of a Trainer.

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
    """A Monitor around `fit`, starting after the sanity check; takes all settings of Monitor.

    What `self.log` is given is recorded. Validation runs in eval mode and is not watched. A step is
    one of the optimizer, also with gradient accumulation. With several processes, the first one is
    watched. A fit from a checkpoint of its own goes on with its recording.
    """

    def __init__(self, **settings: Any) -> None:
        self._session = Session(settings)

    @property
    def monitor(self) -> Monitor | None:
        """The Monitor of the last fit, for its `diagnose()`; None before the first fit."""
        return self._session.monitor

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start; the optimizers exist by now."""
        step = trainer.global_step if len(trainer.optimizers) == 1 else 0  # it counts those of all
        if trainer.is_global_zero:
            self._session.begin(pl_module, trainer.optimizers, step)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Record what was logged with `self.log`."""
        self._session.log(trainer.callback_metrics)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """What is there before it is not of the validation."""
        self._session.skip(trainer.callback_metrics)

    on_validation_end = on_train_batch_end

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Complete the recording."""
        self._session.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Complete the recording with the exception that ended the training."""
        self._session.end(exception)

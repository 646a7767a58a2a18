"""Hugging Face Transformers: a callback that watches the training of a Trainer.

trainer = Trainer(..., callbacks=[ReludiagCallback(path="run.reludiag", every=50)])
"""

from typing import Any

from reludiag.errors import MissingLibraryError
from reludiag.integrations.session import Session
from reludiag.monitoring.monitor import Monitor

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingLibraryError("Transformers", "transformers") from error


class ReludiagCallback(TrainerCallback):
    """A Monitor around `train`; takes all settings of Monitor.

    Evaluation runs in eval mode and is not watched. What the Trainer logs is recorded. A training
    that goes on from a checkpoint goes on with its recording.

    A step is one step of the optimizer, also with gradient accumulation. With several processes,
    the first one is watched. The Trainer does not tell callbacks about an exception. The recording
    of a training that raised is readable, and says that it has not ended. `with callback:` around
    `train` completes it.
    """

    def __init__(self, **settings: Any) -> None:
        self._session = Session(settings)

    @property
    def monitor(self) -> Monitor | None:
        """The Monitor of the last training, for its `diagnose()`; None before the first."""
        return self._session.monitor

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start; the optimizer exists by now."""
        if state.is_world_process_zero:
            self._session.begin(kwargs["model"], kwargs["optimizer"], state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Record the metrics that the Trainer logs."""
        self._session.log(logs or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete the recording."""
        self._session.end()

    def __enter__(self) -> "ReludiagCallback":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._session.end(error)

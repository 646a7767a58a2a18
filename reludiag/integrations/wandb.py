"""Weights & Biases: a metric sink.

with wandb.init(project="digits") as run:
    Monitor(model, optimizer, on_snapshot=WandbSink(run))
"""

from typing import Any

from reludiag.errors import MissingLibraryError, UsageError
from reludiag.integrations.sinks import failsafe
from reludiag.monitoring.snapshot import Snapshot

try:
    import wandb
except ImportError as error:
    raise MissingLibraryError("Weights & Biases", "wandb") from error


class WandbSink:
    """Logs each snapshot's scalars to a run, by default the run started by `wandb.init`.

    They have their own axis, `reludiag/step`, and each snapshot is its own row, which counts as one
    W&B step. If you pass a step to `log`, count optimizer steps, not epochs: W&B drops rows whose
    step is in the past.
    """

    def __init__(self, run: Any = None) -> None:
        self._run: Any = wandb.run if run is None else run
        if self._run is None:
            raise UsageError("no W&B run was given; pass one, or call wandb.init() first")
        self._run.define_metric("reludiag/step", hidden=True)
        self._run.define_metric("reludiag/*", step_metric="reludiag/step")
        self._first: int | None = None

    @failsafe
    def __call__(self, snapshot: Snapshot) -> None:
        """Log it."""
        row = {"reludiag/step": snapshot.step, **snapshot.scalars()}
        if self._first is None:  # W&B would drop the user's first row after another step
            self._first = self._run.step
            self._run.log(row, commit=False)
            return
        if self._first == self._run.step:  # but there was none until now
            self._run.log({}, commit=True)
        self._run.log(row, commit=True)

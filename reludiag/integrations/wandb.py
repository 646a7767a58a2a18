"""Weights & Biases: a metric sink.

with wandb.init(project="digits") as run:
    Monitor(model, optimizer, on_snapshot=WandbSink(run))
"""

from typing import Any

from reludiag.errors import MissingLibraryError, UsageError
from reludiag.monitoring.alerts import Snapshot

try:
    import wandb
except ImportError as error:
    raise MissingLibraryError("Weights & Biases", "wandb") from error


class WandbSink:
    """Logs each snapshot's scalars to a run, by default the one that `wandb.init` began.

    They have an axis of their own, `reludiag/step`, and each snapshot is a row of its own, which
    counts as one of W&B's steps. Where you give `log` a step, count it in steps of the optimizer,
    not in epochs: W&B drops what is logged at a step that is past.
    """

    def __init__(self, run: Any = None) -> None:
        self._run: Any = wandb.run if run is None else run
        if self._run is None:
            raise UsageError("no run of W&B was given; expected one, or wandb.init() before this")
        self._run.define_metric("reludiag/step", hidden=True)
        self._run.define_metric("reludiag/*", step_metric="reludiag/step")
        self._first: int | None = None

    def __call__(self, snapshot: Snapshot) -> None:
        """Log it."""
        row = {"reludiag/step": snapshot.step, **snapshot.scalars()}
        if self._first is None:  # it goes with your first row: a step more, and W&B dropped that
            self._first = self._run.step
            self._run.log(row, commit=False)
            return
        if self._first == self._run.step:  # but there was none until now
            self._run.log({}, commit=True)
        self._run.log(row, commit=True)

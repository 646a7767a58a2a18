"""What all metric sinks share: a logger that fails ends its own metrics, and not the training."""

import functools
from collections.abc import Callable
from typing import Any

from reludiag.monitoring.snapshot import Snapshot
from reludiag.sites.guard import described, warn


def failsafe(log: Callable[[Any, Snapshot], None]) -> Callable[[Any, Snapshot], None]:
    """The `__call__` of a sink: after its first error it warns, and logs nothing more."""

    @functools.wraps(log)
    def call(sink: Any, snapshot: Snapshot) -> None:
        if getattr(sink, "has_failed", False):
            return
        try:
            log(sink, snapshot)
        except Exception as error:
            sink.has_failed = True
            warn(
                f"reludiag: {type(sink).__name__} failed at step {snapshot.step:,} "
                f"({described(error)}) and logs nothing more. The training and its recording "
                "continue"
            )

    return call

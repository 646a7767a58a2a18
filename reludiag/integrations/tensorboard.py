"""TensorBoard: a metric sink.

Monitor(model, optimizer, on_snapshot=TensorBoardSink("runs/first"))
"""

from pathlib import Path
from typing import Any

from reludiag.errors import MissingLibraryError
from reludiag.integrations.sinks import failsafe
from reludiag.monitoring.snapshot import Snapshot

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise MissingLibraryError("TensorBoard", "tensorboard") from error


class TensorBoardSink:
    """Writes each snapshot's scalars at its step, into a folder of logs or by a SummaryWriter."""

    def __init__(self, target: str | Path | SummaryWriter) -> None:
        is_folder = isinstance(target, str | Path)
        self._writer: Any = SummaryWriter(str(target)) if is_folder else target

    @failsafe
    def __call__(self, snapshot: Snapshot) -> None:
        """Write it to disk at once, so that a killed run keeps it."""
        for name, value in snapshot.scalars().items():
            self._writer.add_scalar(name, value, snapshot.step)
        self._writer.flush()

"""Follow: the current state of a recording while a run writes it."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.diagnosis.from_recording import load
from reludiag.errors import RecordingError
from reludiag.process import ProcessId, is_gone, this_host
from reludiag.recording import RecordingProgress, read_progress

_RECENT = 10  # number of snapshots from which the speed is computed
_LOAD_SHARE = 0.2  # largest share of a core: reading a large recording must not slow down the run
_YOUNG = 5.0  # seconds during which a new file may not be a recording yet
# A run on another machine is regarded as dead after writing nothing for longer than this.
_PATIENCE, _LEAST_PATIENCE = 20.0, 60.0  # multiple of the usual time between snapshots; seconds


@dataclass(frozen=True)
class LiveView:
    """The state of a recording at one moment."""

    subject: str
    state: str
    """`waiting` for a recording, `running`, `complete`, `interrupted`, `died`, or `lost`."""
    sentence: str
    """A sentence on its state; empty if everything is normal."""
    diagnosis: Diagnosis | None
    """The Diagnosis of the last snapshot that could be read; None before the first."""
    step: int | None
    steps_per_second: float | None
    """Recent speed, or over the whole run if it has ended; None before two snapshots."""
    silent: float | None
    """Seconds since the last snapshot."""


class Follower:
    """Follows one recording, also if it is replaced or removed."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path)
        self._clock = clock
        self._progress: RecordingProgress | None = None
        self._diagnosis: Diagnosis | None = None
        self._loaded_progress: RecordingProgress | None = None
        self._next_load = 0.0
        self._replaced = 0

    def look(self) -> LiveView:
        """The current state. Raises RecordingError if the file never was a recording."""
        try:
            progress = read_progress(self._path)
            if self._progress is not None and _is_other(progress, self._progress):
                self._replaced += 1
                self._diagnosis, self._next_load = None, 0.0
            self._progress = progress
            self._load()
        except RecordingError as error:
            return self._without(error)
        state, sentence = _state(progress, self._clock())
        if self._replaced and not sentence:
            times = "" if self._replaced == 1 else f", for the {self._replaced}th time"
            sentence = f"A new run has replaced the previous one{times}."
        return self._view(progress, state, sentence)

    def _load(self) -> None:
        """Read the whole recording if it has grown, but not too often."""
        begun = self._clock()
        if self._progress == self._loaded_progress or begun < self._next_load:
            return
        self._diagnosis, self._loaded_progress = load(self._path), self._progress
        ended = self._clock()
        self._next_load = ended + (ended - begun) / _LOAD_SHARE

    def _without(self, error: RecordingError) -> LiveView:
        if self._progress is not None:
            is_removed = not self._path.exists()
            why = f"{self._path} was removed" if is_removed else str(error)
            sentence = f"{why}. This is the last state of the run that was read."
            return self._view(self._progress, "lost", sentence)
        if self._path.exists() and self._clock() - self._path.stat().st_mtime > _YOUNG:
            raise error
        if not self._path.parent.is_dir():
            raise error
        sentence = f"There is no recording at {self._path} yet."
        return LiveView(str(self._path), "waiting", sentence, None, None, None, None)

    def _view(self, progress: RecordingProgress, state: str, sentence: str) -> LiveView:
        return LiveView(
            subject=str(self._path),
            state=state,
            sentence=sentence,
            diagnosis=self._diagnosis,
            step=progress.steps[-1] if progress.steps else None,
            steps_per_second=_speed(progress, recent=state == "running"),
            silent=max(0.0, self._clock() - progress.times[-1]) if progress.times else None,
        )


def _is_other(progress: RecordingProgress, before: RecordingProgress) -> bool:
    """Whether it is of another run than the one that was written to the same path before."""
    if progress.times and before.times:
        return progress.times[0] != before.times[0]  # a resumed run has another process
    return progress.facts.get("process") != before.facts.get("process")


def _state(progress: RecordingProgress, now: float) -> tuple[str, str]:
    """The state of the run, and a sentence on it."""
    status = str(progress.facts.get("status", "running"))
    if status == "complete":
        return "complete", ""
    if status != "running":
        return "interrupted", f"The run was {status}."
    if not progress.times:
        return "running", "No snapshot has been taken yet."
    distances = [later - earlier for earlier, later in itertools.pairwise(progress.times)]
    usual = statistics.median(distances) if distances else 0.0
    patience = max(_LEAST_PATIENCE, _PATIENCE * usual)
    owner = _owner(progress.facts.get("process"))
    if owner is not None and owner.host == this_host():
        has_died, why = is_gone(owner, now), "its process has ended"
    else:
        has_died, why = now > progress.times[-1] + patience, "it has not written for a long time"
    if has_died:
        return "died", f"The run died: {why}."
    return "running", ""


def _owner(process: Any) -> ProcessId | None:
    """The process that writes the recording; None if unknown."""
    try:
        return ProcessId(str(process["host"]), int(process["pid"]), float(process["started"]))
    except (KeyError, TypeError, ValueError):
        return None


def _speed(progress: RecordingProgress, recent: bool) -> float | None:
    first = -_RECENT if recent else 0
    steps, times = progress.steps[first:], progress.times[first:]
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (steps[-1] - steps[0]) / (times[-1] - times[0])

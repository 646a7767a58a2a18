"""The recording: the one SQLite file that a training run leaves behind."""

from reludiag.recording.reading import read_progress, read_recording
from reludiag.recording.records import (
    Mark,
    Metric,
    RecordedRun,
    RecordedSite,
    RecordingProgress,
    SiteState,
)
from reludiag.recording.writing import RecordingWriter

__all__ = [
    "Mark",
    "Metric",
    "RecordedRun",
    "RecordedSite",
    "RecordingProgress",
    "RecordingWriter",
    "SiteState",
    "read_progress",
    "read_recording",
]

"""The recording: the one SQLite file that a training run leaves behind."""

from reludiag.recording.reading import read_pulse, read_recording
from reludiag.recording.records import Pulse, RecordedRun, RecordedSite, SiteState
from reludiag.recording.writing import RecordingWriter

__all__ = [
    "Pulse",
    "RecordedRun",
    "RecordedSite",
    "RecordingWriter",
    "SiteState",
    "read_pulse",
    "read_recording",
]

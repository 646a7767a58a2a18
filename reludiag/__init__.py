"""reludiag finds the units of a ReLU network that never fire: which, since when, at which rate."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use: `import reludiag` alone loads neither torch nor pandas.
_HOMES = {
    "Cause": "reludiag.causes.cause",
    "CheckpointError": "reludiag.errors",
    "DataError": "reludiag.errors",
    "Diagnosis": "reludiag.diagnosis.diagnosis",
    "Difference": "reludiag.diagnosis.difference",
    "Effects": "reludiag.experiments.analysis.effects",
    "ModelError": "reludiag.errors",
    "Monitor": "reludiag.monitoring.monitor",
    "RANDOM_INPUT": "reludiag.diagnosis.diagnosis",
    "RecordingError": "reludiag.errors",
    "ReludiagError": "reludiag.errors",
    "ReportError": "reludiag.errors",
    "Replay": "reludiag.experiments.replay",
    "Snapshot": "reludiag.monitoring.snapshot",
    "Thresholds": "reludiag.measure.verdicts",
    "TooManyDeadError": "reludiag.errors",
    "Trial": "reludiag.experiments.trial",
    "UsageError": "reludiag.errors",
    "UserCodeError": "reludiag.errors",
    "compare": "reludiag.experiments.compare",
    "diff": "reludiag.diagnosis.difference",
    "effects": "reludiag.experiments.analysis.effects",
    "InitExamination": "reludiag.initialization.examination",
    "examine_initialization": "reludiag.initialization.examination",
    "load": "reludiag.diagnosis.from_recording",
    "observe": "reludiag.sites.watching",
    "register_rectifier": "reludiag.sites.registration",
    "reinitialize": "reludiag.initialization.schemes",
    "replay": "reludiag.experiments.replay",
    "scan": "reludiag.scanning",
    "sweep": "reludiag.experiments.sweep",
}

if TYPE_CHECKING:
    from reludiag.causes.cause import Cause
    from reludiag.diagnosis.diagnosis import RANDOM_INPUT, Diagnosis
    from reludiag.diagnosis.difference import Difference, diff
    from reludiag.diagnosis.from_recording import load
    from reludiag.errors import (
        CheckpointError,
        DataError,
        ModelError,
        RecordingError,
        ReludiagError,
        ReportError,
        TooManyDeadError,
        UsageError,
        UserCodeError,
    )
    from reludiag.experiments.analysis.effects import Effects, effects
    from reludiag.experiments.compare import compare
    from reludiag.experiments.replay import Replay, replay
    from reludiag.experiments.sweep import sweep
    from reludiag.experiments.trial import Trial
    from reludiag.initialization.examination import InitExamination, examine_initialization
    from reludiag.initialization.schemes import reinitialize
    from reludiag.measure.verdicts import Thresholds
    from reludiag.monitoring.monitor import Monitor
    from reludiag.monitoring.snapshot import Snapshot
    from reludiag.scanning import scan
    from reludiag.sites.registration import register_rectifier
    from reludiag.sites.watching import observe

__all__ = [
    "RANDOM_INPUT",
    "Cause",
    "CheckpointError",
    "DataError",
    "Diagnosis",
    "Difference",
    "Effects",
    "InitExamination",
    "ModelError",
    "Monitor",
    "RecordingError",
    "ReludiagError",
    "Replay",
    "ReportError",
    "Snapshot",
    "Thresholds",
    "TooManyDeadError",
    "Trial",
    "UsageError",
    "UserCodeError",
    "__version__",
    "compare",
    "diff",
    "effects",
    "examine_initialization",
    "load",
    "observe",
    "register_rectifier",
    "reinitialize",
    "replay",
    "scan",
    "sweep",
]


if not TYPE_CHECKING:  # a type checker would take any misspelled name for an Any

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)

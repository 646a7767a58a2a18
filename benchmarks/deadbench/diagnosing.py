"""What reludiag says of a run: of the recording of a Monitor alone, as a user gets it."""

import warnings
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

import reludiag
from benchmarks.deadbench.loop import Outcome, train
from benchmarks.deadbench.training import Settings
from reludiag.causes.cause import Change

EVERY = 10
"""Steps between two snapshots of the Monitor."""
ALIASES = {"input_shift": "input"}
"""Kinds of cause that reludiag calls otherwise."""


@dataclass(frozen=True)
class Answer:
    """The cause that is named, in the words of `CAUSES`, and the run that it is named for."""

    cause: str
    sure: bool
    """Whether reludiag says that this run alone proves it."""
    sentence: str
    advice: str
    changes: tuple[Change, ...]
    """The advice as values."""
    critical: float | None
    """The learning rate at which half of the deaths would have been prevented, if it is given."""
    alarms: int
    """Warnings of the Monitor during the run."""
    outcome: Outcome


def ask(settings: Settings, seed: int, site: str = "", probe: bool = True) -> Answer:
    """Train under a Monitor, and take the leading cause of the run or of this site.

    Without a probe the Monitor sees the training batches alone.
    """
    monitors: list[reludiag.Monitor] = []

    def watch(model: nn.Module, optimizer: Optimizer, x: Tensor) -> reludiag.Monitor:
        # No limit on the time for evidence: the machine's speed must not decide an answer.
        settings = {"every": EVERY, "probe": x if probe else None, "evidence": 1.0}
        monitors.append(reludiag.Monitor(model, optimizer, **settings))
        return monitors[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = train(settings, seed, watch)
        diagnosis = monitors[0].diagnose()
    alarms = sum(
        issubclass(each.category, RuntimeWarning) and str(each.message).startswith("reludiag")
        for each in caught
    )
    found = [each for each in diagnosis.causes if each.site == (site or None)]
    if not found:  # a site without deaths has no cause
        return Answer("none", True, "", "", (), None, alarms, outcome)
    cause = found[0]
    return Answer(
        cause=ALIASES.get(cause.kind, cause.kind),
        sure=cause.identifiable and cause.kind != "undetermined",
        sentence=cause.sentence,
        advice=cause.advice,
        changes=cause.changes,
        critical=_critical(cause),
        alarms=alarms,
        outcome=outcome,
    )


def _critical(cause: reludiag.Cause) -> float | None:
    values = [each.value for each in cause.evidence if each.what == "critical learning rate"]
    return float(values[0]) if values else None

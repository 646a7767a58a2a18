"""Proves the cause of a run by its own counterfactual: undo the one thing, and most deaths go."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.deadbench.advice import kaiming, scaled_rate
from benchmarks.deadbench.loop import Outcome, train
from benchmarks.deadbench.training import Training

LEAST_LOST = 0.10
"""Share of units that has to be lost in the faulty run,"""
LEAST_GONE = 0.70
"""and share of these that has to be alive in the run without the cause."""
FEW = 0.03
"""A healthy run has at most this share lost, or at most this much more than a redrawn one."""


@dataclass(frozen=True)
class Proof:
    """What the counterfactuals of one run say."""

    without: Mapping[str, Outcome]
    """The outcome without each cause, by cause."""
    gone: Mapping[str, float]
    """Share of the deaths that are gone without it."""
    proved: frozenset[str]
    """The right answers. Empty if the run proves nothing, and then it is left out."""
    reason: str
    """Why it is left out."""


def prove(training: Training, seed: int, faulty: Outcome) -> Proof:
    if training.cause == "none":
        return _healthy(training, seed, faulty)
    lost = faulty.at(training.site)
    without = {cause: train(training.fixed(cause), seed) for cause in training.undo}
    gone = {
        cause: 1 - outcome.at(training.site) / lost if lost else 0.0
        for cause, outcome in without.items()
    }
    reason = ""
    if lost < LEAST_LOST:
        reason = f"only {lost:.0%} lost"
    elif gone[training.cause] < LEAST_GONE:
        reason = f"without {training.cause} only {gone[training.cause]:.0%} of the lost live"
    elif training.cause == "divergence" and not faulty.nonfinite:
        reason = "all units are finite"
    proved = frozenset(cause for cause, share in gone.items() if share >= LEAST_GONE)
    if faulty.nonfinite:  # to say so is right, whatever the cause is
        proved |= {"divergence"}
    return Proof(without, gone, frozenset() if reason else proved, reason)


def _healthy(training: Training, seed: int, faulty: Outcome) -> Proof:
    """No more units are lost than when the weights are drawn again, and no fix helps."""
    lost = faulty.at(training.site)
    if lost <= FEW:
        return Proof({}, {}, frozenset({"none"}), "")
    settings = training.settings
    redrawn = train(settings.but(init=(*settings.init, kaiming)), seed + 1000)
    slower = [train(scaled_rate(factor, settings), seed) for factor in (1 / 3, 1 / 10)]
    gone = 1 - min(outcome.at(training.site) for outcome in slower) / lost
    if lost > redrawn.at(training.site) + FEW:
        return Proof({}, {}, frozenset(), f"{lost:.0%} lost, {redrawn.at():.0%} if drawn again")
    if gone >= LEAST_GONE:
        return Proof({}, {}, frozenset(), f"at a lower rate {gone:.0%} of the lost live")
    return Proof({}, {}, frozenset({"none"}), "")

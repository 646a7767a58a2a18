"""Shifted data: whether the training went on with other inputs than it began with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reludiag.causes.kind import RunLives
from reludiag.recording.observations import TrainingInput

SHIFT = 1.0
"""A mean this many standard deviations from the first one. If all features of a sample were equal,
that of a batch of 64 would be within 0.4 of it."""
STRETCH = 3.0
"""A standard deviation larger or smaller by this factor."""
LASTS = 2
"""Batches in a row that are seen so: one may be an outlier."""
PARTED = 0.5
"""At a jump of the weights, a smaller change is enough: the means before and after it do not mix,
and are this many standard deviations apart, or the standard deviations are by the factor"""
PARTED_STRETCH = 1.5
AFTER = 0.7
"""Share of the deaths that come after the shift."""


@dataclass(frozen=True)
class Shift:
    """When the inputs changed."""

    step: int
    """The first batch that was seen so was of this step."""
    before: TrainingInput
    after: TrainingInput
    deaths: int
    """Of units that are dead at the end and died in training."""
    deaths_after: int
    unshifted: float
    """Share of the steps until the shift."""


def data_shift(run: RunLives) -> Shift | None:
    """The first lasting change of the inputs, if most units died after it."""
    seen = run.recorded.observations.training_inputs
    start = next((index for index in range(len(seen)) if _lasts(seen, index)), None)
    if start is None:
        start = _start_at_jump(run)
    if start is None:
        return None
    steps = np.asarray(run.recorded.steps[1:])
    died = np.sum([site.died for site in run.sites], axis=0)
    # The window that ends with this step may have had some shifted batches already.
    after = int(died[steps >= seen[start].step].sum())
    if not after or after < AFTER * int(died.sum()):
        return None
    until = max((int(step) for step in steps if step < seen[start].step), default=0)
    shift = Shift(
        seen[start].step, seen[0], seen[start], int(died.sum()), after, until / int(steps[-1])
    )
    return shift if shift.unshifted > 0 else None


def changed_at(run: RunLives, step: int) -> bool:
    """Whether the inputs from this step on are others than all before it, and stay so."""
    seen = run.recorded.observations.training_inputs
    before = [each for each in seen if each.step < step]
    after = [each for each in seen if each.step >= step]
    # The first of these may have been seen shortly before the step.
    return _are_parted(before, after) or _are_parted(before, after[1:])


def _start_at_jump(run: RunLives) -> int | None:
    """Index of the first batch seen after a jump of the weights at which the inputs changed."""
    seen = run.recorded.observations.training_inputs
    jumps = [jump.step for jump in run.recorded.observations.jumps if jump.is_sudden]
    step = next((step for step in jumps if changed_at(run, step)), None)
    if step is None:
        return None
    return next(index for index, each in enumerate(seen) if each.step >= step)


def _are_parted(before: Sequence[TrainingInput], after: Sequence[TrainingInput]) -> bool:
    if min(len(before), len(after)) < LASTS:
        return False
    spread = min(each.std for each in before)
    if not spread > 0 or not all(each.std > 0 for each in after):
        return False
    means = [[each.mean / spread for each in part] for part in (before, after)]
    logs = [[math.log(each.std) for each in part] for part in (before, after)]
    return _gap(*means) >= PARTED or _gap(*logs) >= math.log(PARTED_STRETCH)


def _gap(some: Sequence[float], others: Sequence[float]) -> float:
    """Between two sets of values; 0 where they mix, or differ as much among themselves."""
    gap = max(min(others) - max(some), min(some) - max(others))
    widest = max(max(part) - min(part) for part in (some, others))
    return gap if gap > widest else 0.0


def _lasts(seen: tuple[TrainingInput, ...], start: int) -> bool:
    following = seen[start : start + LASTS]
    return len(following) == LASTS and all(_differs(seen[0], each) for each in following)


def _differs(first: TrainingInput, other: TrainingInput) -> bool:
    if not first.std > 0 or not math.isfinite(other.mean):
        return False
    stretch = other.std / first.std
    return abs(other.mean - first.mean) > SHIFT * first.std or not 1 / STRETCH < stretch < STRETCH

"""Shifted data: whether the training went on with other inputs than it began with."""

import math
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


def _lasts(seen: tuple[TrainingInput, ...], start: int) -> bool:
    following = seen[start : start + LASTS]
    return len(following) == LASTS and all(_differs(seen[0], each) for each in following)


def _differs(first: TrainingInput, other: TrainingInput) -> bool:
    if not first.std > 0 or not math.isfinite(other.mean):
        return False
    stretch = other.std / first.std
    return abs(other.mean - first.mean) > SHIFT * first.std or not 1 / STRETCH < stretch < STRETCH

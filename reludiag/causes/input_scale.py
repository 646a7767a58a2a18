"""Input scale: whether the input is so large that steps of a usual size kill units.

The pre-activations of a first layer change by (change of the weights) . x. A step of SGD changes
the weights in proportion to x, so its effect grows as the square of the input; a step of Adam does
not, so it grows as the input.
"""

import math
from dataclasses import dataclass

from reludiag.causes.kind import RunLives
from reludiag.causes.site_lives import median_of
from reludiag.measure.structure import InputScale

LARGE = 3.0
"""Root mean square of an input that is far from a standardized one, which has 1: pixels in [0, 1]
have at most 1, those that are normalized as for ImageNet at most 2.6.
"""
_NORMALIZED_STEPS = ("Adam", "RMSprop", "Adagrad", "Adadelta", "Lion", "Rprop", "Adamax", "NAdam")


@dataclass(frozen=True)
class LargeInput:
    """An input that makes steps larger than the deaths of a run needed."""

    scale: InputScale
    factor: float
    """So many times further a step moves the pre-activations than on a standardized input."""
    needed: float
    """So many times smaller steps half of the units that died would have survived; NaN if unknown.
    """


def large_input(run: RunLives) -> LargeInput | None:
    """The largest input, if on a standardized one steps would have been small enough.

    Half of the deaths need a step that is `needed` times smaller; if even a standardized input
    would not make it so, it is not the input.
    """
    scales = [each.scale for each in run.recorded.observations.inputs if each.scale is not None]
    scale = max(scales, key=lambda each: each.rms, default=None)
    if scale is None or not scale.rms > LARGE:
        return None
    factor = scale.rms if has_normalized_steps(run) else scale.rms**2
    needed = _needed(run)
    return None if needed > factor else LargeInput(scale, factor, needed)


def has_normalized_steps(run: RunLives) -> bool:
    """Whether an optimizer divides its steps by the size of the gradients."""
    optimizers = [str(name) for name in run.recorded.facts.get("optimizers", ())]
    return any(name.startswith(_NORMALIZED_STEPS) for name in optimizers)


def _needed(run: RunLives) -> float:
    fractions = [
        death.critical_fraction
        for site in run.sites
        for death in site.deaths
        if site.is_last_death(death.unit, death.step)
    ]
    half = median_of(fractions)
    return math.inf if half == 0 else 1 / half

"""Units that fire, or cannot be off, and pass no gradient all the same.

A clipped rectifier (ReLU6, `clamp(0, 1)`, hard-sigmoid) is flat above its upper bound. A leaky
activation passes a gradient everywhere in name only: far below 0 its slope is too small to move a
weight.
"""

from typing import Any, NamedTuple

import numpy as np

from reludiag.measure.unit_counts import UnitCounts
from reludiag.sites.site import Rectifier

Mask = np.ndarray[Any, np.dtype[np.bool_]]

SLOPE = 1e-8
"""A smaller slope counts as none. It is the epsilon of Adam (Kingma & Ba 2015, algorithm 1): of a
gradient below it, an update is the smaller the smaller the gradient is, and moves nothing."""

_ROUNDING = 2.0**-8
"""Of bfloat16, which has the fewest digits: an upper bound is met up to this share of it."""


class Tail(NamedTuple):
    """Where an activation is flat far below 0."""

    below: float
    """For inputs up to this one, the absolute slope is at most `SLOPE`."""
    limit: float
    """The output there, up to `within`."""
    within: float


TAILS = {
    "gelu": Tail(-6.3, 0.0, 1e-9),
    "silu": Tail(-21.5, 0.0, 1e-8),
    "mish": Tail(-21.5, 0.0, 1e-8),
    "softplus": Tail(-18.43, 0.0, 1e-8),
    "elu": Tail(-18.43, -1.0, 1e-7),
    "celu": Tail(-18.43, -1.0, 1e-7),
    "selu": Tail(-19.0, -1.7580993, 2e-7),
}
"""By the name of the activation, with PyTorch's default settings. With others the limit, or the
output at `below`, is another one, so that no unit is called saturated wrongly.

The slopes near the end of each tail: GELU x φ(x) + Φ(x), SiLU and Mish x exp(x), Softplus, ELU and
CELU exp(x), SELU 1.7581 exp(x)."""


def is_saturated(counts: UnitCounts, rectifier: Rectifier) -> Mask:
    """Which units were flat in every sample, `[unit]`, and not off.

    Of a clipped rectifier the output tells it, which was the upper bound at each position. Of a
    leaky activation the input was in the tail, where that was read, and the output at its limit.
    """
    if counts.positions == 0:
        return np.zeros(len(counts.fired), dtype=bool)
    if rectifier.can_die:
        if rectifier.upper is None:
            return np.zeros(len(counts.fired), dtype=bool)
        return np.asarray(
            (counts.minimum == counts.maximum) & at_upper(counts.maximum, rectifier.upper)
        )
    tail = TAILS.get(rectifier.activation.lower())
    if tail is None:
        return np.zeros(len(counts.fired), dtype=bool)
    was_read = counts.before_maximum > -np.inf
    return np.asarray(
        was_read
        & (counts.before_maximum <= tail.below)
        & (np.abs(counts.maximum - tail.limit) <= tail.within)
        & (np.abs(counts.minimum - tail.limit) <= tail.within)
    )


def at_upper(values: np.ndarray[Any, np.dtype[np.float64]], upper: float | None) -> Mask:
    """Which values are the upper bound of a rectifier; none where it has none."""
    if upper is None:
        return np.zeros(len(values), dtype=bool)
    return np.asarray(values >= upper * (1 - _ROUNDING))

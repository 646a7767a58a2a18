"""Input: whether the data is centred, and how many births of dead units that accounts for.

Inputs that point the same way are all on the same side of a unit's plane, whatever the scheme that
drew it. gamma = |mean| / |standard deviation| of the input predicts death at initialization (Simon
et al. 2026, arXiv 2605.31518); subtracting the mean takes it away.
"""

from collections.abc import Sequence

from reludiag.causes.site_lives import SiteLives
from reludiag.initialization.birth import UNCENTRED, born_dead_by_depth
from reludiag.recording.observations import Given


def uncentred(given: Sequence[Given]) -> Given | None:
    """The first layer's input that is furthest from centred; None if all are centred enough."""
    first = [each for each in given if each.is_first and each.gamma > UNCENTRED]
    return max(first, key=lambda each: each.gamma, default=None)


def centred_share(lives: SiteLives, depth: int) -> float:
    """Share of a site's units that would be born dead by chance were the input centred.

    `depth` layers lie between the input and the layer that feeds it.
    """
    samples = int(lives.recorded.samples[0]) if len(lives.recorded.samples) else 0
    return born_dead_by_depth(0.0, max(1, samples), depth + 1)[-1]

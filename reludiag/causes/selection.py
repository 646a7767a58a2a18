"""Selection: dead units that fire, and that a top-k never selects."""

import numpy as np

from reludiag.causes.site_lives import Mask, SiteLives


def unselected(lives: SiteLives) -> Mask:
    """`[unit]`: dead at the end though it fires before the selection; none elsewhere."""
    site, silent_before = lives.recorded.site, lives.recorded.counts.silent_before
    # A ReLU selects nothing: it may stand behind a top-k, too.
    if (
        site.selects_from is None
        or silent_before is None
        or site.rectifier.activation.lower() == "relu"
    ):
        return np.zeros(lives.units, dtype=bool)
    return lives.dead & ~silent_before


def is_mostly_unselected(lives: SiteLives) -> bool:
    """Whether most of the dead units of a site fire and are never selected."""
    return 2 * int(unselected(lives).sum()) > int(lives.dead.sum())

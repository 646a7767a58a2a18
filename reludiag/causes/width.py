"""Width: whether the layers of a network are too narrow for their number.

Through narrow layers all samples soon point the same way: then a unit fires on all of them or on
none, and a whole layer may be dead by chance (Lu et al. 2020, arXiv 1903.06733).
"""

import math
from dataclasses import dataclass

from reludiag.causes.chance import FEW_UNEXPLAINED
from reludiag.causes.kind import RunLives
from reludiag.initialization.chance_deaths import (
    NARROW,
    WIDE,
    born_dead_by_depth,
    layer_dies_single_direction,
    needed_width,
)
from reludiag.sites.consumers import only_returned

PROVED = 4.0
"""So many times more units are born dead than in wide layers where width proves to be the cause."""


@dataclass(frozen=True)
class TooNarrow:
    """More units are born dead than in a network of wide layers."""

    layers: int
    narrowest: int
    chance: float
    """Probability of a completely dead layer at step 0."""
    born: float
    """Share of all units."""
    born_if_wide: float
    """The same if all layers were wide, by formula."""
    width: int
    """Of layers that are wide enough."""

    @property
    def is_proved(self) -> bool:
        return self.born >= PROVED * self.born_if_wide


def too_narrow(run: RunLives) -> TooNarrow | None:
    """None if the layers are wide enough, or not more units are born dead than in wide ones.

    Of 60 draws each of networks of 4, 8, 12 and 20 layers on digits, it holds for 62 to 100 % of
    those of 4 units a layer, for 2 to 75 % of 8 units, and for none from 11 units on.
    """
    sites = [
        site
        for site in run.sites
        if site.recorded.site.producers
        and site.recorded.site.norm is None
        and not only_returned(site.recorded.site.consumers)
    ]
    if not sites:
        return None
    widths = [site.units for site in sites]
    chance = layer_dies_single_direction(widths)
    if chance <= NARROW:
        return None
    cosines = [
        each.cosine
        for each in run.recorded.observations.inputs
        if each.is_first and not math.isnan(each.cosine)
    ]
    samples = max(1, int(sites[0].recorded.samples[0]))
    if_wide = born_dead_by_depth(max([0.0, *cosines]), samples, len(sites))
    units = sum(widths)
    born = sum(int(site.born.sum()) for site in sites) / units
    born_if_wide = sum(share * width for share, width in zip(if_wide, widths, strict=True)) / units
    if born - born_if_wide <= FEW_UNEXPLAINED:
        return None
    width = WIDE * needed_width(len(widths), NARROW)
    return TooNarrow(len(widths), min(widths), chance, born, born_if_wide, width)

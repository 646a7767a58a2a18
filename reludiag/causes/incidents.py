"""Incidents: single steps at which something happened to the weights. Did units die then?

The windows of the incidents are compared with all other windows of the run, as the event study does
for high learning rates. Units may go on to die: a network whose weights were thrown about gets
large gradients for some time. These later deaths are put down to the incident as long as each
window has some, but prove nothing, and are not counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reludiag.causes.event_study import FEWEST, RATE_RATIO, SIGNIFICANT
from reludiag.causes.kind import RunLives, SiteAttribution
from reludiag.causes.site_lives import Mask
from reludiag.measure.binomial import chance_of_more
from reludiag.recording.ledger import NEVER

BEFORE = 0.05
"""Share of the exposure that must have passed before the first incident, for a run to prove it."""

CARRIED = 8
"""Momentum of 0.9 carries more than half of a step on for as many steps: units may die in them."""


@dataclass(frozen=True)
class Incidents:
    """Deaths in the windows of incidents, and in the others."""

    steps: tuple[int, ...]
    """The first steps taken with other weights than without the incident."""
    windows: Mask
    """`[window]`: in which units may have died of one."""
    claimed: Mask
    """`[window]`: these and those after them, as long as units die in each."""
    deaths: int
    """In `windows`."""
    all_deaths: int
    exposure: float
    """Share of `windows` in the exposure of the run."""
    least_ratio: float
    """Deaths per exposure in `windows`, over those before the first, or in the rest after it,
    whichever are more frequent; infinite if no unit died in either."""
    before: float
    """Share of the exposure before the first incident."""
    p_value: float
    """Exact and one-sided, for units that die independently: they do not."""
    first: int
    """First and last step of the windows in which the deaths came."""
    last: int

    @property
    def kills(self) -> bool:
        """Whether far more units died in their windows than elsewhere."""
        return (
            self.deaths >= FEWEST and self.least_ratio >= RATE_RATIO and self.p_value < SIGNIFICANT
        )

    @property
    def is_conclusive(self) -> bool:
        """Whether units lived well before them, too."""
        return self.kills and self.before >= BEFORE


def incidents(run: RunLives, steps: Sequence[int]) -> Incidents | None:
    """Compare the windows with one of these steps; None without any, or without deaths."""
    ends = run.recorded.steps
    if not steps or len(ends) < 2 or not run.sites:
        return None
    died = np.sum([site.died for site in run.sites], axis=0)
    exposure = np.sum([site.exposure for site in run.sites], axis=0)
    total, deaths = float(exposure.sum()), int(died.sum())
    # Training batches show a death in the first window in which a unit never fired.
    late = run.recorded.facts.get("probe_samples") is None
    windows = np.zeros(len(ends) - 1, dtype=bool)
    for step in steps:
        begin, end = np.searchsorted(ends, [step, step + CARRIED]) - 1
        windows[max(0, begin) : end + 1 + late] = True
    if not deaths or not total or not windows.any():
        return None
    first = int(np.flatnonzero(windows)[0])
    claimed = windows.copy()
    for window in range(first + 1, len(windows)):
        claimed[window] |= bool(claimed[window - 1] and died[window])
    inside, exposed = int(died[windows].sum()), float(exposure[windows].sum())
    rest = ~claimed & (np.arange(len(windows)) > first)
    sides = [(died[:first], exposure[:first]), (died[rest], exposure[rest])]
    most = max(float(d.sum() / e.sum()) if e.sum() else 0.0 for d, e in sides)
    rate = inside / exposed if exposed else 0.0
    # What follows an incident is its consequence: it is on neither side.
    compared = windows | ~claimed
    share = exposed / float(exposure[compared].sum())
    killed = np.flatnonzero(claimed & (died > 0))
    return Incidents(
        steps=tuple(steps),
        windows=windows,
        claimed=claimed,
        deaths=inside,
        all_deaths=deaths,
        exposure=exposed / total,
        least_ratio=rate / most if most else math.inf,
        before=float(exposure[:first].sum()) / total,
        p_value=chance_of_more(inside, int(died[compared].sum()), share),
        first=ends[int(killed[0])] if len(killed) else 0,
        last=ends[int(killed[-1]) + 1] if len(killed) else 0,
    )


def died_in(site: SiteAttribution, windows: Mask) -> Mask:
    """`[unit]`: which units of a site died last in one of these windows."""
    died = site.lives.ledger.died_step
    window = np.searchsorted(site.run.recorded.steps, died) - 1
    inside = (died != NEVER) & (window >= 0) & (window < len(windows))
    return np.asarray(inside & windows[np.clip(window, 0, len(windows) - 1)])

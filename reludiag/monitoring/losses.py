"""Losses: which units of a run were alive when it began, and are dead or not finite now.

Deaths of single windows add up. A unit that dies, revives and dies again is one loss, and none
while it is alive.
"""

import numpy as np

from reludiag.recording.ledger import Mask
from reludiag.sites.site import Site


class Losses:
    """Follows the units of all sites."""

    def __init__(self, is_seen_late: bool) -> None:
        """`is_seen_late`: as training batches show it, a unit that fires rarely is silent in a
        window by chance. There, one counts as lost from its second silent window on.
        """
        self._is_seen_late = is_seen_late
        self._names: dict[str, str] = {}
        # Of each site, by its key, `[unit]`:
        self._began_alive: dict[str, Mask] = {}
        self._known: dict[str, Mask] = {}
        self._dead: dict[str, Mask] = {}
        self._lost: dict[str, Mask] = {}

    def add(self, site: Site, dead: Mask, has_state: Mask) -> None:
        """The state of a site's units at the next snapshot; `dead` also if it is not finite."""
        key, before = site.key, self._dead.get(site.key)
        if before is None or len(before) != len(dead):
            before = self._known[key] = self._began_alive[key] = np.zeros(len(dead), dtype=bool)
        self._names[key] = site.name
        is_new = has_state & ~self._known[key]
        self._began_alive[key] = self._began_alive[key] | (is_new & ~dead)
        self._known[key] = self._known[key] | has_state
        now = np.where(has_state, dead, before)
        was = before if self._is_seen_late else now
        self._lost[key], self._dead[key] = now & was & self._began_alive[key], now

    @property
    def by_site(self) -> dict[str, int]:
        """By name of the site, how many units were alive at the start and are dead now."""
        return {self._names[key]: int(lost.sum()) for key, lost in self._lost.items()}

    @property
    def at_most(self) -> int:
        """Their number, with those that may only be silent in this window."""
        pairs = ((dead, self._began_alive[key]) for key, dead in self._dead.items())
        return sum(int((dead & began_alive).sum()) for dead, began_alive in pairs)

    @property
    def never_begun(self) -> int:
        """Number of units that are dead now, and were when the run began."""
        return sum(int((dead & ~self._began_alive[key]).sum()) for key, dead in self._dead.items())

    @property
    def units(self) -> int:
        """Number of units of all sites."""
        return sum(len(dead) for dead in self._dead.values())

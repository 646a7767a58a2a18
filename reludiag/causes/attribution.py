"""Attribution: the kind of cause that best explains each unit that is dead at the end."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from reludiag.causes.all_kinds import KINDS
from reludiag.causes.kind import CauseKind, Kinds, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.site_lives import Mask, collapsed_above
from reludiag.recording import RecordedRun


def attribute(recorded: RecordedRun, kinds: Sequence[CauseKind] = KINDS) -> RunAttribution:
    """Attribute each death of a run to a kind of cause, asked in this order."""
    run = RunLives(recorded, kinds)
    return RunAttribution(run, tuple(_site(run, depth) for depth in range(len(run.sites))))


def _site(run: RunLives, depth: int) -> SiteAttribution:
    lives = run.sites[depth]
    none = np.full(lives.units, "", dtype=f"<U{max(map(len, run.kinds))}")
    above = collapsed_above(lives, run.up_to(depth)[:-1])
    site = SiteAttribution(run, lives, depth, above, none, none)
    births = _claimed(site, lives.born, lambda kind: kind.births)
    site = replace(site, births=births)
    deaths = _claimed(site, lives.new, lambda kind: kind.deaths)
    return replace(site, kinds=np.where(lives.never_alive, births, deaths))


def _claimed(
    site: SiteAttribution,
    units: Mask,
    rule_of: Callable[[CauseKind], Callable[[SiteAttribution], Mask | bool]],
) -> Kinds:
    """`[unit]`: of these units, the first kind whose rule claims it."""
    names = np.zeros_like(site.kinds)
    for kind in site.run.kinds.values():
        unclaimed = units & (names == "")
        if not unclaimed.any():
            break
        names[unclaimed & rule_of(kind)(site)] = kind.name
    return names

"""Rate changes: how far to lower the learning rate of each parameter group that killed units."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reludiag.causes.cause import Change
from reludiag.causes.site_lives import SiteLives
from reludiag.causes.variation import FALLBACK_SCALE, one_digit
from reludiag.causes.wording import groups_in_words
from reludiag.recording import RecordedRun
from reludiag.recording.learning_rates import LearningRates

LARGEST_SCALE = 0.5
"""The rate is lowered at least to half of what it was,"""
SMALLEST_SCALE = 0.03
"""and to no less than this part, since critical rates are estimates over windows: unless the rate
at which half of the dead units would have lived is lower still,"""
BELOW_CRITICAL = 0.9
"""when it is this part of that rate. At 0.9 times the critical rate of a unit, the unit lived in 23
of 23 windows of one step, and in 42 of 50 longer ones."""


@dataclass(frozen=True)
class CriticalRates:
    """Estimated learning rates at which units would not have died."""

    deaths: int
    """Number of deaths with a known critical rate."""
    quarter: float
    """At this rate a quarter of the deaths would still have happened,"""
    half: float
    """and at this rate half of them."""


def critical_rates(sites: Iterable[SiteLives], relative: bool = False) -> CriticalRates | None:
    """For units dead at the end that died between two snapshots on a probe; `relative` to the
    largest rate at which units of the same site died.
    """
    rates = []
    for site in sites:
        highest = np.nanmax(site.rate_at_death, initial=0.0) if relative else 1.0
        for death in site.deaths:
            last = site.is_last_death(death.unit, death.step)
            rate = death.critical_fraction * site.rate_at_death[death.unit]
            if last and math.isfinite(rate) and highest > 0:
                rates.append(rate / highest)
    if not rates:
        return None
    quarter, half = np.quantile(rates, [0.25, 0.5])
    return CriticalRates(len(rates), float(quarter), float(half))


def safe_scale(sites: Iterable[SiteLives]) -> float:
    """The factor of the learning rate at which most units of these sites would have lived."""
    critical = critical_rates(sites, relative=True)
    if critical is None:
        return FALLBACK_SCALE
    scale = min(LARGEST_SCALE, max(SMALLEST_SCALE, critical.quarter))
    return min(scale, BELOW_CRITICAL * critical.half) if critical.half > 0 else scale


def lowered_rates(
    run: RecordedRun,
    sites: Sequence[SiteLives],
    scale: float | None = None,
    steps: tuple[int, int] | None = None,
    remark: str = "",
) -> tuple[Change, ...]:
    """Lower the rate of every group that trains these sites, by its own safe scale or by `scale`,
    in these steps; groups with the same rates together. `remark` ends the last sentence.
    """
    by_group: dict[str, list[SiteLives]] = {}
    for site in sites:
        for group in groups_of(run, site):
            by_group.setdefault(group, []).append(site)
    alike: dict[tuple[float, float], list[str]] = {}
    for group, trained in sorted(by_group.items()):
        before = _rate_at_deaths(run, group, trained)
        factor = safe_scale(trained) if scale is None else scale
        if math.isfinite(before) and before > 0:
            alike.setdefault((before, one_digit(factor * before)), []).append(group)
    during = "" if steps is None else f" in steps {steps[0]}-{steps[1]}"
    changes = [
        Change(
            "lr",
            f"lower the learning rate of {groups_in_words(run, groups)} from {before:.3g} to "
            f"{after:.1g}{during}",
            tuple(groups),
            before,
            after,
            steps,
        )
        for (before, after), groups in alike.items()
    ]
    if not changes:
        changes = [Change("lr", "lower the learning rate")]
    changes[-1] = replace(changes[-1], sentence=changes[-1].sentence + remark)
    return tuple(changes)


def groups_of(run: RecordedRun, site: SiteLives) -> tuple[str, ...]:
    """All parameter groups that train what feeds a site; a bias may have another than its weight.
    Recordings of older versions know one of them.
    """
    known = run.facts.get("param_groups", {})
    recorded = site.recorded
    owners = [*recorded.site.producers, *([recorded.site.norm] if recorded.site.norm else [])]
    groups = [group for owner in owners for group in known.get(owner, ())]
    groups += [recorded.param_group] if recorded.param_group else []
    return tuple(dict.fromkeys(groups))


def _rate_at_deaths(run: RecordedRun, group: str, sites: Sequence[SiteLives]) -> float:
    """The largest rate of a group when units of these sites died; if none did, of the run."""
    rates, highest = LearningRates(run), list[float]()
    for site in sites:
        recorded = replace(site.recorded, param_group=group)
        at_death = rates.at_death(recorded, site.ledger)[site.new]
        highest += at_death[np.isfinite(at_death)].tolist()
    if highest:
        return float(max(highest))
    recorded = replace(sites[0].recorded, param_group=group)
    return rates.largest(recorded, 0, run.steps[-1])

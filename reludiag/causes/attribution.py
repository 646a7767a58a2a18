"""Attribution: to each unit that is dead in the end, the kind of cause that explains it best."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reludiag.causes import cause
from reludiag.causes.drift import shares_of
from reludiag.causes.input_shift import centred_share, uncentred
from reludiag.causes.learning_rate import (
    LARGE_UPDATE,
    EventStudy,
    event_study,
    largest_update,
)
from reludiag.causes.site_lives import Mask, SiteLives, trace_sites
from reludiag.recording import RecordedRun
from reludiag.recording.ledger import NEVER
from reludiag.recording.observations import Given, Update

Kinds = np.ndarray[Any, np.dtype[np.str_]]

FEW = 0.03
"""Share of dead units that a healthy run has: 0.7 % on digits with Kaiming and Adam at 0.001, 1.6 %
at most of all seeds. Of births: this much more than the baseline is more than chance."""
FEW_UNEXPLAINED = 0.1
"""The same for births of a layer with which nothing else is wrong."""
FEWEST_BORN = 2
"""Fewer units of a site that are born dead are chance."""


@dataclass(frozen=True)
class SiteAttribution:
    """One site's deaths put down to their causes."""

    lives: SiteLives
    kinds: Kinds
    """`[unit]`: a kind of cause, empty where the unit is not dead."""
    problem: dict[str, Any] | None
    """What is wrong with how its layer began, that makes units dead at birth."""
    update: Update | None
    """The largest relative update of its layer, or of one above it, before its last death."""
    silenced_by: SiteLives | None
    """The site above it that was dead, wholly or all but a few units, when its own deaths came."""
    began_wrong: bool
    """Whether what is wrong with how its layer began shows in more births than chance leaves, or
    cannot be told from what a dead site above does."""

    @property
    def chance(self) -> float:
        """Share of units born dead where the model is drawn anew; NaN where that is not known."""
        return math.nan if self.lives.baseline is None else self.lives.baseline.born_dead

    @property
    def tally(self) -> Counter[str]:
        """Number of dead units by kind."""
        return Counter(str(kind) for kind in self.kinds if kind)

    @property
    def kind(self) -> str:
        """Of most of its deaths; `none` where only chance is left."""
        tally = self.tally
        named = {kind: count for kind, count in tally.items() if kind != cause.NONE}
        return max(named, key=lambda kind: named[kind]) if named else cause.NONE


@dataclass(frozen=True)
class RunAttribution:
    """A whole run's."""

    sites: tuple[SiteAttribution, ...]
    study: EventStudy | None
    shifted: Given | None
    """The input that is furthest from centred, if one is not."""

    def roots(self) -> Counter[str]:
        """Dead units by kind; what an upstream collapse silenced counts as what collapsed it."""
        by_name = {site.lives.name: site for site in self.sites}
        roots: Counter[str] = Counter()
        for site in self.sites:
            for kind, count in site.tally.items():
                above = site
                while kind == cause.UPSTREAM_COLLAPSE and above.silenced_by is not None:
                    above = by_name[above.silenced_by.name]
                    kind = above.kind
                roots[kind] += count
        return roots


def attribute(run: RecordedRun) -> RunAttribution:
    """Put down each death of a run to a cause."""
    lives = trace_sites(run)
    study = event_study(lives, run.steps)
    shifted = uncentred(run.observations.given)
    units = sum(site.units for site in lives)
    # Deaths of training that are as few as a healthy run has are not looked into further.
    many = sum(int(site.new.sum()) for site in lives) > FEW * units
    found = []
    for depth, site in enumerate(lives):
        above = _collapsed_above(site, lives[:depth])
        update = largest_update(
            run.observations.updates,
            {each.recorded.site.producer or "" for each in lives[: depth + 1]},
            int(site.ledger.died_step.max(initial=0)) or (run.steps[-1] if run.steps else 0),
        )
        problem = next(
            (p for p in (site.layer or {}).get("problems", ()) if p["kills_at_birth"]), None
        )
        kinds = np.full(site.units, "", dtype="<U24")
        birth = _birth_kind(site, above, problem, shifted, depth)
        kinds[site.never_alive] = birth
        # What silenced units at birth goes on to where it did so to most of those that are dead.
        dead_again = int((site.born & site.dead).sum())
        began_so = birth == cause.INITIALIZATION and 2 * dead_again >= site.dead.sum()
        silenced = site.new & _silenced(site, above)
        kinds[site.new & ~silenced] = _death_kind(many, study, update, began_so, shifted)
        kinds[silenced] = cause.UPSTREAM_COLLAPSE
        began_wrong = (
            problem is not None
            and site.born.sum() >= FEWEST_BORN
            and birth in {cause.INITIALIZATION, cause.UPSTREAM_COLLAPSE}
        )
        found.append(SiteAttribution(site, kinds, problem, update, above, began_wrong))
    return RunAttribution(tuple(found), study, shifted)


def _collapsed_above(site: SiteLives, above: Sequence[SiteLives]) -> SiteLives | None:
    """The first site above that is wholly dead, if what comes here is a constant since; else the
    one right above, if it is all but wholly dead.

    Beside a shortcut a dead site silences nothing; then outputs here still vary.
    """
    whole = next((each for each in above if each.dead_from != NEVER), None)
    if whole is not None:
        return whole if site.is_constant else None
    nearest = above[-1] if above else None
    is_first = site.given is not None and site.given.is_first
    if nearest is None or is_first or nearest.nearly_dead_from == NEVER:
        return None
    return nearest


def _silenced(site: SiteLives, above: SiteLives | None) -> Mask:
    """Which units died when the site above was dead; in the same window, if through their input.

    Where a few units above live, only those that died through their input.
    """
    died = site.ledger.died_step
    if above is None:
        return np.zeros(len(died), dtype=bool)
    wholly = above.dead_from != NEVER
    silenced = (died > above.dead_from) & wholly
    for death in site.deaths:
        shares = None if death.drift is None else shares_of(death.drift)
        if shares is None or death.step != died[death.unit]:
            continue
        if death.step == above.collapsed_from or (
            not wholly and death.step > above.nearly_dead_from
        ):
            _, by_input, _ = shares
            silenced[death.unit] = by_input > 0.5
    return np.asarray(silenced)


def _birth_kind(
    site: SiteLives,
    above: SiteLives | None,
    problem: dict[str, Any] | None,
    shifted: Given | None,
    depth: int,
) -> str:
    born = int(site.born.sum())
    if above is not None and above.dead_from == 0:
        return cause.UPSTREAM_COLLAPSE
    if born < FEWEST_BORN:
        return cause.NONE
    share = born / site.units
    fed_little = problem is None and above is not None and above.nearly_dead_from == 0
    if fed_little and _is_worse(share, site, suspect=True):
        return cause.UPSTREAM_COLLAPSE
    if _is_worse(share, site, suspect=problem is not None):
        return cause.INITIALIZATION
    if shifted is not None and share - centred_share(site, depth) > FEW:
        return cause.INPUT_SHIFT
    return cause.NONE


def _is_worse(share: float, site: SiteLives, suspect: bool) -> bool:
    """Whether more units are born dead than if the model were drawn anew.

    Where nothing is seen that would kill them, by far: units of a layer are not independent.
    """
    if site.baseline is None:
        return suspect
    chance, draws = site.baseline.born_dead, site.baseline.draws
    pooled = (share + draws * chance) / (1 + draws)
    error = math.sqrt(pooled * (1 - pooled) / site.units * (1 + 1 / draws))
    least, errors = (FEW, 3.0) if suspect else (FEW_UNEXPLAINED, 5.0)
    return share - chance > max(least, errors * error)


def _death_kind(
    many: bool,
    study: EventStudy | None,
    update: Update | None,
    began_so: bool,
    shifted: Given | None,
) -> str:
    if study is not None and study.tells:
        return cause.LEARNING_RATE
    if many and update is not None and update.ratio >= LARGE_UPDATE:
        return cause.LEARNING_RATE
    if began_so:
        return cause.INITIALIZATION
    if not many:
        return cause.NONE
    if shifted is not None:
        return cause.INPUT_SHIFT
    return cause.UNDETERMINED

"""None: no more units are dead than in a healthy run."""

import math

from reludiag.causes.cause import Evidence
from reludiag.causes.chance import (
    FEW,
    FEW_UNEXPLAINED,
    FEWEST_BORN,
    born_by_chance,
    chance_evidence,
    lacks_baseline,
    many_died,
    more_died,
)
from reludiag.causes.kind import Account, CauseKind, RunAttribution, SiteAttribution
from reludiag.recording.ledger import NEVER

LARGELY = 0.5
"""A site with this share of dead units, and clearly more than by chance, is not healthy, however
few units these are of the whole network."""
SEVERAL = 3
"""It has at least as many dead units: of two, one is soon dead."""


def _births(site: SiteAttribution) -> bool:
    return not lacks_baseline(site) and not _is_silenced(site)


def _deaths(site: SiteAttribution) -> bool:
    return not site.run.once(more_died) and not _is_silenced(site)


def _is_silenced(site: SiteAttribution) -> bool:
    """Whether it blocks all signal and gradient, which is usual nowhere, or most of it."""
    lives = site.lives
    if lives.units > 1 and lives.dead_since != NEVER:
        return True
    dead, chance = int(lives.dead.sum()), born_by_chance(lives)
    chance = 0.0 if math.isnan(chance) else chance
    born = int(lives.born.sum()) / max(1, lives.units)
    return (
        dead >= SEVERAL
        and dead >= LARGELY * lives.units
        and dead / lives.units > max(chance, born) + FEW_UNEXPLAINED
    )


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    sites = attribution.sites if only is None else (only,)
    dead = sum(int(site.lives.dead.sum()) for site in sites)
    units = sum(site.lives.units for site in sites)
    where = "" if only is None else f"of '{only.lives.name}' "
    if dead:
        verb = "is" if dead == 1 else "are"
        sentence = (
            f"{dead} of {units} units {where}{verb} dead, which is not more than in a healthy run "
            "of a network of this depth and width: nothing needs to be done."
        )
    else:
        sentence = f"No unit {where}is dead."
    evidence: list[Evidence] = []
    most_born = max(sites, key=lambda site: int(site.lives.born.sum()), default=None)
    if most_born is not None and (only is not None or most_born.lives.born.any()):
        evidence = chance_evidence(most_born.lives)
    run = attribution.run
    if run.recorded.facts.get("changed_after_last_snapshot"):
        sentence += (
            " But the weights or buffers of the model were changed after the last snapshot, which "
            "does not show how many are dead now."
        )
        confirm = "reludiag scan MODEL CHECKPOINT --data DATA"
        return Account(False, tuple(evidence), sentence, "", confirm)
    # Where many died and as many revived, the rate may have killed those that did not.
    identifiable = not run.once(many_died)
    return Account(identifiable, tuple(evidence), sentence, "", "")


KIND = CauseKind(
    name="none",
    title="no cause needed",
    badge="nothing unusual",
    clue="not more units are dead than in a healthy run",
    rule=(
        f"fewer than {FEWEST_BORN} units of its site were born dead, or at most {100 * FEW:g} % of "
        "all units died in training, as in a healthy run; or more were born dead, but no more than "
        "in the baseline; never of a site that is wholly dead, "
        f"or of which {100 * LARGELY:g} % are, and clearly more than by chance"
    ),
    births=_births,
    deaths=_deaths,
    account=_account,
    claim="nothing",
)

"""Chance: how many units are dead in a healthy run, and in the same model with new weights."""

import math

from reludiag.causes.cause import Evidence, rounded
from reludiag.causes.kind import RunLives, SiteAttribution
from reludiag.causes.site_lives import SiteLives

FEW = 0.03
"""Share of dead units in a healthy run: 0.7 % on digits with Kaiming and Adam at 0.001, at most 1.6
% over all seeds. For units born dead: an excess over the baseline that is more than chance.
"""
FEW_UNEXPLAINED = 0.1
"""The same for units born dead in a layer with no other problem."""
FEWEST_BORN = 2
"""Fewer units born dead at a site are attributed to chance."""


def many_died(run: RunLives) -> bool:
    """Whether more than a few of the units that are dead at the end died in training."""
    sites = [site for site in run.sites if run.is_trained(site)]
    units = sum(site.units for site in sites)
    return sum(int(site.new.sum()) for site in sites) > FEW * units


def more_died(run: RunLives) -> bool:
    """Whether more units died in training than in a healthy run: many, and not because others, as
    many as are dead by chance, revived.
    """
    units = sum(site.units for site in run.sites)
    dead = sum(int(site.dead.sum()) for site in run.sites)
    return run.once(many_died) and dead - _dead_by_chance(run) > FEW * units


def _dead_by_chance(run: RunLives) -> float:
    """Number of units that are dead in this network without training: as were born dead, or as in
    other draws, if these are more and nothing is wrong with the weights that would kill them.

    In a deep network which units are dead changes while it trains, as revived ones change places
    with others.
    """
    born = sum(_born(site) for site in run.sites)
    drawn = sum(_drawn(site) for site in run.sites)
    return min(born, drawn) if wrong_from_birth(run) else max(born, drawn)


def _born(lives: SiteLives) -> float:
    """Number of units born dead, but for those that were silent only because step 0 saw few
    samples: without a probe it is one batch, and later windows are many.
    """
    return _lasting(lives) * int(lives.born.sum())


def _drawn(lives: SiteLives) -> float:
    """The same in other draws of the weights, which saw the samples of step 0, too."""
    if lives.baseline is None:
        return 0.0
    return _lasting(lives) * lives.baseline.born_dead * lives.units


def _lasting(lives: SiteLives) -> float:
    """Share of the units born dead that are still silent on the samples of the first window; 1
    where these are not more than those of step 0.
    """
    samples, born = lives.recorded.samples, lives.born
    if len(samples) < 2 or samples[1] <= samples[0] or not born.any():
        return 1.0
    return float(lives.recorded.dead_in_training[1][born].mean())


def wrong_from_birth(run: RunLives) -> bool:
    """Whether something is wrong with the initial weights of any layer that kills units."""
    return any(
        problem["kills_at_birth"]
        for site in run.sites
        for problem in (site.layer or {}).get("problems", ())
    )


def several_born(site: SiteAttribution) -> bool:
    """Whether more units of a site are born dead than one by chance."""
    return int(site.lives.born.sum()) >= FEWEST_BORN


def more_born(lives: SiteLives, suspect: bool) -> bool:
    """Whether more units of a site are born dead than if its weights were drawn again.

    By far more if nothing is known that would kill them (not `suspect`): units of a layer are not
    independent.
    """
    if lives.baseline is None:
        return suspect
    chance, draws = lives.baseline.born_dead, lives.baseline.draws
    share = int(lives.born.sum()) / lives.units
    pooled = (share + draws * chance) / (1 + draws)
    error = math.sqrt(pooled * (1 - pooled) / lives.units * (1 + 1 / draws))
    least, errors = (FEW, 3.0) if suspect else (FEW_UNEXPLAINED, 5.0)
    return share - chance > max(least, errors * error)


def lacks_baseline(site: SiteAttribution) -> bool:
    """Whether many units of a site are born dead and nothing says how many would be by chance, as
    where its weights cannot be drawn again.
    """
    lives = site.lives
    share = int(lives.born.sum()) / lives.units
    return lives.baseline is None and several_born(site) and share > FEW_UNEXPLAINED


def born_by_chance(lives: SiteLives) -> float:
    """Share of units born dead when the model is drawn again; NaN if unknown."""
    return math.nan if lives.baseline is None else lives.baseline.born_dead


def chance_evidence(lives: SiteLives) -> list[Evidence]:
    """How many units of a site are born dead by chance: those of the same model drawn again."""
    chance = born_by_chance(lives)
    if math.isnan(chance):
        return []
    return [
        Evidence(
            "born dead if drawn again",
            rounded(chance),
            f"share of '{lives.name}' on the same samples with Kaiming's weights and zero bias; "
            f"as built: {int(lives.born.sum()) / lives.units:.2f}",
        )
    ]

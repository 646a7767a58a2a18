"""Upstream collapse: an earlier site was dead, and its output could make no unit fire."""

import numpy as np

from reludiag.causes.cause import Change, Evidence, text_of
from reludiag.causes.chance import more_born, several_born
from reludiag.causes.drift import shares_of
from reludiag.causes.initialization import (
    birth_problem,
    has_bad_initialization,
    problem_changes,
)
from reludiag.causes.kind import Account, CauseKind, RunAttribution, SiteAttribution
from reludiag.causes.site_lives import NEARLY, Mask, SiteLives
from reludiag.recording.ledger import NEVER


def _births(site: SiteAttribution) -> bool:
    above = site.above
    if above is None:
        return False
    if above.dead_since == 0:
        return True
    fed_little = above.nearly_dead_since == 0 and birth_problem(site) is None
    return several_born(site) and fed_little and more_born(site.lives, suspect=True)


def _deaths(site: SiteAttribution) -> Mask:
    """Units that died after the earlier site was dead, or in the same window through their input.

    If a few units of the earlier site live, only units that died through their input.
    """
    above, died = site.above, site.lives.ledger.died_step
    if above is None:
        return np.zeros(len(died), dtype=bool)
    is_complete = above.dead_since != NEVER
    silenced = (died > above.dead_since) & is_complete
    for death in site.lives.deaths:
        shares = None if death.drift is None else shares_of(death.drift)
        if shares is None or death.step != died[death.unit]:
            continue
        if death.step == above.collapsed_since or (
            not is_complete and death.step > above.nearly_dead_since
        ):
            _, by_input, _ = shares
            silenced[death.unit] = by_input > 0.5
    return np.asarray(silenced)


def _root(site: SiteAttribution) -> SiteLives | None:
    return site.above


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    site = only or attribution.foremost(KIND.name)
    above = site.above
    assert above is not None
    step, is_complete = above.collapsed_since, above.dead_since != NEVER
    dead = above.units if is_complete else int(above.dead.sum())
    evidence = (
        Evidence(
            f"'{above.name}' completely dead",
            step,
            "step from which it outputs only zeros, so later layers get only constants",
        )
        if is_complete
        else Evidence(
            f"'{above.name}' almost completely dead",
            step,
            f"step from which at least {100 * NEARLY:g} % of it was dead; at the end {dead} of "
            f"{above.units} units",
        ),
    )
    root = attribution.site(above.name)
    changes: tuple[Change, ...]
    if root.kind is KIND or root.kind.claim == "nothing":
        advice, changes, confirm = f"fix '{above.name}' first", (), ""
    else:
        account = root.kind.account(attribution, root)
        advice = f"fix '{above.name}' first" + (f": {account.advice}" if account.advice else "")
        changes, confirm = account.changes, account.confirm
    problem = birth_problem(site)
    if problem is not None and has_bad_initialization(site):
        own = problem_changes(attribution.run, {str(site.lives.recorded.site.producer): problem})
        advice += f"; then {text_of(own)}"
        changes += own
    silenced = f"silenced {site.tally[KIND.name]} units of '{site.lives.name}'."
    sentence = (
        f"All units of '{above.name}' are dead since step {step}: its output is constant, which "
        f"{silenced}"
        if is_complete
        else f"{dead} of {above.units} units of '{above.name}' are dead, nearly all since step "
        f"{step}: little of its signal is left, which {silenced}"
    )
    return Account(is_complete, evidence, sentence, advice, confirm, changes)


KIND = CauseKind(
    name="upstream_collapse",
    title="a dead earlier site",
    clue="an earlier site was completely dead, so its output was constant",
    rule=(
        "it is dead since step 0, and so is all of an earlier site; it died after an earlier site "
        "was completely dead, so that its input is constant; or it died after the site directly "
        f"before was at least {100 * NEARLY:g} % dead, and more than half of the drop of its "
        "pre-activation came through its input"
    ),
    births=_births,
    deaths=_deaths,
    account=_account,
    root=_root,
)

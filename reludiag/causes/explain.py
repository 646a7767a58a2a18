"""Explain: from the evidence of a run to its causes, each with its numbers and what to do.

It knows no kind of cause by name: what each is and says stands in `all_kinds`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reludiag.causes.all_kinds import KINDS
from reludiag.causes.attribution import attribute
from reludiag.causes.cause import Cause, Evidence
from reludiag.causes.deaths_at_marks import mark_evidence
from reludiag.causes.kind import Account, CauseKind, RunAttribution, SiteAttribution
from reludiag.causes.site_lives import SiteLives
from reludiag.causes.wording import replay_of
from reludiag.recording import RecordedRun

SECOND = 0.2
"""A second cause with at least this share of the deaths is also named."""


@dataclass(frozen=True)
class Explanation:
    """Why the units of a run died."""

    causes: tuple[Cause, ...]
    """The cause of the run first, then one for each site with deaths."""
    kinds: dict[str, np.ndarray[Any, np.dtype[np.str_]]]
    """Name of a site -> `[unit]`: kind of cause, empty where the unit is not dead."""


def explain(run: RecordedRun, kinds: Sequence[CauseKind] = KINDS) -> Explanation:
    """Why the units of a run died, by these kinds of cause: the first that explains a death is it.

    One of `kinds` has to claim every death that the others leave.
    """
    attribution = attribute(run, kinds)
    dead = [site for site in attribution.sites if site.lives.dead.any()]
    causes = (_of_run(attribution), *(_of_site(attribution, site) for site in dead))
    return Explanation(causes, {site.lives.name: site.kinds for site in attribution.sites})


def _of_run(attribution: RunAttribution) -> Cause:
    kinds = attribution.run.kinds
    for kind in kinds.values():
        share = kind.of_run(attribution)
        if share:
            return _cause(kind, None, share, kind.account(attribution, None))
    counts = attribution.roots()
    dead = sum(counts.values())
    claims = [name for name in counts if kinds[name].claim != "nothing"]
    if claims:
        kind = kinds[max(claims, key=lambda name: (kinds[name].leads, counts[name]))]
    else:
        kind = next(kind for kind in kinds.values() if kind.claim == "nothing")
    share = counts[kind.name] / dead if dead else 0.0
    account = kind.account(attribution, None)
    others = [kinds[name] for name in claims if name != kind.name and counts[name] >= SECOND * dead]
    if others:
        account = _with_others(attribution, account, others, counts)
    return _cause(
        kind, None, share, _with_marks(attribution, account, attribution.sites), attribution.sites
    )


def _with_others(
    attribution: RunAttribution,
    account: Account,
    others: Sequence[CauseKind],
    counts: Counter[str],
) -> Account:
    """The account of the cause with most deaths, and the advice on others beside it."""
    dead = sum(counts.values())
    seconds = "; ".join(
        f"{other.subject or other.title} explains {counts[other.name]} of the {dead} dead units"
        for other in others
    )
    # Problems from the start come first: fixing them changes which learning rate is safe.
    ordered = sorted(
        (other.advice_order, other.name) for other in others if other.advice_order is not None
    )
    accounts = [attribution.run.kinds[name].account(attribution, None) for _, name in ordered]
    accounts.append(account)
    changes = tuple(change for each in accounts for change in each.changes)
    return replace(
        account,
        sentence=f"{account.sentence[:-1]}; {seconds}.",
        advice="; then ".join(each.advice for each in accounts if each.advice),
        # All that the evidence suspects, so that no change is blamed for what another did.
        confirm=replay_of(changes) or account.confirm,
        changes=changes,
    )


def _of_site(attribution: RunAttribution, site: SiteAttribution) -> Cause:
    kind, dead = site.kind, int(site.lives.dead.sum())
    share = site.tally[kind.name] / dead
    account = _with_marks(attribution, kind.account(attribution, site), [site])
    return _cause(kind, site.lives.name, share, account, [site])


def _with_marks(
    attribution: RunAttribution, account: Account, sites: Sequence[SiteAttribution]
) -> Account:
    """The account, and beside its evidence what died right after the user's marks."""
    lives = [site.lives for site in sites]
    marks = mark_evidence(attribution.run.recorded, lives)
    return replace(account, evidence=(*marks, *account.evidence))


def _cause(
    kind: CauseKind,
    name: str | None,
    share: float,
    account: Account,
    counted: Sequence[SiteAttribution] | None = None,
) -> Cause:
    """The cause of a run or of the site with this name; its evidence begins with how many units of
    the sites `counted` were born dead and died, if they are given.
    """
    counts = () if counted is None else (_counts([site.lives for site in counted]),)
    return Cause(
        kind=kind.name,
        site=name,
        share=share,
        identifiable=account.identifiable,
        evidence=(*counts, *account.evidence),
        sentence=account.sentence,
        advice=account.advice,
        confirm=account.confirm,
        changes=account.changes,
    )


def _counts(sites: Sequence[SiteLives]) -> Evidence:
    """Counted as in the site table."""
    units = sum(site.units for site in sites)
    born = sum(int(site.born.sum()) for site in sites)
    never = sum(int(site.never_alive.sum()) for site in sites)
    died = sum(int(site.ledger.died.any(axis=0).sum()) for site in sites)
    revived = sum(int(site.ledger.revived.any(axis=0).sum()) for site in sites)
    return Evidence(
        "born dead, died, of",
        f"{born}, {died}, {units}",
        f"units dead at step 0, units that died later, all units; {never} never alive, "
        f"{revived} revived at some time",
    )

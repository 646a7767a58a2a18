"""Weighing: from the evidence of a run to its causes, each with its numbers and what to do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reludiag.causes import cause
from reludiag.causes.attribution import RunAttribution, SiteAttribution, attribute
from reludiag.causes.by_kind import (
    ACCOUNTS,
    FALLBACK_SCALE,
    group_in_words,
    one_digit,
    replay_command,
)
from reludiag.causes.cause import Cause, Evidence
from reludiag.causes.evidence_items import chance_evidence, rounded
from reludiag.causes.site_lives import SiteLives
from reludiag.recording import RecordedRun

SECOND = 0.2
"""A second cause of this share of the deaths is named beside the first."""
_IN_WORDS = {
    cause.LEARNING_RATE: "the learning rate",
    cause.INITIALIZATION: "the initialization",
    cause.INPUT_SHIFT: "the input",
    cause.UPSTREAM_COLLAPSE: "a dead site above",
    cause.UNDETERMINED: "something that is not known",
}


@dataclass(frozen=True)
class Explanation:
    """Why the units of a run died."""

    causes: tuple[Cause, ...]
    """The run's own first, then one for each site with deaths."""
    kinds: dict[str, np.ndarray[Any, np.dtype[np.str_]]]
    """Name of a site -> `[unit]`: kind of cause, empty where the unit is not dead."""


def weigh(run: RecordedRun) -> list[Cause]:
    """The causes of a run's deaths: the run's own first, then one for each site with deaths."""
    return list(explain(run).causes)


def explain(run: RecordedRun) -> Explanation:
    """The same, with the kind of cause of each dead unit."""
    found = attribute(run)
    dead = [site for site in found.sites if site.lives.dead.any()]
    causes = [_of_run(run, found), *(_of_site(run, found, site) for site in dead)]
    return Explanation(tuple(causes), {site.lives.name: site.kinds for site in found.sites})


def _of_run(run: RecordedRun, found: RunAttribution) -> Cause:
    units = sum(site.lives.units for site in found.sites)
    nonfinite = sum(site.lives.nonfinite for site in found.sites)
    if nonfinite:
        return _divergence(run, found, nonfinite / units)
    roots = found.roots()
    dead = sum(roots.values())
    evidence = [_ledger_evidence(found, units)]
    named = {kind: count for kind, count in roots.items() if kind != cause.NONE}
    if not named:
        most_born = max(found.sites, key=lambda site: int(site.lives.born.sum()), default=None)
        if most_born is not None and most_born.lives.born.any():
            evidence += chance_evidence(most_born)
        return _nothing(None, dead, units, evidence)
    kind = max(named, key=lambda each: named[each])
    site = _foremost(found, kind)
    result = ACCOUNTS[kind](run, found, site, None)
    others = {
        other: count for other, count in named.items() if other != kind and count >= SECOND * dead
    }
    seconds = [
        f"{_IN_WORDS.get(other, other)} explains {count} of the {dead} dead units"
        for other, count in others.items()
    ]
    # What was wrong from the start first: with it the rate that is safe is another one.
    advice = [
        ACCOUNTS[other](run, found, _foremost(found, other), None).advice
        for other in (cause.INPUT_SHIFT, cause.INITIALIZATION)
        if other in others
    ]
    advice += [result.advice] if result.advice else []
    return Cause(
        kind=kind,
        site=None,
        share=named[kind] / dead,
        identifiable=result.identifiable,
        evidence=(*evidence, *result.evidence),
        sentence=f"{result.sentence[:-1]}; {'; '.join(seconds)}." if seconds else result.sentence,
        advice="; then ".join(advice),
        confirm=result.confirm,
    )


def _of_site(run: RecordedRun, found: RunAttribution, site: SiteAttribution) -> Cause:
    dead = int(site.lives.dead.sum())
    if site.kind == cause.NONE:
        return _nothing(
            site.lives.name, dead, site.lives.units, [_site_ledger(site), *chance_evidence(site)]
        )
    written = ACCOUNTS[site.kind](run, found, site, site)
    return Cause(
        kind=site.kind,
        site=site.lives.name,
        share=site.tally[site.kind] / dead,
        identifiable=written.identifiable,
        evidence=(_site_ledger(site), *written.evidence),
        sentence=written.sentence,
        advice=written.advice,
        confirm=written.confirm,
    )


def _divergence(run: RecordedRun, found: RunAttribution, share: float) -> Cause:
    first = next(site for site in found.sites if site.lives.nonfinite)
    flags = first.lives.recorded.nonfinite.any(axis=1)
    step = run.steps[int(np.argmax(flags))]
    rates = first.lives.window_rates
    highest = float(np.nanmax(rates)) if np.isfinite(rates).any() else math.nan
    at = f" at a learning rate of up to {highest:.3g}" if math.isfinite(highest) else ""
    lower = f" from {highest:.3g} to {one_digit(FALLBACK_SCALE * highest):.1g}" if at else ""
    return Cause(
        kind=cause.DIVERGENCE,
        site=None,
        share=share,
        identifiable=True,
        evidence=(
            Evidence(
                "first step not finite",
                step,
                f"snapshot at which '{first.lives.name}' had NaN or infinite values",
            ),
            Evidence("not finite", rounded(share), "share of units, in the end"),
        ),
        sentence=(
            f"The run diverged by step {step}{at}: its units are NaN or infinite, neither dead "
            "nor alive."
        ),
        advice=(
            f"lower the learning rate of {group_in_words(run, first)}{lower}, or clip the gradients"
        ),
        confirm=replay_command(scale=FALLBACK_SCALE),
    )


def _nothing(site: str | None, dead: int, units: int, evidence: list[Evidence]) -> Cause:
    where = f"of '{site}' " if site else ""
    if dead:
        verb = "is" if dead == 1 else "are"
        sentence = f"{dead} of {units} units {where}{verb} dead, no more than in a healthy run."
    else:
        sentence = f"No unit {where}is dead."
    return Cause(cause.NONE, site, 1.0 if dead else 0.0, True, tuple(evidence), sentence, "", "")


def _foremost(found: RunAttribution, kind: str) -> SiteAttribution:
    """The site that has most deaths of a kind; of an input's, most births."""

    def deaths(site: SiteAttribution) -> int:
        born = site.lives.born if kind == cause.INPUT_SHIFT else site.lives.dead
        return int((born & (site.kinds == kind)).sum())

    return max(found.sites, key=deaths)


def _ledger_evidence(found: RunAttribution, units: int) -> Evidence:
    return _counts([site.lives for site in found.sites], units)


def _site_ledger(site: SiteAttribution) -> Evidence:
    return _counts([site.lives], site.lives.units)


def _counts(sites: Sequence[SiteLives], units: int) -> Evidence:
    """As the site table counts them."""
    born = sum(int(site.born.sum()) for site in sites)
    never = sum(int(site.never_alive.sum()) for site in sites)
    died = sum(int(site.ledger.died.any(axis=0).sum()) for site in sites)
    revived = sum(int(site.ledger.revived.any(axis=0).sum()) for site in sites)
    return Evidence(
        "born dead, died, of",
        f"{born}, {died}, {units}",
        f"units dead at step 0, and units that died later; {never} born dead and never alive, "
        f"{revived} revived at some time",
    )

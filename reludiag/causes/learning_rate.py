"""Learning rate: whether it killed units, and at which rate they would have survived.

- The event study says whether units died when it was high.
- The largest ratio of an update to the weights it changed, before the last death. After a collapse
  gradients are 0: a mean over the run would be too low.
- The critical learning rate: the fraction of the window's update that a unit would have survived,
  times the largest rate in that window.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from reludiag.causes.cause import Change, Evidence, rounded
from reludiag.causes.chance import FEW, more_died
from reludiag.causes.drift import drift_evidence, drift_shares
from reludiag.causes.event_study import EventStudy, study_evidence, study_of
from reludiag.causes.input_scale import large_input
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.rate_changes import (
    CriticalRates,
    critical_rates,
    groups_of,
    lowered_rates,
)
from reludiag.causes.regularization import is_candidate
from reludiag.causes.scale_of_targets import far_targets, targets_evidence
from reludiag.causes.selection import is_mostly_unselected
from reludiag.causes.shifted_data import data_shift
from reludiag.causes.site_lives import Mask, SiteLives
from reludiag.causes.structure import is_misplaced
from reludiag.causes.wording import groups_in_words, replay_of
from reludiag.recording.learning_rates import LearningRates
from reludiag.recording.observations import Update

LARGE_UPDATE = 0.02
"""On digits with Adam, updates of 0.003 to 0.01 times the weights killed 0.2 % of units, updates of
0.03 to 0.1 times killed 30 %: this lies between. 0.001 is the rule of thumb for healthy
training.
"""
WARMS_UP = 2.0
"""A rate up to this many times the critical one may be kept behind a warm-up. On digits with Adam,
at 0.03 (1.8 times) a warm-up cut deaths from 0.12 to 0.04, at 0.1 (2.9 times) it only delayed
them."""


OWN_RATE = 10.0
"""A group with this many times the learning rate of another one that trains the same layer has a
rate of its own."""
BY_BIAS = 0.5
"""It is that of the bias if the bias made this share of what lowered the units that died."""


def high_bias_rate(site: SiteAttribution) -> Change | None:
    """Lower the rate of the group with the bias of a layer, if that is far above the weights' and
    lowered the units that died; None if not.
    """
    run, lives = site.run.recorded, site.lives
    rates = LearningRates(run)
    by_group = {
        group: rates.largest(replace(lives.recorded, param_group=group), 0, run.steps[-1])
        for group in groups_of(run, lives)
    }
    known = {group: rate for group, rate in by_group.items() if math.isfinite(rate)}
    lowest, highest = min(known.values(), default=0.0), max(known.values(), default=0.0)
    shares = drift_shares(lives.deaths)
    if not 0 < OWN_RATE * lowest <= highest or shares is None or shares.bias < BY_BIAS:
        return None
    groups = tuple(group for group, rate in known.items() if rate == highest)
    sentence = (
        f"lower the learning rate of {groups_in_words(run, groups)}, which has biases, from "
        f"{highest:.3g} to {lowest:.1g}, as the weights have it"
    )
    return Change("lr", sentence, groups, highest, lowest)


def largest_update(site: SiteAttribution) -> Update | None:
    """The largest update of the layers that feed a site or one above it, up to its last death."""
    run = site.run
    sites = run.up_to(site.depth)
    layers = {producer for each in sites for producer in each.recorded.site.producers}
    steps = run.recorded.steps
    end = int(site.lives.ledger.died_step.max(initial=0)) or (steps[-1] if steps else 0)
    updates = run.recorded.observations.updates
    until = [each for each in updates if each.module in layers and each.step <= end]
    return max(until, key=lambda each: each.ratio, default=None)


def _deaths(site: SiteAttribution) -> Mask | bool:
    study = site.run.once(study_of)
    if study is not None and study.is_conclusive and site.lives.name in study.sites:
        return True  # by when units died: it needs no evidence of single deaths
    update = largest_update(site)
    if not site.run.once(more_died):
        return False
    if (update is None or update.ratio < LARGE_UPDATE) and high_bias_rate(site) is None:
        return False
    if site.run.once(large_input) is not None or site.run.once(data_shift) is not None:
        return False
    if is_mostly_unselected(site.lives):  # they fire: no update has silenced them
        return False
    if is_candidate(site) or is_misplaced(site):  # then it may as well be that
        return False
    return ~site.lives.unexamined


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    run, site = attribution.run, only or attribution.foremost(KIND.name)
    concerned = [only] if only else [each for each in attribution.sites if KIND.name in each.tally]
    lives = [each.lives for each in concerned]
    study, critical = run.once(study_of), critical_rates(lives)
    rates = np.concatenate([each.rate_at_death[each.new] for each in lives])
    highest = float(np.nanmax(rates)) if np.isfinite(rates).any() else math.nan
    update = largest_update(site)
    # The size of an update of weights says nothing of biases with a rate of their own.
    found = dict.fromkeys(high_bias_rate(each) for each in concerned)
    of_biases = tuple(change for change in found if change is not None)
    changes = of_biases or _changes(run, lives, update)
    return Account(
        identifiable=study is not None and study.is_conclusive,
        evidence=(
            *study_evidence(study),
            *update_evidence(site),
            *_small_weights_evidence(site),
            *_critical_evidence(critical),
            *drift_evidence(lives),
            *_targets_evidence(run),
        ),
        sentence=_of_biases(concerned)
        if of_biases
        else _sentence(study, critical, highest, update),
        advice="",
        confirm=replay_of(changes),
        changes=changes,
    )


def _sentence(
    study: EventStudy | None,
    critical: CriticalRates | None,
    highest: float,
    update: Update | None,
) -> str:
    below = (
        f"; at {critical.half:.2g} about half of them would have survived"
        if critical is not None and critical.half > 0
        else ""
    )
    if study is not None and study.is_conclusive:
        return (
            f"Units died when the learning rate was high: {study.deaths_high} of {study.deaths} "
            f"deaths came in steps {study.first}-{study.last}, at {study.level:.3g} to "
            f"{study.high:.3g}, with {study.exposure_high:.0%} of the exposure{below}."
        )
    at = f" at a learning rate of {highest:.3g}" if math.isfinite(highest) else ""
    large = ""
    if update is not None:
        large = f", where a step changed weights by up to {update.ratio:.2g} times their norm"
    regime = "constant" if study is None else study.regime
    why = {
        "constant": "The rate was never lower",
        "decay": "The rate only fell",
        "warm-up": "The rate was low only before, so whatever came later looks like it",
    }.get(regime, "Deaths are not clearly more frequent when it was high")
    return f"Units died in training{at}{large}{below}. {why}: this run alone cannot prove it."


def _of_biases(sites: Sequence[SiteAttribution]) -> str:
    shares = drift_shares(death for site in sites for death in site.lives.deaths)
    part = "most" if shares is None else f"{shares.bias:.0%}"
    return (
        f"Units died in training, and {part} of what lowered their pre-activations came from "
        "biases, which have a learning rate far above that of the weights. This run alone cannot "
        "prove it."
    )


def _changes(
    run: RunLives, lives: Sequence[SiteLives], update: Update | None
) -> tuple[Change, ...]:
    """Lower the rate of all groups that train these sites, or the layer with the largest update."""
    study, steps, remark = run.once(study_of), None, ""
    if study is not None and study.regime == "spike" and study.is_conclusive:
        steps = study.first, study.last
    if study is not None and study.regime == "constant":
        critical = critical_rates(lives, relative=True)
        if critical is None or WARMS_UP * critical.half < 1:
            remark = "; a warm-up alone may only delay the deaths"
        else:
            remark = f", or warm it up over {_warm_up_steps(run)} steps"
    module = "" if update is None else update.module
    names = {site.name for site in lives}
    concerned = [
        site for site in run.sites if site.name in names or module in site.recorded.site.producers
    ]
    return lowered_rates(run.recorded, concerned, steps=steps, remark=remark)


def _warm_up_steps(run: RunLives) -> int:
    """Twice the number of steps in which half of the units died, at most half of the run."""
    trained = [site for site in run.sites if run.is_trained(site)]
    died, steps = np.sum([site.died for site in trained], axis=0), run.recorded.steps
    reached = int(np.searchsorted(np.cumsum(died), 0.5 * died.sum()))
    half = steps[1:][min(reached, len(died) - 1)]
    return int(max(1, min(2 * half, steps[-1] // 2)))


def update_evidence(site: SiteAttribution) -> list[Evidence]:
    """The largest update of weights before the last death."""
    update = largest_update(site)
    if update is None:
        return []
    return [
        Evidence(
            "largest update",
            rounded(update.ratio),
            f"norm of the change over norm of the weights of '{update.module}', at step "
            f"{update.step}; 0.001 is usual; on digits, 0.03 and more killed 30 % of units",
        )
    ]


def _targets_evidence(run: RunLives) -> tuple[Evidence, ...]:
    """Of targets far from 0, which make steps large, too, if not by so much."""
    targets = run.once(far_targets)
    return () if targets is None else targets_evidence(targets)


def _critical_evidence(critical: CriticalRates | None) -> list[Evidence]:
    """The learning rate at which half of the units that died would have survived."""
    if critical is None:
        return []
    return [
        Evidence(
            "critical learning rate",
            rounded(critical.half),
            f"this rate would have prevented half of {critical.deaths} deaths, "
            f"{critical.quarter:.2g} three quarters; exact for a single step of plain SGD, an "
            "estimate for a window of steps",
        )
    ]


def _small_weights_evidence(site: SiteAttribution) -> list[Evidence]:
    """With too small initial weights every update is relatively large; PyTorch's default is not too
    small.
    """
    layer = site.lives.layer or {}
    if "pytorch" in (layer.get("scheme"), *layer.get("alike", ())):
        return []
    return [
        Evidence("variance of the weights", rounded(problem["value"]), problem["sentence"])
        for problem in layer.get("problems", ())
        if problem["kind"] == "variance" and problem["value"] < 1
    ]


KIND = CauseKind(
    name="learning_rate",
    title="the learning rate",
    clue=(
        "units died more often while the rate was high, or updates were large relative to the "
        "weights"
    ),
    rule=(
        "it died in training, and the event study below is conclusive; or more than "
        f"{100 * FEW:g} % of all units died in training, and the largest update ρ of its layer or "
        f"an earlier one was at least {LARGE_UPDATE:g}, or its bias, with a rate {OWN_RATE:g} "
        "times as high as its weights, made half of what lowered its units, unless there was no "
        "time for its evidence, or the input or the scale of the targets explains it (see there), "
        "or most of its dead units fire and a top-k never selects them"
    ),
    deaths=_deaths,
    account=_account,
)

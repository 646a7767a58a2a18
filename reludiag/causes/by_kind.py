"""Accounts: what is said of a cause of each kind: its numbers, what to do, how to confirm it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reludiag.causes import cause
from reludiag.causes.attribution import RunAttribution, SiteAttribution
from reludiag.causes.cause import Evidence
from reludiag.causes.evidence_items import (
    chance_evidence,
    critical_evidence,
    drift_evidence,
    rounded,
    small_weights_evidence,
    study_evidence,
    update_evidence,
)
from reludiag.causes.learning_rate import CriticalRates, EventStudy, critical_rates
from reludiag.causes.site_lives import NEARLY
from reludiag.recording import RecordedRun
from reludiag.recording.ledger import NEVER

FALLBACK_SCALE = 0.1
"""Of the learning rate to try where no critical one is known."""
SMALLEST_SCALE = 0.03
"""Critical rates are estimates over windows: advice goes no further down at once."""
WARMS_UP = 2.0
"""A rate up to so many times the critical one may be kept behind a warm-up. On digits with Adam, at
0.03 (1.8 times) a warm-up cut deaths from 0.12 to 0.04, at 0.1 (2.9 times) it only put them off."""


@dataclass(frozen=True)
class Account:
    """What is said of a cause; the fields are those of `Cause`."""

    identifiable: bool
    evidence: tuple[Evidence, ...]
    sentence: str
    advice: str
    confirm: str


def _learning_rate(
    run: RecordedRun, found: RunAttribution, site: SiteAttribution, only: SiteAttribution | None
) -> Account:
    chosen = [only] if only is not None else list(found.sites)
    lives = [each.lives for each in chosen if only is not None or cause.LEARNING_RATE in each.tally]
    critical = critical_rates(lives)
    rates = np.concatenate([each.rate_at_death[each.new] for each in lives])
    highest = float(np.nanmax(rates)) if np.isfinite(rates).any() else math.nan
    evidence = [
        *study_evidence(found.study),
        *update_evidence(site),
        *small_weights_evidence(site),
        *critical_evidence(critical),
        *drift_evidence(lives),
    ]
    group = group_in_words(run, site)
    target = _target(critical, highest)
    return Account(
        identifiable=found.study is not None and found.study.tells,
        evidence=tuple(evidence),
        sentence=_rate_sentence(found.study, critical, highest, site),
        advice=_rate_advice(run, found, group, critical, highest, target),
        confirm=replay_command(scale=target / highest if highest > 0 else FALLBACK_SCALE),
    )


def _rate_sentence(
    study: EventStudy | None,
    critical: CriticalRates | None,
    highest: float,
    site: SiteAttribution,
) -> str:
    below = (
        f"; at {critical.half:.2g} about half of them would have lived"
        if critical is not None and critical.half > 0
        else ""
    )
    if study is not None and study.tells:
        return (
            f"Units died where the learning rate was high: {study.deaths_high} of {study.deaths} "
            f"deaths came in steps {study.first}-{study.last}, at {study.level:.3g} to "
            f"{study.high:.3g}, with {study.exposure_high:.0%} of the exposure{below}."
        )
    at = f" at a learning rate of {highest:.3g}" if math.isfinite(highest) else ""
    large = ""
    if site.update is not None:
        large = f", where a step changed weights by up to {site.update.ratio:.2g} of their size"
    regime = "constant" if study is None else study.regime
    why = {"constant": "The rate was never lower", "decay": "The rate only fell"}.get(
        regime, "Deaths are not clearly more frequent where it was high"
    )
    return f"Units died in training{at}{large}{below}. {why}: this run alone cannot prove it."


def _rate_advice(
    run: RecordedRun,
    found: RunAttribution,
    group: str,
    critical: CriticalRates | None,
    highest: float,
    target: float,
) -> str:
    if not math.isfinite(target):
        return "lower the learning rate"
    study = found.study
    lower = f"lower the learning rate of {group} from {highest:.3g} to {target:.1g}"
    if study is not None and study.regime == "spike" and study.tells:
        lower += f" in steps {study.first}-{study.last}"
    if study is None or study.regime != "constant":
        return lower
    if critical is None or critical.half <= 0 or highest > WARMS_UP * critical.half:
        return f"{lower}; a warm-up alone may only put the deaths off"
    return f"{lower}, or warm it up over {_warm_up_steps(run, found)} steps"


def _warm_up_steps(run: RecordedRun, found: RunAttribution) -> int:
    """Twice the steps in which half of the deaths came, but no more than half of the run."""
    died = np.sum([site.lives.died for site in found.sites], axis=0)
    reached = int(np.searchsorted(np.cumsum(died), 0.5 * died.sum()))
    half = run.steps[1:][min(reached, len(died) - 1)]
    return int(max(1, min(2 * half, run.steps[-1] // 2)))


def _initialization(
    run: RecordedRun, found: RunAttribution, site: SiteAttribution, only: SiteAttribution | None
) -> Account:
    lives = site.lives
    layer = lives.layer or {}
    beside = [each for each in found.sites if each is not site] if only is None else []
    wrong = [
        each for each in (site, *beside) if each.problem and (each is site or each.began_wrong)
    ]
    wrong.sort(key=lambda each: each.lives.order)
    # By layer: one that feeds several sites is named once.
    problems = {(each.lives.layer or {})["module"]: each.problem or {} for each in wrong}
    evidence = chance_evidence(site)
    evidence += [
        Evidence(problem["kind"], rounded(problem["value"]), problem["sentence"])
        for problem in problems.values()
    ]
    if layer:
        evidence.append(
            Evidence(
                f"weights of '{layer['module']}'",
                layer["scheme"] if layer["scheme"] != "unknown" else layer["distribution"],
                "the scheme that they are from, by likelihood",
            )
        )
    if problems:
        counted = wrong if site.problem else [site, *wrong]
        born = sum(int(each.lives.born.sum()) for each in counted)
        units = sum(each.lives.units for each in counted)
        names = " and ".join(f"'{each.lives.name}'" for each in counted)
        sentence = f"{born} of {units} units of {names} were dead before any training: "
        sentence += f"{problems_in_words(problems)}."
        advice = advice_on(problems)
    else:
        sentence = (
            f"{int(lives.born.sum())} of {lives.units} units of '{lives.name}' were dead before "
            f"any training; weights of Kaiming and zero biases leave {site.chance:.1%} on the same "
            "samples."
        )
        advice = f"start {layer.get('module', lives.name)} with kaiming_normal and its bias at 0"
    # At step 0 no learning rate has acted: what is born dead this run can tell.
    identifiable = site.tally[cause.INITIALIZATION] <= 2 * int(lives.never_alive.sum())
    return Account(identifiable, tuple(evidence), sentence, advice, replay_command(init="kaiming"))


def _input_shift(
    run: RecordedRun, found: RunAttribution, site: SiteAttribution, only: SiteAttribution | None
) -> Account:
    shifted, lives = found.shifted, site.lives
    assert shifted is not None
    evidence = [
        Evidence(
            "gamma",
            rounded(shifted.gamma),
            f"norm of the mean of the input of '{shifted.module}' over norm of its standard "
            "deviation; above 1 it is not centred",
        )
    ]
    drawn = ""
    if not math.isnan(site.chance):
        evidence += chance_evidence(site)
        drawn = ", and would be under any scheme"
    born = int(lives.born.sum())
    sentence = (
        f"The input is not centred: its mean is {shifted.gamma:.2g} times as long as its standard "
        f"deviation, so samples point the same way. {born} of {lives.units} units of "
        f"'{lives.name}' were dead before any training{drawn}."
    )
    advice = f"subtract from the input of '{shifted.module}' the mean of each feature"
    return Account(
        not math.isnan(site.chance),
        tuple(evidence),
        sentence,
        advice,
        "reludiag init MODEL --data CENTRED",
    )


def _upstream(
    run: RecordedRun, found: RunAttribution, site: SiteAttribution, only: SiteAttribution | None
) -> Account:
    above = site.silenced_by
    assert above is not None
    step, wholly = above.collapsed_from, above.dead_from != NEVER
    dead = above.units if wholly else int(above.dead.sum())
    evidence = (
        Evidence(
            f"'{above.name}' wholly dead",
            step,
            "step from which on it gives nothing but zeros, and later layers get only constants",
        )
        if wholly
        else Evidence(
            f"'{above.name}' all but wholly dead",
            step,
            f"step from which on at least {100 * NEARLY:g} % of it was dead; in the end {dead} of "
            f"{above.units} units",
        ),
    )
    root = next(each for each in found.sites if each.lives.name == above.name)
    if root.kind in {cause.UPSTREAM_COLLAPSE, cause.NONE}:
        advice, confirm = f"see to '{above.name}' first", ""
    else:
        written = ACCOUNTS[root.kind](run, found, root, root)
        advice, confirm = f"see to '{above.name}' first: {written.advice}", written.confirm
    if site.began_wrong and site.problem is not None:
        advice += f"; then {site.problem['advice']}"
    silenced = f"silenced {site.tally[cause.UPSTREAM_COLLAPSE]} units of '{site.lives.name}'."
    sentence = (
        f"All units of '{above.name}' are dead since step {step}: what comes from there is "
        f"constant, and {silenced}"
        if wholly
        else f"{dead} of {above.units} units of '{above.name}' are dead, nearly all since step "
        f"{step}: what is left of the signal from there is little, and {silenced}"
    )
    return Account(wholly, evidence, sentence, advice, confirm)


def _undetermined(
    run: RecordedRun, found: RunAttribution, site: SiteAttribution, only: SiteAttribution | None
) -> Account:
    return Account(
        False,
        (
            *study_evidence(found.study),
            *update_evidence(site),
            *drift_evidence([each.lives for each in ([only] if only else found.sites)]),
        ),
        f"Units of '{site.lives.name}' died in training, and nothing recorded says why: neither "
        "the size of the updates, nor how the weights began, nor the input.",
        "give the Monitor a smaller `every`, to see the deaths as they come"
        if run.facts.get("probe_samples")
        else "give the Monitor a probe and a smaller `every`, to see the deaths as they come",
        replay_command(scale=FALLBACK_SCALE, init="kaiming"),
    )


# kind -> its account of the run (None), or of one site alone
ACCOUNTS: dict[
    str,
    Callable[[RecordedRun, RunAttribution, SiteAttribution, SiteAttribution | None], Account],
] = {
    cause.LEARNING_RATE: _learning_rate,
    cause.INITIALIZATION: _initialization,
    cause.INPUT_SHIFT: _input_shift,
    cause.UPSTREAM_COLLAPSE: _upstream,
    cause.UNDETERMINED: _undetermined,
}


def problems_in_words(problems: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with each layer; of those with the same kind of problem the first in full."""
    by_kind: dict[str, list[str]] = {}
    for module, problem in problems.items():
        by_kind.setdefault(problem["kind"], []).append(module)
    return "; ".join(
        problems[first]["sentence"]
        + (f"; the same is wrong with {' and '.join(others)}" if others else "")
        for first, *others in by_kind.values()
    )


def advice_on(problems: Mapping[str, Mapping[str, Any]]) -> str:
    """What to do about each layer; layers of which the same is to be said are named together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for module, problem in problems.items():
        parts = problem["advice"].partition(f" of {module} ")
        alike.setdefault((parts[0], parts[2]), []).append(module)
    said = []
    for (before, after), modules in alike.items():
        if not after:  # an advice that names no layer in this way
            said.append(before)
            continue
        rest = after.replace("start it at", "start them at") if len(modules) > 1 else after
        said.append(f"{before} of {' and of '.join(modules)} {rest}")
    return "; ".join(said)


def group_in_words(run: RecordedRun, site: SiteAttribution) -> str:
    """The parameter group that trains a site, in words."""
    optimizer, _, group = (site.lives.recorded.param_group or "0/0").partition("/")
    several = len(run.facts.get("optimizers", ())) > 1
    return f"group {group} of optimizer {optimizer}" if several else f"group {group}"


def _target(critical: CriticalRates | None, highest: float) -> float:
    """The learning rate to try: of one digit, at most half of what killed."""
    if critical is None:
        return one_digit(FALLBACK_SCALE * highest)
    return one_digit(min(0.5 * highest, max(SMALLEST_SCALE * highest, critical.quarter)))


def one_digit(value: float) -> float:
    """Rounded down to one significant digit."""
    if not math.isfinite(value) or value <= 0:
        return value
    scale = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / scale + 1e-9) * scale


def replay_command(scale: float | None = None, init: str | None = None) -> str:
    options = "" if scale is None else f" --lr-scale {one_digit(scale):.1g}"
    return f"reludiag replay TRAIN{options}" + ("" if init is None else f" --init {init}")

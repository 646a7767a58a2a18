"""Initialization: units were dead before any training that would live with other weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from reludiag.causes.cause import Change, Evidence, rounded
from reludiag.causes.chance import (
    FEW,
    FEW_UNEXPLAINED,
    born_by_chance,
    chance_evidence,
    more_born,
    several_born,
    wrong_from_birth,
)
from reludiag.causes.inherited import edited_layers, has_drawn_biases
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.site_lives import Mask
from reludiag.causes.width import TooNarrow, too_narrow
from reludiag.causes.wording import replay_command
from reludiag.initialization.chance_deaths import NARROW

Problem = Mapping[str, Any]
"""The fields of an `InitProblem`, as JSON holds them."""


def birth_problem(site: SiteAttribution) -> Problem | None:
    """The problem of its layer's initialization that kills units at step 0."""
    problems = (site.lives.layer or {}).get("problems", ())
    return next((problem for problem in problems if problem["kills_at_birth"]), None)


def has_bad_initialization(site: SiteAttribution) -> bool:
    """Whether the problem of its layer shows in more units born dead than by chance, or cannot be
    separated from the effect of a dead earlier site.
    """
    if birth_problem(site) is None or not several_born(site):
        return False
    above_dead = site.above is not None and site.above.dead_since == 0
    return above_dead or bool((site.births == KIND.name).any())


def narrow_layers(run: RunLives) -> TooNarrow | None:
    """The widths, if they alone explain why units were born dead: no layer has another problem."""
    return None if wrong_from_birth(run) or run.once(edited_layers) else too_narrow(run)


def _is_narrow(site: SiteAttribution) -> bool:
    return site.lives.recorded.site.norm is None and site.run.once(narrow_layers) is not None


def _births(site: SiteAttribution) -> bool:
    suspect = birth_problem(site) is not None
    return (several_born(site) and more_born(site.lives, suspect)) or _is_narrow(site)


def _deaths(site: SiteAttribution) -> Mask | bool:
    """A cause of births also gets later deaths at sites where it explains most dead units; too
    narrow layers in the whole network, where few units are left to carry the signal.
    """
    lives = site.lives
    if _is_narrow(site):
        born = sum(int((each.born & each.dead).sum()) for each in site.run.sites)
        if 2 * born >= sum(int(each.dead.sum()) for each in site.run.sites):
            return ~lives.unexamined
    again = int((lives.born & lives.dead).sum())
    if not (site.births == KIND.name).any() or 2 * again < int(lives.dead.sum()):
        return False
    return ~lives.unexamined


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    site = only or attribution.foremost(KIND.name)
    if _is_narrow(site):
        return _of_narrow(attribution, only)
    lives = site.lives
    layer = lives.layer or {}
    others = [each for each in attribution.sites if each is not site] if only is None else []
    wrong = [site] if birth_problem(site) else []
    wrong += [each for each in others if has_bad_initialization(each)]
    wrong.sort(key=lambda each: each.lives.order)
    # By layer: a layer that feeds several sites is named once.
    problems = {(each.lives.layer or {})["module"]: birth_problem(each) or {} for each in wrong}
    evidence = chance_evidence(lives)
    evidence += [
        Evidence(problem["kind"], rounded(problem["value"]), problem["sentence"])
        for problem in problems.values()
    ]
    if layer:
        evidence.append(
            Evidence(
                f"weights of '{layer['module']}'",
                layer["scheme"] if layer["scheme"] != "unknown" else layer["distribution"],
                "the initialization scheme with the highest likelihood",
            )
        )
    if problems:
        counted = wrong if birth_problem(site) else [site, *wrong]
        born = sum(int(each.lives.born.sum()) for each in counted)
        units = sum(each.lives.units for each in counted)
        names = " and ".join(f"'{each.lives.name}'" for each in counted)
        sentence = f"{born} of {units} units of {names} were dead before any training: "
        sentence += f"{_problems_in_words(problems)}."
        changes = problem_changes(attribution.run, problems)
    else:
        sentence = (
            f"{int(lives.born.sum())} of {lives.units} units of '{lives.name}' were dead before "
            f"any training; weights of Kaiming and zero biases leave {born_by_chance(lives):.1%} "
            "on the same samples."
        )
        producers = lives.recorded.site.producers or (lives.name,)
        its = "their biases" if len(producers) > 1 else "its bias"
        start = f"start {' and '.join(producers)} with kaiming_normal and {its} at 0"
        changes = (Change("init", start, tuple(producers), after="kaiming_normal"),)
    return Account(
        # At step 0 no learning rate has acted yet, so this run can prove births: unless other
        # layers came from elsewhere, and these may have, too; or these may be trained a little.
        identifiable=site.tally[KIND.name] <= 2 * int(lives.never_alive.sum())
        and not attribution.run.once(edited_layers)
        and not attribution.run.once(has_drawn_biases),
        evidence=tuple(evidence),
        sentence=sentence,
        advice="",
        confirm=replay_command(init="kaiming"),
        changes=changes,
    )


def _of_narrow(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    narrow = attribution.run.once(narrow_layers)
    assert narrow is not None
    sites = [only] if only else attribution.sites
    mine = sum(site.tally[KIND.name] for site in sites)
    born = sum(int((site.kinds == KIND.name)[site.lives.never_alive].sum()) for site in sites)
    chance = f"{100 * narrow.chance:.2g} %"
    return Account(
        identifiable=narrow.is_proved and mine <= 2 * born,
        evidence=(
            Evidence(
                "widths",
                narrow.narrowest,
                f"units of the narrowest of {narrow.layers} layers",
            ),
            Evidence(
                "born dead in wide layers",
                rounded(narrow.born_if_wide),
                "share of all units of as many layers, on inputs as similar, by formula; as built: "
                f"{narrow.born:.2f}",
            ),
            Evidence(
                "a dead layer by chance",
                rounded(narrow.chance),
                "the largest probability that a layer of these widths is completely dead at step 0",
            ),
        ),
        sentence=f"{narrow.born:.0%} of the units were dead before any training, because the "
        f"layers are too narrow for their number: {narrow.layers}, the narrowest of "
        f"{narrow.narrowest} units. In wide ones it would be {narrow.born_if_wide:.0%}. Samples "
        f"soon point the same way there, and with a probability of up to {chance} a whole layer is "
        "dead.",
        advice="",
        confirm="reludiag init MODEL --data DATA",
        changes=(
            Change(
                "width",
                f"make each layer at least {narrow.width} units wide, or put BatchNorm before its "
                "rectifier",
                before=float(narrow.narrowest),
                after=float(narrow.width),
            ),
        ),
    )


def _problems_in_words(problems: Mapping[str, Problem]) -> str:
    """The problem of each layer; in full only for the first layer of each kind of problem."""
    by_kind: dict[str, list[str]] = {}
    for module, problem in problems.items():
        by_kind.setdefault(problem["kind"], []).append(module)
    return "; ".join(
        problems[first]["sentence"]
        + (f"; the same is wrong with {' and '.join(others)}" if others else "")
        for first, *others in by_kind.values()
    )


_SETTINGS: Mapping[str, tuple[str, float | str]] = {
    "negative_bias": ("init.bias", 0.0),
    "bias_outweighs": ("init.bias", 0.0),
    "weight_mean": ("init.weight_mean", 0.0),
    "norm": ("init", "norm"),
    "mask": ("init.mask", 1.0),
}
"""Kind of problem -> the setting that is wrong and its right value; of others, `init`."""


def problem_changes(run: RunLives, problems: Mapping[str, Problem]) -> tuple[Change, ...]:
    """The change for each layer; layers with the same one are named together."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for module, problem in problems.items():
        start, _, rest = problem["advice"].partition(f" of {module} ")
        alike.setdefault((problem["kind"], start, rest), []).append(module)
    changes = []
    for (kind, start, rest), modules in alike.items():
        setting, after = _SETTINGS.get(kind, ("init", "kaiming_normal"))
        sentence = start  # an advice without a layer
        if rest:
            end = rest.replace("start it at", "start them at") if len(modules) > 1 else rest
            sentence = f"{start} of {' and of '.join(modules)} {end}"
        if kind == "bias_outweighs":  # the signal has shrunk in the layers before it
            sentence, _, _ = sentence.partition(", and the layers before")
        where = tuple(_norm_of(run, each) if kind == "norm" else each for each in modules)
        changes.append(Change(setting, sentence, where, _start(run, setting, modules), after))
        if kind == "bias_outweighs" and (before := _layers_before(run, modules[0])):
            start = f"start {' and '.join(before)} with kaiming_normal and bias at 0"
            changes.append(Change("init", start, before, after="kaiming_normal"))
    return tuple(changes)


def _norm_of(run: RunLives, module: str) -> str:
    """The normalization behind a layer."""
    sites = [site.recorded.site for site in run.sites if module in site.recorded.site.producers]
    return next((site.norm for site in sites if site.norm), module)


def _start(run: RunLives, setting: str, modules: Sequence[str]) -> float | None:
    """The value at which these layers start; None if it is not the same, or not one value."""
    name = {"init.bias": "bias_mean", "init.weight_mean": "mean"}.get(setting, "")
    layers = [start.layer for start in run.recorded.observations.initial_layers]
    values = {layer.get(name) for layer in layers if layer["module"] in modules}
    return values.pop() if len(values) == 1 else None


def _layers_before(run: RunLives, module: str) -> tuple[str, ...]:
    """The layers with weights that come before this one in the model."""
    names = [start.module for start in run.recorded.observations.initial_layers]
    return tuple(names[: names.index(module)]) if module in names else ()


KIND = CauseKind(
    name="initialization",
    title="the initialization",
    clue=(
        "units are dead at step 0 that would not be with other weights; the layer whose bias, mean "
        "or scale is wrong is named"
    ),
    rule=(
        "it is dead since step 0, and more units of its site were born dead than in the baseline: "
        f"by {100 * FEW:g} % of its units and three standard errors if something is wrong with the "
        f"initial weights of its layer; by {100 * FEW_UNEXPLAINED:g} % and five standard errors if "
        "nothing is known that would explain it; or the layers are so narrow that one of them is "
        f"completely dead with a probability above {100 * NARROW:g} %, and "
        f"{100 * FEW_UNEXPLAINED:g} % more of all units were born dead than in wide layers"
    ),
    births=_births,
    deaths=_deaths,
    account=_account,
    advice_order=2,
)

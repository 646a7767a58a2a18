"""Inherited: units were dead when the run began, in weights that were not drawn for it.

They came with a checkpoint, with pruning or another edit, or with the earlier part of a run that
goes on. What killed them acted before, so neither this run's learning rate nor a new draw of its
layers is the answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reludiag.causes.cause import Evidence
from reludiag.causes.chance import more_born, several_born
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution

NAMED = 3
"""Most sites that the account names."""


def edited_layers(run: RunLives) -> dict[str, dict[str, Any]]:
    """The layers whose weights at step 0 were not a fresh draw, by their path."""
    layers = [dict(start.layer) for start in run.recorded.observations.initial_layers]
    # Older recordings do not say it.
    return {layer["module"]: layer for layer in layers if not layer.get("is_drawn", True)}


def _earlier_steps(run: RunLives) -> int:
    """Number of steps that the optimizer had taken before the run; 1 if only known to be any."""
    return int(run.recorded.facts.get("earlier_steps", 0))


def has_drawn_biases(run: RunLives) -> bool:
    """Whether the biases of any layer differ, and not as PyTorch draws them: a user may draw them
    so, and a training that is too short to show in the weights makes them so.
    """
    return any(layer["bias"] == "drawn" for layer in _layers(run))


def _layers(run: RunLives) -> list[dict[str, Any]]:
    return [dict(start.layer) for start in run.recorded.observations.initial_layers]


def _fits_no_scheme(layer: Mapping[str, Any]) -> bool:
    problems = {problem["kind"] for problem in layer["problems"]}
    return layer["scheme"] == "unknown" or "weight_mean" in problems


def _likely_trained(run: RunLives) -> set[str]:
    """The layers whose weights fit no scheme, where those of another are not a fresh draw, or one
    of them has biases that no default gives. Nothing proves it.
    """
    layers = [layer for layer in _layers(run) if _fits_no_scheme(layer)]
    if not run.once(edited_layers) and all(layer["bias"] != "drawn" for layer in layers):
        return set()
    # A training makes the biases of a layer differ: constant ones are as they were drawn.
    return {each["module"] for each in layers if each["bias"] not in ("zero", "constant")}


def _came_with_weights(site: SiteAttribution) -> bool:
    """Whether its layer surely is not a fresh draw, or the run goes on with an earlier one."""
    if _earlier_steps(site.run):
        return True
    return not site.run.once(edited_layers).keys().isdisjoint(site.lives.recorded.site.producers)


def _births(site: SiteAttribution) -> bool:
    if _came_with_weights(site):
        return True
    likely = site.run.once(_likely_trained)
    if likely.isdisjoint(site.lives.recorded.site.producers):
        return False
    return several_born(site) and more_born(site.lives, suspect=True)


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    run = attribution.run
    sites = [site for site in ([only] if only else attribution.sites) if site.tally[KIND.name]]
    dead = sum(site.tally[KIND.name] for site in sites)
    units = sum(site.lives.units for site in sites)
    names = [f"'{site.lives.name}'" for site in sites]
    where = " and ".join(names) if len(names) <= NAMED else f"{len(names)} sites"
    were = "was" if dead == 1 else "were"
    if _earlier_steps(run):
        came = "The optimizer had taken steps before, so this run goes on with an earlier one"
    else:
        came = (
            "Their weights are not a fresh draw: they came with a checkpoint, or were pruned or "
            "edited"
        )
    proved = sum(site.tally[KIND.name] for site in sites if _came_with_weights(site))
    if 2 * proved <= dead:
        return Account(
            identifiable=False,
            evidence=tuple(_evidence(run, sites)),
            sentence=f"{dead} of {units} units of {where} {were} dead when this run began, in "
            "weights that fit no scheme, and with biases that no default gives: most likely they "
            "were trained before, or else drawn so. This run alone cannot tell.",
            advice="if they were trained, look for the cause in the run that made these weights; "
            "if they were drawn, draw them by kaiming_normal, with the bias at 0",
            confirm="reludiag init MODEL --data DATA",
        )
    return Account(
        identifiable=True,
        evidence=tuple(_evidence(run, sites)),
        sentence=f"{dead} of {units} units of {where} {were} dead when this run began. {came}. "
        "Nothing in this run killed them.",
        advice="look for their cause in the run that made these weights; pruned units are meant to "
        "be dead. A new draw of the layers would lose what they have learned",
        confirm="",
    )


def _evidence(run: RunLives, sites: Sequence[SiteAttribution]) -> Iterator[Evidence]:
    producers = {producer for site in sites for producer in site.lives.recorded.site.producers}
    edited = [layer for path, layer in run.once(edited_layers).items() if path in producers]
    earlier, zero = _earlier_steps(run), sum(int(layer["zero_units"]) for layer in edited)
    if earlier:
        yield Evidence(
            "earlier steps",
            earlier if earlier > 1 else "1 or more",
            "that the optimizer had taken before this run began, by its state",
        )
    if edited:
        yield Evidence(
            "weights that were not drawn",
            ", ".join(f"'{layer['module']}'" for layer in edited),
            "layers whose rows or columns differ by more than chance at step 0",
        )
    if zero:
        yield Evidence(
            "units without weights",
            zero,
            "units of these layers with only weights of 0, as after pruning",
        )


KIND = CauseKind(
    name="inherited",
    title="the weights it began with",
    badge="inherited",
    clue=(
        "units are dead at step 0 in weights that no initializer draws, or the optimizer had taken "
        "steps before"
    ),
    rule=(
        "it is dead since step 0, and the weights of its layer are not a fresh draw, since their "
        "rows or columns differ by more than chance; or the optimizer had taken steps before; or, "
        "as the likeliest cause, the weights fit no scheme or have a mean, and those of another "
        "layer are not a fresh draw, or biases of such a layer differ and are not PyTorch's"
    ),
    births=_births,
    account=_account,
)

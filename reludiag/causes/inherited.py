"""Inherited: units were dead when the run began, in weights that were not drawn for it.

They came with a checkpoint, with pruning or another edit, or with the earlier part of a run that
goes on. What killed them acted before, so neither this run's learning rate nor a new draw of its
layers is the answer.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from reludiag.causes.cause import Evidence
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


def _births(site: SiteAttribution) -> bool:
    if _earlier_steps(site.run):
        return True
    return not site.run.once(edited_layers).keys().isdisjoint(site.lives.recorded.site.producers)


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
        "rows or columns differ by more than chance; or the optimizer had taken steps before"
    ),
    births=_births,
    account=_account,
)

"""Untrained: units of a model that no optimizer of the run trains.

A target network, a teacher, an average of weights: what its weights are was decided elsewhere, so
neither a learning rate nor a new draw of its layers is the answer. Its units also fall silent when
the inputs change.
"""

import re

from reludiag.causes.cause import Evidence
from reludiag.causes.drift import drift_evidence
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.site_lives import SiteLives
from reludiag.recording.named_models import RecordedModel

NAMED = 3
"""Most sites that the account names."""


def _claims(site: SiteAttribution) -> bool:
    return not site.run.is_trained(site.lives)


def _source(run: RunLives, lives: SiteLives) -> SiteLives | None:
    """The site of the model that it copies in the same place, if any and if it has dead units."""
    model = run.model_of(lives)
    if model is None or not _is_copy(model):
        return None
    place, copied = _place(lives, model), run.models[model.copies or ""]
    for other in run.sites:
        if run.model_of(other) is copied and _place(other, copied) == place:
            return other if other.units == lives.units and other.dead.any() else None
    return None


def _is_copy(model: RecordedModel) -> bool:
    """Whether its weights changed, as far as is known, and so were copied from a watched model."""
    return not model.trained and model.copies is not None and model.changed is not False


def _root(site: SiteAttribution) -> SiteLives | None:
    return _source(site.run, site.lives)


def _place(lives: SiteLives, model: RecordedModel) -> str:
    """The key of a site within its model; wrappers keep that as their `module`."""
    start = rf"(^|\|){re.escape(model.name)}(\.module)?(?=[.:|]|$)"
    return re.sub(start, r"\1", lives.recorded.site.key)


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    run = attribution.run
    sites = [site for site in ([only] if only else attribution.sites) if site.tally[KIND.name]]
    dead = sum(site.tally[KIND.name] for site in sites)
    units = sum(site.lives.units for site in sites)
    names = [f"'{site.lives.name}'" for site in sites]
    where = " and ".join(names) if len(names) <= NAMED else f"{len(names)} sites"
    models = {model.name: model for site in sites if (model := run.model_of(site.lives))}
    later = any(bool((site.lives.dead & ~site.lives.never_alive).any()) for site in sites)
    origin = " ".join(_of_model(model, later) for model in models.values())
    sources = [f"'{model.copies}'" for model in models.values() if _is_copy(model)]
    advice = "look for their cause where its weights come from" + ", and at the inputs" * later
    if sources:
        advice = f"look at the units of {' and '.join(dict.fromkeys(sources))}"
    return Account(
        # Of a death, weights that were copied and other inputs may both be the reason.
        identifiable=not (later and any(model.changed is not False for model in models.values())),
        evidence=(
            *_shared_deaths(run, sites),
            *drift_evidence([site.lives for site in sites]),
        ),
        sentence=f"{dead} of {units} units of {where} {'is' if dead == 1 else 'are'} dead. "
        f"{origin}",
        advice=advice,
        confirm="",
    )


def _of_model(model: RecordedModel, later: bool) -> str:
    """Where its weights come from, as far as that is known."""
    if _is_copy(model):
        return (
            f"No optimizer trains '{model.name}': its weights come from elsewhere, by their names "
            f"and shapes from '{model.copies}'."
        )
    if model.changed is False and later:
        return (
            f"No optimizer trains '{model.name}', and its weights did not change in this run: "
            "units that fell silent in it got other inputs."
        )
    return f"No optimizer trains '{model.name}': its weights come from elsewhere."


def _shared_deaths(run: RunLives, sites: list[SiteAttribution]) -> list[Evidence]:
    """How many of the units are dead in the model that is copied, too."""
    pairs = [(site.lives, source) for site in sites if (source := _source(run, site.lives))]
    if not pairs:
        return []
    both = sum(int((lives.dead & source.dead).sum()) for lives, source in pairs)
    names = " and ".join(f"'{source.name}'" for _, source in pairs[:NAMED])
    return [Evidence("dead in both", both, f"units that are dead in {names}, too")]


KIND = CauseKind(
    name="untrained",
    title="weights from elsewhere",
    badge="not trained",
    clue="no optimizer trains its model, one of several that the run watched",
    rule="it is of a named model that no optimizer trains",
    births=_claims,
    deaths=_claims,
    account=_account,
    root=_root,
    leads=False,
)

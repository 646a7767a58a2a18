"""The named models of a run, as its recording has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reludiag.sites.site import Site


@dataclass(frozen=True)
class RecordedModel:
    """One of several models that a Monitor watched."""

    name: str
    trained: bool
    """Whether an optimizer trained it."""
    copies: str | None
    """If not: a watched model whose parameters have the same names and shapes, if there is one."""
    changed: bool | None
    """Whether its weights changed in the run; None while that is not known."""
    samples: int
    """Number of samples in its passes since the snapshot before the last one; 0 with a probe."""


def recorded_models(facts: Mapping[str, Any]) -> dict[str, RecordedModel]:
    """By name; empty for a run of one model without a name."""
    samples = facts.get("model_samples") or {}
    return {
        name: RecordedModel(
            name,
            bool(model.get("trained", True)),
            model.get("copies"),
            model.get("changed"),
            int(samples.get(name, 0)),
        )
        for name, model in (facts.get("models") or {}).items()
    }


def model_name(site: Site) -> str:
    """Name of the model that a site belongs to, where models have names."""
    return site.module.partition(".")[0]

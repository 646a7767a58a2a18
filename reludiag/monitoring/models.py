"""The models that a Monitor watches, one or several with names."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from reludiag.capture.named_models import (
    NamedModels,
    copied_from,
    is_left_alone,
    runs_fused,
    trained_among,
)
from reludiag.errors import UsageError
from reludiag.measure.frozen_pass import eager_model
from reludiag.measure.unjudged import Unjudged, unjudged
from reludiag.sites.functional import may_rectify

OF_MODEL = frozenset({"model_not_called", "model_only_evaluated", "model_fused"})
"""Reasons why nothing was counted of a named model."""


def check_models(model: Any) -> None:
    """Raises UsageError for what is neither a model, nor a mapping of models by name."""
    models = model if isinstance(model, Mapping) else {"": model}
    if not models:
        raise UsageError("Monitor({}, ...) was given; expected one model or more by name")
    for each in models.values():
        if not isinstance(each, nn.Module):
            raise UsageError(
                f"Monitor({type(each).__name__}, ...) was given; expected the model first, or "
                "several by name, then the optimizer"
            )


def watched_and_called(
    model: Any, parameters: Collection[nn.Parameter] | None
) -> tuple[nn.Module, nn.Module]:
    """The model that is watched, and what the training calls: the same, or its compiled form.

    Of a mapping of models both are `NamedModels`; `parameters` are what the optimizers hold, None
    without any. Raises UsageError for a model that has two names.
    """
    if not isinstance(model, Mapping):
        return eager_model(model), model
    eager = {name: eager_model(each) for name, each in model.items()}
    return NamedModels(eager, trained_among(eager, parameters)), NamedModels(model)


def model_facts(model: nn.Module) -> dict[str, Any]:
    """What a recording stores about named models, as JSON; nothing for a single model."""
    if not isinstance(model, NamedModels):
        return {}
    copies = copied_from(model)
    return {
        "models": {
            name: {
                "class": type(each).__name__,
                "trained": name in model.trained,
                "copies": copies.get(name),
            }
            for name, each in model.models.items()
        }
    }


def trained_by_name(model: nn.Module) -> dict[str, bool]:
    """Name of a model -> whether an optimizer trains it; empty for one model without a name."""
    if not isinstance(model, NamedModels):
        return {}
    return {name: name in model.trained for name in model.models}


def untrained(model: nn.Module) -> dict[str, nn.Module]:
    """The named models that no optimizer trains."""
    if not isinstance(model, NamedModels):
        return {}
    return {name: each for name, each in model.models.items() if name not in model.trained}


def samples_by_model(model: nn.Module, samples: Mapping[str, int]) -> dict[str, int]:
    """Name of a model -> the most of these numbers, by path of a module; empty for one model."""
    if not isinstance(model, NamedModels):
        return {}
    owners, modules = model.owned(), dict(model.named_modules())
    most = dict.fromkeys(model.models, 0)
    for path, count in samples.items():
        name = owners[modules[path]]
        most[name] = max(most[name], count)
    return most


def model_notes(model: nn.Module) -> list[str]:
    """How to read the numbers of models that no optimizer trains."""
    names = ", ".join(f"'{name}'" for name in untrained(model))
    if not names:
        return []
    return [
        f"No optimizer trains {names}: forward passes in evaluation mode and without gradients "
        "count there, too."
    ]


def unwatched_models(
    model: nn.Module,
    counted: Collection[str],
    called: Collection[nn.Module],
    evaluated: Collection[nn.Module],
    missed: Sequence[Unjudged],
) -> list[Unjudged]:
    """The named models of which nothing was counted, and why.

    `counted` are paths of modules at which calls were counted, `called` the modules whose passes
    were watched, `evaluated` those whose passes were not because they were evaluations. A model of
    which calls could not be read is among `missed` already.
    """
    if not isinstance(model, NamedModels):
        return []
    owners = model.owned()
    modules = dict(model.named_modules())
    seen = {owners[modules[path]] for path in counted} | {owners[module] for module in called}
    frozen = {owners[module] for module in evaluated}
    unread = [place.where for place in missed if place.reason != "never_called"]
    places = []
    for name, each in model.models.items():
        if name in seen or not may_rectify(each):
            continue
        if any(where.startswith((f"{name}.", f"{name}:")) or where == name for where in unread):
            continue
        if name not in frozen and not is_left_alone(model, each):
            places.append(unjudged(name, "model_not_called"))
        elif name not in model.trained and runs_fused(each):
            places.append(unjudged(name, "model_fused"))
        else:
            places.append(unjudged(name, "model_only_evaluated"))
    return places

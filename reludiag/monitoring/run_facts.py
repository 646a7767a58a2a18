"""Facts about a run that are known at its start and stored in its recording."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from reludiag.capture.named_models import NamedModels
from reludiag.errors import UsageError
from reludiag.monitoring.models import model_facts
from reludiag.process import this_process


def checked_facts(facts: Any) -> dict[str, Any]:
    """The user's facts; raises UsageError if a recording cannot hold them."""
    if facts is not None and not isinstance(facts, Mapping):
        raise UsageError(
            f"facts={type(facts).__name__} was given; expected a mapping, such as {{'data': 'v2'}}"
        )
    for key, value in (facts or {}).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"facts[{key!r}] is of type {type(value).__name__}, which JSON cannot hold "
                f"({error}); expected texts, numbers, lists and dicts of them, such as str(...)"
            ) from None
        if not isinstance(key, str):
            raise UsageError(f"facts has the key {key!r}; expected a text, such as {str(key)!r}")
    return dict(facts or {})


def run_facts(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Model, optimizers, versions and process of the run, as JSON."""
    return {
        "reludiag": version("reludiag"),
        "torch": torch.__version__,
        "process": asdict(this_process()),
        "model": class_name(model),
        "parameter_count": parameter_count(model),
        **model_facts(model),
        "optimizers": [type(optimizer).__name__ for optimizer in optimizers],
        "other_parameters": _others(model, optimizers),
        "earlier_steps": max((_steps_taken(optimizer) for optimizer in optimizers), default=0),
    }


def parameter_count(model: nn.Module) -> int:
    """Numbers in all parameters that have a shape."""
    lazy = nn.parameter.UninitializedParameter
    return sum(p.numel() for p in model.parameters() if not isinstance(p, lazy))


def _others(model: nn.Module, optimizers: Sequence[Optimizer]) -> int:
    """Number of tensors that the optimizers train and that are not of the model."""
    own = {id(parameter) for parameter in model.parameters()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return sum(id(parameter) not in own for group in groups for parameter in group["params"])


def class_name(model: nn.Module) -> str:
    """Class of the model; of several each with its name."""
    if not isinstance(model, NamedModels):
        return type(model).__name__
    return ", ".join(f"{name}: {type(each).__name__}" for name, each in model.models.items())


def _steps_taken(optimizer: Optimizer) -> int:
    """By its state; 1 if that holds no number of steps."""
    states = [state for state in optimizer.state.values() if state]
    counts = [int(state["step"]) for state in states if "step" in state]
    return max(counts, default=int(bool(states)))


def untrained_weights(
    model: nn.Module, optimizers: Sequence[Optimizer], param_groups: Mapping[str, str]
) -> list[str]:
    """The note on weights that no optimizer trains."""
    # The root module has no path: its parameters are named.
    owners = {name.rpartition(".")[0] or name for name, _ in model.named_parameters()}
    if isinstance(model, NamedModels):  # that no optimizer trains some of these is known
        known = tuple(f"{name}." for name in model.models.keys() - model.trained)
        owners = {owner for owner in owners if not f"{owner}.".startswith(known)}
    left_out = sorted(owners - param_groups.keys())
    if not optimizers or not left_out:
        return []
    names = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
    return [
        f"The optimizer does not train {names}, so their learning rate is unknown. "
        "Monitor(model, [first, second]) takes several optimizers."
    ]

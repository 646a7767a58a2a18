"""Settings: what a Monitor is given, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from reludiag.errors import UsageError
from reludiag.evidence.budget import DEFAULT_SHARE
from reludiag.monitoring.clock import innermost


def checked_optimizers(optimizer: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """All of them, each without what is wrapped around it."""
    if optimizer is None:
        return []
    each = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    optimizers = [innermost(one) for one in each]
    for one in optimizers:
        if not isinstance(one, Optimizer):
            given = one.__name__ if isinstance(one, type) else type(one).__name__
            raise UsageError(
                f"optimizer={given} was given; expected a torch.optim.Optimizer such as "
                "Adam(model.parameters()), or a list of them, or None"
            )
    return optimizers


def parameters_in(optimizers: Sequence[Optimizer]) -> list[nn.Parameter]:
    """The parameters that they hold."""
    return [p for each in optimizers for group in each.param_groups for p in group["params"]]


def check_trains(optimizers: Sequence[Optimizer], param_groups: Mapping[str, str]) -> None:
    """Raises UsageError if none of the model's modules has a group in any of them."""
    if optimizers and not param_groups:
        raise UsageError(
            "the optimizer holds no parameter of this model. Was it made for another copy of "
            "the model?"
        )


def check_intervals(**intervals: Any) -> None:
    """Raises UsageError for what is no number of steps."""
    for name, value in intervals.items():
        if not isinstance(value, int) or value < 1:
            raise UsageError(
                f"{name}={value} was given; expected a whole number of steps, at least 1"
            )


def check_groups(groups: Any, probe: Any) -> None:
    """Raises UsageError for groups without a probe."""
    if groups is not None and probe is None:
        raise UsageError(
            "groups was given without a probe; expected both. Groups of training batches are "
            "not counted: each step would have to wait for the device. Pass a probe, or scan"
        )


def evidence_share(evidence: float | bool) -> float:
    """The share of the run's time for examining deaths."""
    if isinstance(evidence, bool):
        return DEFAULT_SHARE if evidence else 0.0
    if not isinstance(evidence, int | float) or not 0 <= evidence <= 1:
        raise UsageError(
            f"evidence={evidence!r} was given; expected a share of the run's time, from 0 to 1, "
            "such as 0.05, or False"
        )
    return float(evidence)

"""Changes of a training without a change of the user's code: of optimizers, and of the input."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reludiag.errors import UsageError

OWN_OPTIONS = {
    "lr": "lr_scale (--lr-scale)",
    "params": "another optimizer",
    "initial_lr": "lr_scale",
}
"""What is in the groups, but is changed in another way."""


def settings_of(optimizers: Iterable[Optimizer]) -> list[str]:
    """Names of what can be changed in the groups of these optimizers."""
    names = {name for optimizer in optimizers for group in optimizer.param_groups for name in group}
    return sorted(names - OWN_OPTIONS.keys())


def change_groups(optimizers: Sequence[Optimizer], settings: Mapping[str, Any]) -> set[str]:
    """Set these settings in all groups that have them; returns the names of those that some have.

    A group without weight decay beside one with it, as for biases, keeps none. Raises UsageError
    for a value of another type.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    changed = set()
    for name, value in settings.items():
        having = [group for group in groups if name in group]
        if name == "weight_decay" and any(group[name] for group in having):
            having = [group for group in having if group[name]]
        for group in having:
            group[name] = as_type_of(group[name], value, name)
            changed.add(name)
    return changed


def as_type_of(default: Any, value: Any, name: str) -> Any:
    """The value, a list as the tuple that the default is; raises UsageError if they are unlike."""
    if isinstance(default, tuple) and isinstance(value, list):
        value = tuple(value)
    numbers = int, float
    alike = default is None or isinstance(value, type(default))
    if isinstance(default, numbers) and not isinstance(default, bool):
        alike = isinstance(value, numbers) and not isinstance(value, bool)
    if isinstance(default, tuple):
        alike = isinstance(value, tuple) and len(value) == len(default)
    if not alike:
        raise UsageError(
            f"{name}={value!r} was given; expected a value like {default!r}, which it replaces"
        )
    return value


def check_known(name: str, optimizers: Sequence[Optimizer], asked: Collection[str]) -> None:
    """Raise UsageError if a setting is in no group, and train asks for no value of this name."""
    known = settings_of(optimizers)
    if name in known or name in asked:
        return
    values = f"; values that train asks for: {', '.join(sorted(asked))}" if asked else ""
    raise UsageError(
        f"{name} was to be changed (--set), but the optimizer has no such setting, and train "
        f"never called trial.value({name!r}, default). Settings of the optimizer: "
        f"{', '.join(known) or 'none'}{values}"
    )


def center_input(model: nn.Module, probe: Any) -> None:
    """Subtract the mean of each feature over the samples of the probe from the model's first
    input, from now on. Raises UsageError if the probe has no such tensor.
    """
    inputs = _first_tensor(probe)
    if inputs is None or inputs.ndim < 2 or len(inputs) < 2:
        raise UsageError(
            "the input was to be centred (--center-input), but its mean is not known. Pass the "
            "samples: trial.monitor(model, optimizer, probe=inputs), a tensor of floating point "
            "[sample, *features]"
        )
    mean = inputs.detach().mean(0, keepdim=True)

    def centre(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first, *rest = args
        if isinstance(first, Tensor) and first.shape[1:] == mean.shape[1:]:
            first = first - mean.to(first)
        return first, *rest

    model.register_forward_pre_hook(centre)


def _first_tensor(probe: Any) -> Tensor | None:
    """The inputs in a probe: the tensor, or the first in a tuple or list."""
    while isinstance(probe, tuple | list) and probe:
        probe = probe[0]
    if isinstance(probe, Tensor) and probe.is_floating_point():
        return probe
    if hasattr(probe, "__array__") and not isinstance(probe, Tensor):
        array = torch.as_tensor(probe)
        return array if array.is_floating_point() else None
    return None

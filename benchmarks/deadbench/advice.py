"""Follows an advice mechanically: from the changes that a `Cause` holds to changed settings.

`FOLLOWERS` says how each setting is changed. A change that it does not know, and an advice that is
no change of a setting, are not followed, and counted.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmarks.deadbench.loop import samples
from benchmarks.deadbench.tasks import standardized
from benchmarks.deadbench.training import Change, Group, Settings, as_drawn, no_edit
from reludiag.causes import cause


@dataclass(frozen=True)
class Followed:
    """What an advice changes."""

    change: Change | None
    """None if no part of it could be followed."""
    left: tuple[str, ...]
    """The parts that could not be followed."""


def follow(changes: Sequence[cause.Change], advice: str = "") -> Followed:
    """`advice` is the text, which is all there is where nothing is to be changed."""
    made, left = [], [] if changes or not advice else [advice]
    for change in changes:
        if change.setting in FOLLOWERS:
            made.append(partial(FOLLOWERS[change.setting], change))
        else:
            left.append(change.sentence)
    return Followed(partial(_all, made) if made else None, tuple(left))


def _all(changes: Sequence[Change], settings: Settings) -> Settings:
    for change in changes:
        settings = change(settings)
    return settings


# Changes


def scaled_rate(factor: float, settings: Settings) -> Settings:
    return settings.but(lr=settings.lr * factor)


def kaiming(model: nn.Module, names: Sequence[str] = ()) -> None:
    """Draw these layers, or all that have a weight matrix, by He's normal scheme with bias 0."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and (not names or name in names):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _rate(change: cause.Change, settings: Settings) -> Settings:
    known = isinstance(change.before, float) and isinstance(change.after, float)
    factor = change.after / change.before if known else 0.1  # type: ignore[operator]
    if change.steps is not None:
        return settings.but(schedule=partial(_in_steps, settings.schedule, change.steps, factor))
    return _with_groups(change, settings, lambda group: replace(group, rate=group.rate * factor))


def _with_groups(
    change: cause.Change, settings: Settings, changed: Callable[[Group], Group]
) -> Settings:
    """The groups that the change names, or all of them."""
    numbers = [int(group.partition("/")[2]) for group in change.where]
    groups = enumerate(settings.groups)
    return settings.but(
        groups=tuple(
            changed(group) if number in numbers or not numbers else group
            for number, group in groups
        )
    )


def _in_steps(
    schedule: Callable[[int], float], steps: tuple[int, int], factor: float, step: int
) -> float:
    inside = steps[0] <= step + 1 <= steps[1]  # reludiag counts from 1
    return schedule(step) * (factor if inside else 1.0)


def _decay(change: cause.Change, settings: Settings) -> Settings:
    if change.after == 0.0:
        return _with_groups(change, settings, lambda group: replace(group, decays=False))
    return settings.but(weight_decay=change.after)


def _value(name: str, change: cause.Change, settings: Settings) -> Settings:
    """Set the setting of this name to the value that the change gives."""
    return settings.but(**{name: change.after})


def _with_init(change: Callable[[nn.Module], None], settings: Settings) -> Settings:
    return settings.but(init=(*settings.init, change))


def _drawn(change: cause.Change, settings: Settings) -> Settings:
    if change.after != "norm":
        return _with_init(partial(kaiming, names=change.where), settings)

    def fresh(model: nn.Module) -> None:
        for name in change.where:
            norm = model.get_submodule(name)
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)

    return _with_init(fresh, settings)


def _bias(change: cause.Change, settings: Settings) -> Settings:
    def at(model: nn.Module) -> None:
        for name in change.where:
            nn.init.constant_(model.get_submodule(name).bias, float(change.after or 0))

    return _with_init(at, settings)


def _weight_mean(change: cause.Change, settings: Settings) -> Settings:
    def at(model: nn.Module) -> None:
        for name in change.where:
            weight = model.get_submodule(name).weight
            weight += float(change.after or 0) - weight.mean()

    return _with_init(at, settings)


def _centred(change: cause.Change, settings: Settings) -> Settings:
    change_of = standardized if change.after == "standardized" else centred
    return settings.but(inputs=(*settings.inputs, change_of))


def _new_statistics(change: cause.Change, settings: Settings) -> Settings:
    """As `update_bn` computes them, after the last step."""

    def edit(step: int, model: nn.Module) -> None:
        settings.edit(step, model)
        if step == settings.steps - 1:
            batches = samples(settings)[0].split(settings.batch)
            update_bn([each for each in batches if len(each) > 1], model)

    return settings.but(edit=edit)


def _norm_momentum(change: cause.Change, settings: Settings) -> Settings:
    def at(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = float(change.after or 0)

    return _with_init(at, settings)


def _no_mask(change: cause.Change, settings: Settings) -> Settings:
    def at(model: nn.Module) -> None:
        for name in change.where:
            for buffer in model.get_submodule(name).buffers():
                buffer.fill_(1)

    return _with_init(at, settings)


def _unedited(change: cause.Change, settings: Settings) -> Settings:
    return settings.but(edit=no_edit)


def _stepped(change: cause.Change, settings: Settings) -> Settings:
    return settings.but(skipped=lambda step: False)


def _scaled_targets(change: cause.Change, settings: Settings) -> Settings:
    """By the mean and deviation of all of them, as a user would."""

    def changed(y: Tensor) -> Tensor:
        y = settings.targets(y)
        return (y - y.mean()) / y.std()

    return settings.but(targets=changed)


def _same_data(change: cause.Change, settings: Settings) -> Settings:
    return settings.but(corrupt=as_drawn)


def _penalty(change: cause.Change, settings: Settings) -> Settings:
    if settings.penalty is None:
        return settings
    factor = float(change.after or 0) / float(change.before or 1)
    return settings.but(penalty=partial(_scaled, settings.penalty, factor))


def _scaled(
    penalty: Callable[[list[Tensor]], Tensor], factor: float, outputs: list[Tensor]
) -> Tensor:
    return factor * penalty(outputs)


def _bare_output(change: cause.Change, settings: Settings) -> Settings:
    def network() -> nn.Module:
        model = settings.network()
        for site in change.where:
            parent, _, child = re.sub(r"#\d+$", "", site).rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
        return model

    return settings.but(network=network)


FOLLOWERS: dict[str, Callable[[cause.Change, Settings], Settings]] = {
    "lr": _rate,
    "weight_decay": _decay,
    "momentum": partial(_value, "momentum"),
    "penalty": _penalty,
    "clip_grad_norm": partial(_value, "clip"),
    "init": _drawn,
    "init.bias": _bias,
    "init.weight_mean": _weight_mean,
    "init.mask": _no_mask,
    "batchnorm.statistics": _new_statistics,
    "batchnorm.momentum": _norm_momentum,
    "input": _centred,
    "rectifier": _bare_output,
    "edits": _unedited,
    "steps": _stepped,
    "targets": _scaled_targets,
    "data": _same_data,
}

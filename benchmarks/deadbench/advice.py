"""Follows an advice mechanically: from its words to a change of settings.

reludiag's advice is text. `FORMS` is the only place that knows its words; a sentence that none of
them matches is not followed, and counted. Where a `Cause` offers its advice as values, read them
here instead.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from benchmarks.deadbench.training import Change, Settings

REMARKS = (r"a warm-up alone may only delay the deaths",)
"""Parts of an advice that ask for nothing."""


@dataclass(frozen=True)
class Followed:
    """What an advice changes."""

    change: Change | None
    """None if no part of it could be followed."""
    left: tuple[str, ...]
    """The parts that could not be followed."""


def follow(advice: str) -> Followed:
    changes, left = [], []
    text = re.sub(r"fix '[^']*' first: ", "", advice)
    for part in re.split(r"; (?:then )?", text) if text else ():
        if any(re.fullmatch(remark, part) for remark in REMARKS):
            continue
        matches = ((re.match(form, part), made) for form, made in FORMS)
        found = next(((match, made) for match, made in matches if match), None)
        if found is None:
            left.append(part)
        else:
            match, made = found
            changes.append(partial(made, match))
    return Followed(partial(_all, changes) if changes else None, tuple(left))


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


def _rate(match: re.Match[str], settings: Settings) -> Settings:
    group = int(match["group"] or 0)
    factor = float(match["to"]) / float(match["from"]) if match["to"] else 0.1
    if match["first"]:
        return settings.but(schedule=partial(_in_steps, settings.schedule, match, factor))
    if not match["group"]:
        return scaled_rate(factor, settings)
    groups = [*settings.groups]
    old = groups[group]
    groups[group] = type(old)(old.names, old.rate * factor, old.decays)
    return settings.but(groups=tuple(groups))


def _in_steps(
    schedule: Callable[[int], float], match: re.Match[str], factor: float, step: int
) -> float:
    inside = int(match["first"]) <= step + 1 <= int(match["last"])  # reludiag counts from 1
    return schedule(step) * (factor if inside else 1.0)


def _with_init(change: Callable[[nn.Module], None], settings: Settings) -> Settings:
    return settings.but(init=(*settings.init, change))


def _layers(match: re.Match[str]) -> list[str]:
    return [name.strip("'") for name in re.split(r" and (?:of )?", match["layers"])]


def _zero_bias(match: re.Match[str], settings: Settings) -> Settings:
    def change(model: nn.Module) -> None:
        for name in _layers(match):
            nn.init.zeros_(model.get_submodule(name).bias)

    return _with_init(change, settings)


def _zero_bias_and_kaiming_before(match: re.Match[str], settings: Settings) -> Settings:
    def change(model: nn.Module) -> None:
        names = [name for name, module in model.named_modules() if hasattr(module, "weight")]
        kaiming(model, names[: names.index(_layers(match)[0])])

    return _with_init(change, _zero_bias(match, settings))


def _kaiming(match: re.Match[str], settings: Settings) -> Settings:
    return _with_init(partial(kaiming, names=_layers(match)), settings)


def _mean_zero(match: re.Match[str], settings: Settings) -> Settings:
    def change(model: nn.Module) -> None:
        for name in _layers(match):
            weight = model.get_submodule(name).weight
            weight -= weight.mean()

    return _with_init(change, settings)


def _fresh_norm(match: re.Match[str], settings: Settings) -> Settings:
    def change(model: nn.Module) -> None:
        for name in _layers(match):
            norm = model.get_submodule(name)
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)

    return _with_init(change, settings)


def _centred(match: re.Match[str], settings: Settings) -> Settings:
    return settings.but(inputs=(*settings.inputs, centred))


def _bare_output(match: re.Match[str], settings: Settings) -> Settings:
    def network() -> nn.Module:
        model = settings.network()
        name = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)][-1]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
        return model

    return settings.but(network=network)


_NAMES = r"(?P<layers>'?[\w.]+'?(?: and (?:of )?'?[\w.]+'?)*)"
_RATE = (
    r"lower the learning rate(?: of group (?P<group>\d+)(?: of optimizer \d+)?)?"
    r"(?: from (?P<from>[\d.e+-]+) to (?P<to>[\d.e+-]+))?"
    r"(?: in steps (?P<first>\d+)-(?P<last>\d+))?"
)
FORMS: tuple[tuple[str, Callable[[re.Match[str], Settings], Settings]], ...] = (
    (_RATE, _rate),
    (rf"the bias of {_NAMES} starts (?:at|as low as) [^:]+: start \w+ at 0", _zero_bias),
    (rf"start the bias of {_NAMES} at 0$", _zero_bias),
    (rf"start the bias of {_NAMES} at 0, and the layers before", _zero_bias_and_kaiming_before),
    (rf"start the weight of {_NAMES} at 1 and \w+ bias(?:es)? at 0", _fresh_norm),
    (rf"start {_NAMES} with kaiming_normal", _kaiming),
    (rf"draw the weights of {_NAMES} with mean 0", _mean_zero),
    (rf"draw the weights of {_NAMES} at random, as kaiming_normal does", _kaiming),
    (r"subtract the mean of each feature from the input", _centred),
    (r"return .+ without a rectifier", _bare_output),
)

"""Variation: what a replay changes in a training, each thing alone and all together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reludiag.causes.cause import Change

FALLBACK_SCALE = 0.1
"""Factor of the learning rate to try if no critical rate is known."""
REDRAWN = "kaiming"
"""The scheme to try where the initial weights are in doubt."""
IN_GROUPS = ("weight_decay", "momentum", "betas", "eps", "nesterov", "amsgrad", "alpha")
"""Settings of an advice that are in an optimizer's groups, so that a replay can change them."""


@dataclass(frozen=True)
class Variation:
    """What is changed; None, or empty, leaves a thing as it is."""

    lr_scale: float | None = None
    """The learning rate is multiplied by this."""
    init: str | None = None
    """The initialization scheme by which the weights are drawn."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the optimizer's groups, and values that train asks for: name -> value."""
    center_input: bool = False
    """Whether the mean of each feature is subtracted from the input."""
    equal_travel: bool = False
    """Whether the changed rate is also tried with as many more steps."""

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not (self.lr_scale or self.init or self.settings or self.center_input)


def variation_of(changes: Sequence[Change]) -> Variation:
    """The variation that makes these changes, as far as a replay can make them."""
    scales, settings, init, center_input = list[float](), dict[str, Any](), None, False
    for change in changes:
        name, _, _ = change.setting.partition(".")
        if name == "lr":
            scales.append(scale_of(change))
        elif name == "init":
            init = REDRAWN
        elif change.setting == "input" and change.after == "centred":
            center_input = True
        elif change.setting in IN_GROUPS and change.after is not None:
            settings[change.setting] = change.after
    return Variation(min(scales, default=None), init, settings, center_input)


def scale_of(change: Change) -> float:
    """The factor by which a change lowers the learning rate, rounded down to one digit."""
    before, after = change.before, change.after
    if not isinstance(before, float | int) or not isinstance(after, float | int) or not before:
        return FALLBACK_SCALE
    return one_digit(after / before)


def one_digit(value: float) -> float:
    """Rounded down to one significant digit."""
    if not math.isfinite(value) or value <= 0:
        return value
    exponent = math.floor(math.log10(value))
    return float(f"{math.floor(value / 10.0**exponent + 1e-9)}e{exponent}")

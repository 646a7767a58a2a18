"""Wording: settings of a run and commands, as the accounts of several kinds of cause write them."""

import math
from collections.abc import Sequence

from reludiag.recording import RecordedRun

FALLBACK_SCALE = 0.1
"""Factor of the learning rate to try if no critical rate is known."""


def groups_in_words(run: RecordedRun, groups: Sequence[str]) -> str:
    """Parameter groups, "optimizer/group", in words."""
    pairs = [group.partition("/") for group in groups]
    if len(run.facts.get("optimizers", ())) > 1:
        return " and ".join(f"group {group} of optimizer {optim}" for optim, _, group in pairs)
    numbers = [group for _, _, group in pairs]
    if len(numbers) == 1:
        return f"group {numbers[0]}"
    return f"groups {', '.join(numbers[:-1])} and {numbers[-1]}"


def one_digit(value: float) -> float:
    """Rounded down to one significant digit."""
    if not math.isfinite(value) or value <= 0:
        return value
    scale = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / scale + 1e-9) * scale


def replay_command(scale: float | None = None, init: str | None = None) -> str:
    """The experiment with the learning rate times `scale`, or with other initial weights."""
    options = "" if scale is None else f" --lr-scale {one_digit(scale):.1g}"
    return f"reludiag replay TRAIN{options}" + ("" if init is None else f" --init {init}")

"""Wording: settings of a run and commands, as the accounts of several kinds of cause write them."""

import math

from reludiag.causes.site_lives import SiteLives
from reludiag.recording import RecordedRun

FALLBACK_SCALE = 0.1
"""Factor of the learning rate to try if no critical rate is known."""


def group_in_words(run: RecordedRun, site: SiteLives) -> str:
    """The parameter group that trains a site, in words."""
    optimizer, _, group = (site.recorded.param_group or "0/0").partition("/")
    several = len(run.facts.get("optimizers", ())) > 1
    return f"group {group} of optimizer {optimizer}" if several else f"group {group}"


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

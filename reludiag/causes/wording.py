"""Wording: settings of a run and commands, as the accounts of several kinds of cause write them."""

import json
from collections.abc import Sequence

from reludiag.causes.cause import Change
from reludiag.causes.variation import one_digit, variation_of
from reludiag.recording import RecordedRun


def groups_in_words(run: RecordedRun, groups: Sequence[str]) -> str:
    """Parameter groups, "optimizer/group", in words."""
    pairs = [group.partition("/") for group in groups]
    if len(run.facts.get("optimizers", ())) > 1:
        return " and ".join(f"group {group} of optimizer {optim}" for optim, _, group in pairs)
    numbers = [group for _, _, group in pairs]
    if len(numbers) == 1:
        return f"group {numbers[0]}"
    return f"groups {', '.join(numbers[:-1])} and {numbers[-1]}"


def replay_command(scale: float | None = None, init: str | None = None) -> str:
    """The experiment with the learning rate times `scale`, or with other initial weights."""
    options = "" if scale is None else f" --lr-scale {one_digit(scale):.1g}"
    return f"reludiag replay TRAIN{options}" + ("" if init is None else f" --init {init}")


def replay_of(changes: Sequence[Change]) -> str:
    """The experiment that makes these changes, each alone and all together; empty if a replay can
    make none of them.
    """
    options = []
    variation = variation_of(changes)
    if variation.lr_scale is not None:
        options.append(f"--lr-scale {variation.lr_scale:.1g}")
    if variation.init is not None:
        options.append(f"--init {variation.init}")
    options += [f"--set {name}={json.dumps(value)}" for name, value in variation.settings.items()]
    if variation.center_input:
        options.append("--center-input")
    return " ".join(["reludiag replay TRAIN", *options]) if options else ""

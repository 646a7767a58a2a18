"""Cause: what killed the units of a site or of a whole run, according to the evidence."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """One measured quantity, and what it means."""

    what: str
    value: float | int | str
    meaning: str


@dataclass(frozen=True)
class Change:
    """One change of the user's own settings, such as `Change("lr", "lower ...", ("0/1",), 0.1)`.

    - `lr`, `weight_decay`, `momentum`, ...: a value in parameter groups, "optimizer/group".
    - `penalty`: the weight of the parts of the loss that read activations or weights; relative, so
      that it was 1.
    - `clip_grad_norm`: the largest norm of all gradients together.
    - `init`: layers are drawn by a scheme (`kaiming_normal`) with the bias at 0; or `norm`: the
      weight of a normalization starts at 1 and its bias at 0.
    - `init.bias`, `init.weight_mean`: the value at which layers start.
    - `init.mask`: the mask that layers start with; `width`: the least number of units of a layer.
    - `input`: what reaches first layers; `centred` is without the mean of each feature,
      `standardized` also divided by its standard deviation.
    - `data`: what the data loader returns from a step on; as it was `as before`.
    - `batchnorm.statistics`: the running ones, to be `recomputed`; `batchnorm.momentum`.
    - `edits`: what else than the optimizer changes the weights of layers; `none` is nothing.
    - `steps`: those of the optimizer, to be `taken`, where none was or none changed a weight.
    - `targets`: what the loss compares the output with; `standardized` is without the mean, and
      divided by the standard deviation.
    - `rectifier`: the activation of sites; `none` is without one.

    A kind of cause may change other settings: readers skip those that they do not know.
    """

    setting: str
    sentence: str
    """What to do, without a capital and a full stop: a part of the advice."""
    where: tuple[str, ...] = ()
    """All groups, layers or sites that need it; empty if it is of the whole training."""
    before: float | str | None = None
    """As it was; None if unknown, or different in each place."""
    after: float | str | None = None
    """As it should be; None if no value is known."""
    steps: tuple[int, int] | None = None
    """First and last optimizer step that need it; None for all."""


def text_of(changes: Sequence[Change]) -> str:
    """These changes, in this order, as one advice."""
    text, subject = "", ""
    for change in changes:
        # Changes of one subject, such as init.bias and init.weight_mean, are made together.
        previous, (subject, *_) = subject, change.setting.split(".")
        text += ("; " if subject == previous else "; then ") if text else ""
        text += change.sentence
    return text


@dataclass(frozen=True)
class Cause:
    """Why units died: the explanation with the best evidence."""

    kind: str
    """Its name in the table of kinds: `learning_rate`, `initialization`, ...; `none` if not more
    units are dead than by chance; `undetermined` if the evidence names no cause.
    """
    site: str | None
    """None for the whole run."""
    share: float
    """Share of the units dead at the end that this explains; for a divergence, the share of all
    units that are not finite.
    """
    identifiable: bool
    """Whether this run alone can prove the cause.

    If not, the kind is the likeliest one, and `confirm` is the experiment that would decide.
    """
    evidence: tuple[Evidence, ...]
    sentence: str
    advice: str
    """What to do, in words; empty if there is nothing to do."""
    confirm: str
    """The command that would confirm it by experiment; TRAIN stands for the user's function.

    Empty if there is none.
    """
    changes: tuple[Change, ...] = ()
    """The same as `advice`, as values, in the order in which they must be done; empty if it asks
    for something else than a change of settings."""


def rounded(value: float) -> float:
    """To four significant digits, as evidence is given."""
    return float(f"{value:.4g}")

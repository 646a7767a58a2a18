"""Observations: the recorded evidence of why units of a run died.

A site is identified by its key (when read from a recording, by its name); steps are optimizer
steps. Unknown numbers are NaN, never a guess.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reludiag.measure.structure import InputScale


@dataclass(frozen=True)
class InitialLayer:
    """One layer before the first step."""

    module: str
    layer: Mapping[str, Any]
    """The fields of `initialization.layer_init.LayerInit`, as JSON holds them."""


@dataclass(frozen=True)
class InputStatistics:
    """The input of one layer before the first step."""

    module: str
    samples: int
    is_first: bool
    """Whether it is made from the model's input without another layer."""
    gamma: float
    """Norm of the mean over norm of the standard deviation, of the features; infinite if the input
    is constant, NaN if it is not a first layer.
    """
    cosine: float
    """Mean cosine of two samples; NaN if a sample is not one vector."""
    scale: InputScale | None = None
    """Of the first batch, if it is a first layer's and could be measured."""


@dataclass(frozen=True)
class Baseline:
    """Dead units of the same model and samples, with weights drawn again by a good scheme."""

    site: str
    """Key of the site."""
    born_dead: float
    """Share of its units, mean over the draws."""
    draws: int


@dataclass(frozen=True)
class Update:
    """How far one step moved the weights of one layer."""

    step: int
    module: str
    ratio: float
    """Norm of the change / norm of the weights before it."""


JUMP = 20.0
"""A step this many times as large as usual, at its rate, is a jump. Measured on trainings of eight
tasks and networks with SGD, momentum, Adam, AdamW and RMSprop, at rates from low to far too high:
of 129 without an outlier, 1 had such a step that came at once, moved the weights far, and followed
no rise of the rate; its units had died before. Of 70 in which one batch or loss went wrong 35 had
one, and all in which units died of it; it was then at least 50 times as large as usual.
"""
SUDDEN = 0.25
"""It comes at once if all steps shortly before are at most this share of it: a training that
becomes unstable grows from step to step."""
JUMP_SIZE = 0.02
"""Smaller steps, relative to the weights, kill few units, however small the others are."""


@dataclass(frozen=True)
class Jump:
    """The step of a window that is furthest above what is usual: see `evidence.jumps`."""

    step: int
    ratio: float
    """Its update, relative to the weights and to the learning rate, over the usual one."""
    before: float
    """The largest such ratio of the few steps before it."""
    size: float
    """Norm of the update over that of the weights, median over the matrices of the model."""

    @property
    def is_sudden(self) -> bool:
        """Whether it is an event of its own: large, and at once."""
        return self.ratio >= JUMP and self.before <= SUDDEN * self.ratio and self.size >= JUMP_SIZE


@dataclass(frozen=True)
class Edit:
    """The changes of weights in a window by something else than the optimizer."""

    step: int
    """After which the largest was made, before the next step."""
    times: int
    """Number of steps of the window after which there was one."""
    size: float
    """Of the largest: norm of the change over that of the weights of one parameter."""
    update: float
    """The usual update of that parameter, in the same measure."""
    modules: tuple[str, ...]
    """The modules whose weights changed, at any of these times."""


@dataclass(frozen=True)
class GradientNorm:
    """The norm of all gradients with which one step was taken, as an optimizer got them."""

    step: int
    norm: float


@dataclass(frozen=True)
class OutputGradient:
    """One output of the model in the training batch of one step, and the gradient of the loss with
    respect to it, over the entries that have one.
    """

    step: int
    output: int
    """Its place among the outputs of the forward pass."""
    count: int
    """Number of entries with a gradient."""
    mean: float
    std: float
    gradient_mean: float
    gradient_std: float
    covariance: float
    """Of the output and its gradient."""
    shared: float
    """Norm of the gradients summed over classes / norm of the gradients: 0 of a cross-entropy."""


@dataclass(frozen=True)
class Drift:
    """By how much the mean pre-activation of a dying unit changed, and through what.

    The change is exactly `weights + input + bias`: see `evidence.decomposition`.
    """

    before: float
    """Mean pre-activation on the probe at the beginning of the window."""
    after: float
    weights: float
    """The part from the change of the layer's weights."""
    input: float
    """The part from the change of its input, made by earlier layers."""
    bias: float


@dataclass(frozen=True)
class Death:
    """One unit that died in the window between two snapshots on the probe."""

    site: str
    """Key of the site."""
    unit: int
    step: int
    """The first snapshot at which it was dead."""
    previous: int
    """The snapshot before."""
    critical_fraction: float = math.nan
    """The largest fraction of the window's update after which it still fires on the probe."""
    drift: Drift | None = None
    """None if the layer cannot be decomposed, or the result disagrees with the measurement."""
    examined: bool = True
    """Whether its evidence was collected: not where that would have taken too much time."""


@dataclass(frozen=True)
class TrainingInput:
    """The input of the model in one training batch, over all its values."""

    step: int
    """The snapshot before which it was seen, by at most one window."""
    mean: float
    std: float


@dataclass(frozen=True)
class FiringOnBatch:
    """The units of one site at one snapshot on a probe, where BatchNorm uses the statistics of the
    batch, as in training, and not its running ones.
    """

    site: str
    """Key of the site."""
    step: int
    fires: np.ndarray[Any, np.dtype[np.bool_]]
    """`[unit]`: whether it fired in any sample."""


@dataclass(frozen=True)
class History:
    """What moved one unit from the beginning of the run until it died, from the measured steps.

    NaN where it could not be measured. Drifts are those of its mean pre-activation on the training
    batch; see `evidence.unit_histories`.
    """

    site: str
    """Key of the site."""
    unit: int
    step: int
    """The first snapshot at which it was dead."""
    fresh: float
    """The drift by the gradients of the steps themselves,"""
    carried: float
    """by the momentum of earlier ones,"""
    decay: float
    """and by weight decay, summed over all steps."""
    last_fresh: float
    """The same of the last measured step in which it had a gradient."""
    last_carried: float
    last_decay: float
    shrinkage: float
    """The rates at which weight decay shrank its weights, or the weight of its norm, summed over
    all steps."""
    penalty_shrinkage: float
    """The same by a penalty in the loss that reads the weights."""
    size: float
    """Norm of these weights / norm at the beginning."""
    largest_update: float
    """The largest norm of what gradients changed in its layer's weights in a step / norm of these
    at the beginning."""
    through_output: float
    """The gradient of its mean pre-activation through the model's output, summed over the measured
    steps: above 0 it pushes the unit down."""
    through_size: float
    """The same, with the size of each step's."""
    around_output: float
    """The same by parts of the loss that read the activation itself."""
    spread: float
    """Of the latter: standard deviation over samples / mean, at most."""


@dataclass(frozen=True)
class Observations:
    """All observations of a run, or those since the last snapshot."""

    initial_layers: tuple[InitialLayer, ...] = ()
    inputs: tuple[InputStatistics, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    updates: tuple[Update, ...] = ()
    deaths: tuple[Death, ...] = ()
    histories: tuple[History, ...] = ()
    jumps: tuple[Jump, ...] = ()
    """At most one of each window and optimizer."""
    edits: tuple[Edit, ...] = ()
    gradient_norms: tuple[GradientNorm, ...] = ()
    training_inputs: tuple[TrainingInput, ...] = ()
    output_gradients: tuple[OutputGradient, ...] = ()
    on_batch: tuple[FiringOnBatch, ...] = ()
    """Of a recording, this is a field of each `RecordedSite`."""

"""Observations: the recorded evidence of why units of a run died.

A site is identified by its key (when read from a recording, by its name); steps are optimizer
steps. Unknown numbers are NaN, never a guess.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
class Observations:
    """All observations of a run, or those since the last snapshot."""

    initial_layers: tuple[InitialLayer, ...] = ()
    inputs: tuple[InputStatistics, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    updates: tuple[Update, ...] = ()
    deaths: tuple[Death, ...] = ()

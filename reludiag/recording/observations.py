"""Observations: what a run leaves as evidence of why its units died, as it is recorded.

A site is named by its key (as read from a recording, by its name, which is the key there); a step
counts those of the optimizer. A number that is not known is NaN, never a guess.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InitialLayer:
    """One layer before the first step."""

    module: str
    layer: Mapping[str, Any]
    """The fields of `initialization.layer_init.LayerInit`, as JSON holds them."""


@dataclass(frozen=True)
class InputStatistics:
    """What one layer was given as input before the first step."""

    module: str
    samples: int
    is_first: bool
    """Made from the model's input alone: by no other layer."""
    gamma: float
    """Norm of the mean over norm of the standard deviation, of the features; infinite where the
    input is constant, NaN where it is not a first layer."""
    cosine: float
    """Mean cosine of two samples; NaN where a sample is not one vector."""


@dataclass(frozen=True)
class Baseline:
    """What the same model has dead on the same samples, its weights drawn anew by a good scheme."""

    site: str
    """Key of the site."""
    born_dead: float
    """Share of its units, in the mean over the draws."""
    draws: int


@dataclass(frozen=True)
class Update:
    """How far one step moved the weights of one layer."""

    step: int
    module: str
    ratio: float
    """Norm of the change over norm of the weights before it."""


@dataclass(frozen=True)
class Drift:
    """By how much the mean pre-activation of a dying unit changed, and through what.

    The change is exactly `weights + input + bias`: see `evidence.decomposition`.
    """

    before: float
    """Mean pre-activation on the probe at the beginning of the window."""
    after: float
    weights: float
    """The part that comes from the change of the layer's weights."""
    input: float
    """Of its input, which the layers above have changed."""
    bias: float


@dataclass(frozen=True)
class Death:
    """One unit that died in the window between two snapshots on the probe."""

    site: str
    """Key of the site."""
    unit: int
    step: int
    """The snapshot at which it was found dead."""
    previous: int
    """The snapshot before."""
    critical_fraction: float = math.nan
    """The largest fraction of the window's update after which it still fires on the probe."""
    drift: Drift | None = None
    """None where the layer cannot be folded, or what was folded was not what was measured."""


@dataclass(frozen=True)
class Observations:
    """All of these, of a whole run or of what is new since the last snapshot."""

    initial_layers: tuple[InitialLayer, ...] = ()
    inputs: tuple[InputStatistics, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    updates: tuple[Update, ...] = ()
    deaths: tuple[Death, ...] = ()

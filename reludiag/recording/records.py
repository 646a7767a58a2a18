"""What a recording holds, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reludiag.measure.unit_counts import UnitCounts
from reludiag.recording.observations import Observations
from reludiag.recording.schema import Mask
from reludiag.sites.site import Site


@dataclass(frozen=True)
class SiteState:
    """One site at one snapshot, for writing."""

    site: Site
    counts: UnitCounts
    dead: Mask


@dataclass(frozen=True)
class RecordedSite:
    """One site of a recording, with the states of its units at every snapshot."""

    site: Site
    param_group: str | None
    counts: UnitCounts
    """Of the last snapshot."""
    samples: np.ndarray[Any, np.dtype[np.int64]]
    """`[snapshot]`: seen in each window."""
    dead: Mask
    """`[snapshot, unit]`."""
    has_state: Mask
    """`[snapshot, unit]`: whether the site was called and the unit was finite."""
    nonfinite: Mask
    """`[snapshot, unit]`."""


@dataclass(frozen=True)
class RecordedRun:
    """The content of a recording."""

    facts: Mapping[str, Any]
    steps: tuple[int, ...]
    sites: tuple[RecordedSite, ...]
    learning_rates: tuple[tuple[int, str, float], ...]
    """(first step with it, parameter group, learning rate), in order of steps."""
    observations: Observations = field(default_factory=Observations)
    """The evidence for the causes of deaths."""


@dataclass(frozen=True)
class RecordingProgress:
    """The progress of a recording."""

    facts: Mapping[str, Any]
    steps: tuple[int, ...]
    """Of the snapshots."""
    times: tuple[float, ...]
    """Unix time of each snapshot."""

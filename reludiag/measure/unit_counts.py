"""The counts of each unit as plain arrays, and how the counts of two windows merge."""

import operator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from reludiag.sites.site import Site

Counts = np.ndarray[Any, np.dtype[np.int64]]

Reals = np.ndarray[Any, np.dtype[np.float64]]

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def _either(a: Mask, b: Mask) -> Mask:
    return a | b


def _both(a: Mask, b: Mask) -> Mask:
    return a & b


def _both_if_known(a: Mask | None, b: Mask | None) -> Mask | None:
    return None if a is None or b is None else a & b


@dataclass(frozen=True)
class UnitCounts:
    """One site's statistics as arrays of shape `[unit]`, each with how two windows merge."""

    samples: int = field(metadata={"merge": operator.add})
    """Samples for which it is known whether a unit fired."""
    counted: int = field(metadata={"merge": operator.add})
    """Of these, the samples of all statistics below except `silent` and `nonfinite`."""
    positions: int = field(metadata={"merge": operator.add})
    calls: int = field(metadata={"merge": operator.add})
    silent: Mask = field(metadata={"merge": _both})
    """Whether it fired in no sample."""
    nonfinite: Mask = field(metadata={"merge": _either})
    """Whether a NaN or an infinity was seen."""
    fired: Counts = field(metadata={"merge": operator.add})
    active: Counts = field(metadata={"merge": operator.add})
    total: Reals = field(metadata={"merge": operator.add})
    total_absolute: Reals = field(metadata={"merge": operator.add})
    total_square: Reals = field(metadata={"merge": operator.add})
    maximum: Reals = field(metadata={"merge": np.maximum})
    minimum: Reals = field(metadata={"merge": np.minimum})
    before_maximum: Reals = field(metadata={"merge": np.maximum})
    silent_before: Mask | None = field(default=None, metadata={"merge": _both_if_known})
    """Of a selection: whether it fired in no sample at the rectifier that is selected from."""

    @classmethod
    def nothing(cls, units: int) -> "UnitCounts":
        """The counts of a site that was not called."""
        zeros, minus_inf = np.zeros(units), np.full(units, -np.inf)
        counts = np.zeros(units, dtype=np.int64)
        return cls(
            samples=0,
            counted=0,
            positions=0,
            calls=0,
            silent=np.ones(units, dtype=bool),
            nonfinite=np.zeros(units, dtype=bool),
            fired=counts,
            active=counts.copy(),
            total=zeros,
            total_absolute=zeros.copy(),
            total_square=zeros.copy(),
            maximum=minus_inf,
            minimum=np.full(units, np.inf),
            before_maximum=minus_inf.copy(),
        )

    def by_position(self) -> "UnitCounts":
        """The same with each position as a sample."""
        return replace(self, samples=self.positions, counted=self.positions, fired=self.active)

    def merged(self, other: "UnitCounts") -> "UnitCounts":
        """The counts of both windows together."""
        return UnitCounts(
            **{
                f.name: f.metadata["merge"](getattr(self, f.name), getattr(other, f.name))
                for f in fields(self)
            }
        )


@dataclass(frozen=True)
class SiteCounts:
    """One site with its counts."""

    site: Site
    counts: UnitCounts

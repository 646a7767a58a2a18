"""What is accumulated per unit, on the model's device, and how two of them merge.

Counts are int64 and sums are float64: float32 counters stop at 2**24.
"""

import operator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PIECE = 2**18  # elements; 1 MiB of float32 stays in the cache


@dataclass
class UnitStats:
    """Running statistics of one site's units. Tensors have shape `[unit]`.

    Each field declares how it merges with that of another window, shard or rank.
    """

    samples: int = field(metadata={"merge": operator.add})
    positions: int = field(metadata={"merge": operator.add})
    """Positions per unit, over all samples."""
    calls: int = field(metadata={"merge": operator.add})
    fired: Tensor = field(metadata={"merge": torch.add})
    """int64: samples in which the unit fired at one position or more."""
    active: Tensor = field(metadata={"merge": torch.add})
    """int64: positions at which it fired."""
    nonfinite: Tensor = field(metadata={"merge": torch.add})
    """int64: calls with a NaN or an infinity."""
    total: Tensor = field(metadata={"merge": torch.add})
    """float64: sum of the activations."""
    total_absolute: Tensor = field(metadata={"merge": torch.add})
    """float64: sum of their absolute values."""
    maximum: Tensor = field(metadata={"merge": torch.maximum})
    """float64; -inf before the first sample, NaN once one was seen."""
    minimum: Tensor = field(metadata={"merge": torch.minimum})

    @classmethod
    def empty(cls, units: int, device: torch.device | str = "cpu") -> "UnitStats":
        """Before the first sample."""

        def full(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((units,), value, dtype=dtype, device=device)

        count, real, inf = torch.int64, torch.float64, float("inf")
        return cls(
            samples=0,
            positions=0,
            calls=0,
            fired=full(0, count),
            active=full(0, count),
            nonfinite=full(0, count),
            total=full(0, real),
            total_absolute=full(0, real),
            maximum=full(-inf, real),
            minimum=full(inf, real),
        )

    @torch.no_grad()
    def update(self, x: Tensor, signed: bool) -> None:
        """Add one call's output, `[sample, unit, position]`, which is not empty.

        `signed` says that a unit also fires where it is negative, as a hard-swish does.
        """
        samples, _, positions = x.shape
        self.calls += 1
        self.samples += samples
        self.positions += samples * positions
        highest, lowest = (x[..., 0],) * 2 if positions == 1 else (x.amax(dim=2), x.amin(dim=2))
        active = torch.zeros_like(self.total)
        # Counting by the sign, in pieces that stay in the cache, beats a mask by five times:
        # no reduction is vectorised for the bytes that `x > 0` makes.
        for piece in torch.split(x, max(1, _PIECE * samples // x.numel())):
            active += _sum(piece.sign().abs_() if signed else piece.sign())
        self.active += active.long()
        if positions == 1:
            self.fired += active.long()
        else:
            fires = torch.maximum(highest.sign(), -lowest.sign()) if signed else highest.sign()
            self.fired += fires.sum(dim=0, dtype=torch.float32).long()
        total = _sum(x)
        self.total += total
        # What cannot be negative is its own absolute value.
        self.total_absolute += _sum(x.abs()) if signed else total
        highest, lowest = highest.amax(dim=0).double(), lowest.amin(dim=0).double()
        self.nonfinite += ~(highest.isfinite() & lowest.isfinite())
        torch.maximum(self.maximum, highest, out=self.maximum)
        torch.minimum(self.minimum, lowest, out=self.minimum)

    def merged(self, other: "UnitStats") -> "UnitStats":
        """The statistics of both windows together."""
        return UnitStats(
            **{
                f.name: f.metadata["merge"](getattr(self, f.name), getattr(other, f.name))
                for f in fields(self)
            }
        )

    def counts(self) -> "UnitCounts":
        """The same as plain arrays in the host's memory."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays: dict[str, Any] = {
            name: value.cpu().numpy() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        return UnitCounts(**arrays)


def _sum(x: Tensor) -> Tensor:
    """Sum of `[sample, unit, position]` over all but units, in float64.

    Positions first, then samples: on [N, C, H, W] two to three times as fast as at once. Within
    a sample float32 is exact for counts up to 2**24, and for half precision too coarse a sum.
    """
    fine = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.shape[2] == 1:
        return x[..., 0].sum(dim=0, dtype=fine).double()
    return x.sum(dim=2, dtype=fine).sum(dim=0, dtype=torch.float64)


@dataclass(frozen=True)
class UnitCounts:
    """One site's statistics as arrays of shape `[unit]`; the fields are those of `UnitStats`."""

    samples: int
    positions: int
    calls: int
    fired: np.ndarray[Any, np.dtype[np.int64]]
    active: np.ndarray[Any, np.dtype[np.int64]]
    nonfinite: np.ndarray[Any, np.dtype[np.int64]]
    total: np.ndarray[Any, np.dtype[np.float64]]
    total_absolute: np.ndarray[Any, np.dtype[np.float64]]
    maximum: np.ndarray[Any, np.dtype[np.float64]]
    minimum: np.ndarray[Any, np.dtype[np.float64]]

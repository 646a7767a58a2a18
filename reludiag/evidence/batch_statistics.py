"""Batch statistics: at each snapshot on a probe, a second pass as BatchNorm runs in training."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from reludiag.capture.watched import Watch
from reludiag.evidence.budget import Budget
from reludiag.measure.batch_statistics import (
    firing_on_batch_statistics,
    has_seen_no_batch,
    running_norms,
)
from reludiag.measure.frozen_pass import Scanner
from reludiag.recording.observations import FiringOnBatch
from reludiag.sites.axes import UnitAxes

LAGGING = (
    "On the probe, BatchNorm uses its running statistics. In the first steps they lag behind, so a "
    "unit dead there may fire in training."
)
BOTH = (
    "On the probe, BatchNorm uses its running statistics. Each unit was also judged on the "
    "statistics of the batch, as in training: born dead, died and revived mean on both."
)


class BatchStatisticsPass:
    """One more pass over the probe, of a model that has BatchNorm with running statistics."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        unit_axes: UnitAxes | None,
        merge_calls: bool,
        budget: Budget,
        watch: Watch | None,
    ) -> None:
        self._model, self._batches, self._budget = model, batches, budget
        self._scanner = Scanner(model, unit_axes, merge_calls=merge_calls, watch=watch)
        self._fails = False
        """Whether the model could not be run so."""
        self.is_complete = False
        """Whether the last snapshot was judged so."""

    def observe(self, step: int) -> tuple[FiringOnBatch, ...]:
        """Which units fire at this snapshot; nothing where there is no time for it."""
        self.is_complete = False
        if self._fails or not running_norms(self._model) or not self._budget.allows():
            return ()
        with self._budget.spending():
            firing = firing_on_batch_statistics(self._scanner, self._batches)
        self._fails, self.is_complete = firing is None, firing is not None
        return tuple(FiringOnBatch(key, step, units) for key, units in (firing or {}).items())

    @property
    def notes(self) -> list[str]:
        """The note on the statistics by which units were judged."""
        if not running_norms(self._model):
            return []
        return [BOTH if self.is_complete else LAGGING]


def norm_facts(model: nn.Module) -> dict[str, Any]:
    """What the recording stores of the BatchNorm layers with running statistics, as JSON."""
    norms = running_norms(model)
    if not norms:
        return {}
    momenta = [getattr(norm, "momentum", None) for norm in norms]
    return {
        "batch_norms": {
            "layers": len(norms),
            # None is an average of all batches, which forgets none.
            "momentum": min((m for m in momenta if m is not None), default=None),
            "unseen": sum(has_seen_no_batch(norm) for norm in norms),
        }
    }

"""Which learning rate trained a site's units, and when."""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from reludiag.recording import RecordedRun, RecordedSite
from reludiag.recording.ledger import NEVER, Ledger
from reludiag.recording.named_models import model_name, recorded_models


def window_starts(run: RecordedRun) -> list[int]:
    """The step after which the window of each snapshot begins: that of the snapshot before, or an
    earlier one where a short last window takes in the one before.
    """
    previous = [*run.steps[:1], *run.steps[:-1]]
    return [*map(min, previous, run.first_steps or previous)]


class LearningRates:
    """The learning rates of a run, by parameter group."""

    def __init__(self, run: RecordedRun) -> None:
        self._steps, self._starts = run.steps, window_starts(run)
        # Training batches show a death in the first window in which a unit is silent throughout:
        # it may have died in the window before.
        self._is_seen_late = run.facts.get("probe_samples") is None
        self._models = recorded_models(run.facts)
        groups: dict[str, list[tuple[int, float]]] = {}
        for first_step, group, rate in run.learning_rates:
            groups.setdefault(group, []).append((first_step, rate))
        self._groups = {
            group: (np.array([step for step, _ in rows]), np.array([rate for _, rate in rows]))
            for group, rows in groups.items()
        }

    def largest(self, recorded: RecordedSite, start: int, step: int) -> float:
        """The largest rate in steps `start + 1 .. step` for the weights that feed a site.

        NaN if no optimizer trains them; over all groups if the producer of the site is unknown, or
        it has several that are trained differently.
        """
        model = self._models.get(model_name(recorded.site))
        if model is not None and not model.trained:
            names = []
        elif recorded.param_group is not None:
            names = [recorded.param_group]
        else:
            names = [] if len(recorded.site.producers) == 1 else list(self._groups)
        largest = []
        for steps, rates in (self._groups[name] for name in names if name in self._groups):
            first = max(0, int(np.searchsorted(steps, start + 1, side="right")) - 1)
            used = rates[first : int(np.searchsorted(steps, step, side="right"))]
            largest += [float(used.max())] if len(used) else []
        return max(largest, default=float("nan"))

    def by_window(
        self, recorded: RecordedSite, steps: Sequence[int], of_deaths: bool = False
    ) -> list[float]:
        """The largest rate in the window that ends at each snapshot; NaN for the first.

        With `of_deaths`, in the time in which units may have died that are dead in that window.
        """
        windows = [
            self.largest(recorded, self._begin(previous) if of_deaths else start, step)
            for start, (previous, step) in zip(
                self._starts[1:], itertools.pairwise(steps), strict=True
            )
        ]
        return [float("nan"), *windows][: len(steps)]

    def _begin(self, previous: int) -> int:
        """The step after which a unit may have died that is dead in the window after `previous`."""
        index = bisect.bisect_left(self._steps, previous)
        return self._steps[max(0, index - 1)] if self._is_seen_late else previous

    def at_death(self, recorded: RecordedSite, ledger: Ledger) -> np.ndarray[Any, Any]:
        """For each unit, the largest rate in the time in which it died; NaN if it did not die."""
        rates = np.full(len(ledger.died_step), np.nan)
        died = (ledger.died_step != NEVER) & (ledger.previous_step != NEVER)
        for previous, step in {
            *zip(ledger.previous_step[died], ledger.died_step[died], strict=True)
        }:
            inside = died & (ledger.died_step == step) & (ledger.previous_step == previous)
            rates[inside] = self.largest(recorded, self._begin(int(previous)), int(step))
        return rates

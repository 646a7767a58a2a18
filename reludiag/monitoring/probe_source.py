"""Probe source: a snapshot is a frozen pass over the same batches, exact, and free in between."""

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from reludiag.capture.watched import Watch
from reludiag.measure.frozen_pass import Scanner
from reludiag.measure.groups import Groups
from reludiag.measure.unit_counts import SiteCounts
from reludiag.measure.unjudged import Unjudged
from reludiag.monitoring.autocast import TrainingAutocast
from reludiag.sites.axes import UnitAxes
from reludiag.sites.guard import Guard

_BEGAN_PLAIN = (
    "The initial state was measured before any pass of the training was seen, and so without its "
    "autocast."
)


class ProbeSource:
    """A frozen pass over the same batches at each snapshot."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        every: int,
        unit_axes: UnitAxes | None,
        merge_calls: bool,
        groups: Groups | None,
        called: nn.Module,
        guard: Guard,
        watch: Watch | None,
    ) -> None:
        """`called` is what the training calls: the model, or its compiled form."""
        self.ready = True
        self.missed: Sequence[Unjudged] = ()
        self.per_pass: Sequence[str] = ()
        self.notes: Sequence[str] = ()
        self._scanner = Scanner(
            model, unit_axes, finds_consumers=True, merge_calls=merge_calls, watch=watch
        )
        self._batches, self._every, self._groups = batches, every, groups
        self._counted: dict[str, Any] = {"probe_samples": None}  # known from the first pass on
        self._autocast = TrainingAutocast(called, guard)
        self._is_attached = False
        self._began_plain = False  # whether the first snapshot was taken without autocast

    def attach(self) -> None:
        """Nothing is watched between snapshots but one forward pass, for its autocast."""
        self._is_attached = True
        self._autocast.arm()

    def detach(self) -> None:
        """Nothing more is watched."""
        self._is_attached = False
        self._autocast.disarm()

    def go_on(self, step: int) -> None:
        """The probe does not know of steps."""

    def is_due(self, step: int) -> bool:
        """Whenever it is wanted."""
        return True

    def end_step(self, step: int) -> int:
        """Nothing to do before the next snapshot."""
        return (step // self._every + 1) * self._every

    def take(self, step: int, closing: bool) -> tuple[list[SiteCounts], int]:
        """Run the probe through the current model."""
        measured = self._scanner.run(self._batches, groups=self._groups)
        self._counted = {
            "probe_samples": measured.samples,
            "probe_rows": measured.rows,
            "probe_groups": measured.groups,
            "if_independent": measured.if_independent,
        }
        self.missed = measured.missed
        self.notes = [*measured.notes]
        if self._autocast.state is None:
            self._began_plain = not self._autocast.is_on()
        elif self._autocast.dtypes and self._began_plain:
            self.notes = [*self.notes, _BEGAN_PLAIN]
        if self._is_attached:
            self._autocast.arm()
        return measured.sites, step

    def as_in_training(self) -> contextlib.AbstractContextManager[None]:
        """Autocast as in the last forward pass of the training that was looked at."""
        return self._autocast.entered()

    def unseen(self) -> str | None:
        """None: the passes over the probe are its own."""
        return None

    def facts(self) -> dict[str, Any]:
        """What the probe counts as a sample, and its autocast; evaluation passes do not matter."""
        return {
            **self._counted,
            "autocast": self._autocast.dtypes,
            "evaluation_passes": 0,
            "evaluation_calls": 0,
        }

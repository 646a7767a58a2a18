"""Snapshot source: where a Monitor's snapshots come from, a probe or the training batches."""

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

from reludiag.measure.unit_counts import SiteCounts
from reludiag.measure.unjudged import Unjudged


class SnapshotSource(Protocol):
    """Gives the counts of all sites at a step."""

    missed: Sequence[Unjudged]
    """What could not be seen, as of the last snapshot."""
    per_pass: Sequence[str]
    """Names of sites at which a pass counts as one sample, though it has several."""
    notes: Sequence[str]
    """Notes on how to read the numbers for this model."""

    @property
    def ready(self) -> bool:
        """Whether a snapshot can be taken now."""

    def attach(self) -> None:
        """The run begins."""

    def detach(self) -> None:
        """The run has ended, also by an exception."""

    def go_on(self, step: int) -> None:
        """The run was resumed: so many steps were taken before."""

    def is_due(self, step: int) -> bool:
        """Whether enough was seen for a snapshot at `step`."""

    def end_step(self, step: int) -> int:
        """Called after a step. Returns the next step after which it must be called."""

    def take(self, step: int, closing: bool) -> tuple[list[SiteCounts], int]:
        """The state at `step`, and the step from which it was counted.

        `closing` is true at the end of the run.
        """

    def unseen(self) -> str | None:
        """The reason if no forward pass was seen that could be watched; None if one was."""

    def as_in_training(self) -> contextlib.AbstractContextManager[None]:
        """The context of its own passes, and of those that examine deaths."""

    def facts(self) -> dict[str, Any]:
        """What the recording stores about the source, as JSON."""

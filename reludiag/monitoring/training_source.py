"""Training source: a snapshot is what the training batches of the window showed."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from reludiag.capture.calls import Call, UnitView
from reludiag.capture.capture import Capture
from reludiag.capture.compiled import forget_compiled, guarded, uncompiled
from reludiag.capture.watched import Watch
from reludiag.measure.arrival import with_selections
from reludiag.measure.blind_spots import left_out_notes, missed_places
from reludiag.measure.unit_counts import SiteCounts, UnitCounts
from reludiag.measure.unjudged import Unjudged
from reludiag.measure.verdicts import is_dead
from reludiag.monitoring.models import OF_MODEL, model_notes, samples_by_model, unwatched_models
from reludiag.monitoring.window import Window
from reludiag.sites.axes import UnitAxes
from reludiag.sites.guard import Guard, warn

_NOT_CALLED = OF_MODEL | {"never_called", "replica"}
"""Reasons that do not say that a rectifier was called in training."""


class TrainingSource:
    """Counts in the training's own forward passes.

    Every batch is checked for units that fired; other statistics are counted in every
    `stats_every`-th step. Once every unit has fired in a window, the hooks rest until the next
    counted step.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int,
        stats_every: int,
        unit_axes: UnitAxes | None,
        compiled: bool,
        merge_calls: bool,
        guard: Guard,
        watch: Watch | None,
    ) -> None:
        self.missed: Sequence[Unjudged] = ()
        self.per_pass: Sequence[str] = ()
        self._every = every
        self._counted_steps = max(1, every // stats_every)  # of each window, at even distances
        self._capture = Capture(
            model,
            self._receive,
            self._wants_pre_activation,
            self._note_pre_activation,
            unit_axes,
            in_loop=True,
            finds_consumers=True,
            merge_calls=merge_calls,
            guard=guard,
            watch=watch,
        )
        self._compiled = compiled
        self._slowed = compiled and self._capture.functional
        self._has_warned_of_axes = False
        self._models = model_notes(model)
        self.notes: Sequence[str] = [*self._models, *_uncompiled_run(self._slowed)]
        # Of the window: replaced as a whole when a snapshot is taken.
        self._windows: dict[int, Window] = {}
        self._previous: dict[int, UnitCounts] = {}
        self._in_passes: dict[int, int] = {}  # as in `Window`, of the same snapshot
        self._snapshots: list[int] = []  # steps
        self._begin = 0  # steps taken before this process
        self._fell_silent = (
            0  # units that fired in the window that the last, short one was added to
        )
        self._counted: set[str] = set()  # paths of modules that ever had a window
        self._counting = True  # whether the coming step is counted: set at the end of each
        self._last_counted = 0  # step
        self._frozen_calls = 0  # of parts of the model in evaluation mode in a training pass
        # Whether compiled code may run as soon as a whole forward was followed.
        self._compiles_later = not (compiled and self._capture.functional)
        self._compiler_settings = guard.contexts  # from `attach` to `detach`

    @property
    def ready(self) -> bool:
        """Whether a forward pass was seen."""
        return self._capture.passes > 0

    def attach(self) -> None:
        """Register the hooks; compiled code hides units and functions, so it does not run yet."""
        self._compiler_settings.enter_context(uncompiled())
        self._capture.attach()

    def detach(self) -> None:
        """Remove the hooks."""
        self._wake()
        self._capture.detach()
        self._compiler_settings.close()

    def go_on(self, step: int) -> None:
        """The first window begins after this step."""
        self._begin, self._snapshots = step, [step]

    def is_due(self, step: int) -> bool:
        """Not in a short first window of a resumed run: there is none to add it to."""
        return self._begin == 0 or bool(self._snapshots[1:]) or not self._is_short(step)

    def end_step(self, step: int) -> int:
        """Decide whether the next step is counted, and whether to rest until then."""
        self._capture.reset()
        if self._compiles_later and self._capture.followed:
            if self._compiled and self._capture.functional:  # as only a call has shown
                self._compiles_later, self._slowed = False, True
            else:
                self._let_compile()
        if step == self._begin + 1 and not self.ready:
            warn(
                "reludiag: the monitored model ran no forward pass before the first step. Is "
                "another copy of the model being trained?",
                stacklevel=6,  # the line that steps the optimizer
            )
        place, counted = step % self._every, self._counted_steps
        # The first step of a window is always among those that are counted.
        self._counting = place * counted % self._every < counted
        if self._counting:
            self._wake()
            self._last_counted = step + 1
            return step + 1
        ahead = -(-self._every * (place * counted // self._every + 1) // counted) - place
        if all(window.done for window in self._windows.values()):
            self._capture.rest(self._windows.keys())
            if self._capture.resting:
                return step + ahead
        if self._compiles_later:
            return step + 1
        # What has not fired for a while need not be asked for after each step.
        return step + min(ahead, step - self._last_counted + 1)

    def take(self, step: int, closing: bool) -> tuple[list[SiteCounts], int]:
        """What the training batches since the last snapshot showed."""
        self._wake()
        first_step = self._snapshots[-1] if self._snapshots else 0
        counts = {site: window.counts() for site, window in self._windows.items()}
        in_passes = {site: window.in_passes for site, window in self._windows.items()}
        if closing and len(self._snapshots) > 1 and self._is_short(step):
            self._fell_silent = self._newly_silent(counts)
            first_step = self._snapshots[-2]
            for site, earlier in self._previous.items():
                counts[site] = earlier.merged(counts[site]) if site in counts else earlier
                in_passes[site] = self._in_passes[site] + in_passes.get(site, 0)
        if step > 0:  # the initial batches are of the first window as well
            self._previous, self._windows = counts, {}
        self._in_passes = in_passes
        self._snapshots.append(step)
        self.missed = self._missed_places()
        self.notes = [
            *self._models,
            *_uncompiled_run(self._slowed),
            *left_out_notes(self._capture),
            *self._axes_note(),
            *_silent_at_the_end(self._fell_silent, step - self._snapshots[-2:][0]),
        ]
        self.per_pass = [
            site.name
            for index, site in enumerate(self._capture.sites)
            if index in counts and counts[index].samples < in_passes[index]
        ]
        sites = self._with_sites(counts)
        names = {each.site.name for each in sites}
        self.per_pass = [name for name in self.per_pass if name in names]
        nothing = UnitCounts.nothing(0)
        return [*sites, *(SiteCounts(s, nothing) for s in self._capture.uncalled())], first_step

    def _is_short(self, step: int) -> bool:
        """Whether the window that ends here has too few batches to call units dead."""
        return 2 * (step - self._snapshots[-1]) < self._every

    def _with_sites(self, counts: Mapping[int, UnitCounts]) -> list[SiteCounts]:
        """The counts of a window by site; none where it was not called."""
        sites = [
            SiteCounts(site, counts.get(index) or UnitCounts.nothing(site.units or 0))
            for index, site in enumerate(self._capture.sites)
        ]
        return with_selections(sites, self._capture.selections.sources)

    def _newly_silent(self, counts: Mapping[int, UnitCounts]) -> int:
        """Number of units that fired in the window before this one, and are silent in this one."""
        before = {
            s.site.key: is_dead(s.counts, s.site.rectifier)
            for s in self._with_sites(self._previous)
        }
        return sum(
            int((is_dead(each.counts, each.site.rectifier) & ~before[each.site.key]).sum())
            for each in self._with_sites(counts)
            if each.site.key in before
        )

    def as_in_training(self) -> contextlib.AbstractContextManager[None]:
        """It runs no passes of its own."""
        return contextlib.nullcontext()

    def unseen(self) -> str | None:
        """`no_forward`, or `only_evaluation` if that is how every rectifier was called."""
        called = any(place.reason not in _NOT_CALLED for place in self.missed)
        if self._counted or called:  # what could not be read was called, too
            return None
        if self._capture.missed.evaluations or self._frozen_calls:
            return "only_evaluation"
        return None if self.ready else "no_forward"

    def facts(self) -> dict[str, Any]:
        """Samples in the passes of the window; passes and calls in eval mode are not counted."""
        return {
            "probe_samples": None,
            "training_samples": max(self._in_passes.values(), default=0),
            "model_samples": samples_by_model(self._capture.model, self._in_paths()),
            "evaluation_passes": self._capture.missed.evaluations,
            "evaluation_calls": self._frozen_calls,
        }

    def _in_paths(self) -> dict[str, int]:
        """Path of a module with sites -> number of samples in the passes that called it."""
        sites, paths = self._capture.sites, dict[str, int]()
        for index, samples in self._in_passes.items():
            path = sites[index].module
            paths[path] = max(samples, paths.get(path, 0))
        return paths

    def _let_compile(self) -> None:
        """Let compiled code run from now on, with the hooks in it."""
        self._compiles_later = False
        self._compiler_settings.close()
        forget_compiled()
        self._compiler_settings.enter_context(guarded())

    def _missed_places(self) -> list[Unjudged]:
        """What could not be seen, and the named models of which nothing was."""
        places, capture = missed_places(self._capture), self._capture
        models = unwatched_models(
            capture.model, self._counted, capture.called, capture.missed.evaluated, places
        )
        return [*models, *places]

    def _axes_note(self) -> list[str]:
        """The note on axes that no site has; the first time it is a warning, too."""
        wrong = self._capture.unmatched_axes() if self._capture.followed else ""
        if wrong and not self._has_warned_of_axes:
            self._has_warned_of_axes = True
            warn(f"reludiag: {wrong}")
        return [f"{wrong[0].upper()}{wrong[1:]}."] if wrong else []

    def _wake(self) -> None:
        for call in self._capture.wake():
            if call.in_training:
                self._windows[call.site].samples += call.samples
                self._windows[call.site].in_passes += call.in_passes
            else:
                self._frozen_calls += call.calls

    # What the capture calls

    def _wants_pre_activation(self, training: bool, site: int | None) -> bool:
        """Whether the pre-activation of a call will be read, which is expected to be of `site`."""
        if not (training and self._counting):
            return False
        if site is None:
            return True
        window = self._windows.get(site)
        if window is None:  # the distance from firing is only needed if there were silent units
            return site not in self._previous or bool(self._previous[site].silent.any())
        return not window.done

    def _receive(self, call: Call) -> None:
        if not call.training:
            self._frozen_calls += not self._capture.evaluating
            return
        asks = self._counting and self._wants_pre_activation(True, call.site)
        window = self._windows.get(call.site) or self._new_window(call.site, call.output)
        window.add(call, self._counting, asks)

    def _note_pre_activation(self, site: int, x: Tensor, view: UnitView) -> None:
        window = self._windows.get(site) or self._new_window(site, x)
        window.note_pre_activation(x, view)

    def _new_window(self, site: int, x: Tensor) -> Window:
        window = Window(self._capture.sites[site], x.device, x.dtype)
        self._windows[site] = window
        self._counted.add(self._capture.sites[site].module)
        return window


def _silent_at_the_end(units: int, steps: int) -> list[str]:
    """The note on units that were silent in a last window that is too short to judge by."""
    if not units:
        return []
    of_steps = "the last step" if steps == 1 else f"the last {steps:,} steps"
    were, they = ("unit was", "it is") if units == 1 else ("units were", "they are")
    return [
        f"In {of_steps}, {units:,} more {were} silent: run `scan`, or pass a probe, to tell "
        f"whether {they} dead."
    ]


def _uncompiled_run(slowed: bool) -> list[str]:
    """The note on a model that had to run uncompiled."""
    if not slowed:
        return []
    return [
        "The model calls rectifiers as functions, which cannot be seen in compiled code, so it "
        "ran uncompiled. With a probe it can run compiled."
    ]

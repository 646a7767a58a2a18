"""Monitor: watches a training run, counts steps by the optimizer, and records its state.

With a probe, each snapshot is a frozen pass over the same batches: exact, and without cost between
snapshots. Without a probe, a snapshot is what the training batches of the window showed.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from reludiag.capture.compiled import is_compiled
from reludiag.capture.watched import Watch
from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.diagnosis.from_recording import diagnose_run
from reludiag.errors import ModelError, ReludiagError, UsageError
from reludiag.evidence.budget import DEFAULT_SHARE
from reludiag.evidence.collector import EvidenceCollector
from reludiag.measure.blind_spots import no_rectifier
from reludiag.measure.groups import Groups
from reludiag.measure.unjudged import Unjudged, sentences, unjudged
from reludiag.measure.verdicts import Thresholds
from reludiag.monitoring.alerts import WARN_OVER, Alerts, Listener
from reludiag.monitoring.clock import AfterStep, BeforeStep, Clock
from reludiag.monitoring.closure import AfterClosure, closure_of, with_closure
from reludiag.monitoring.metric_log import MetricLog, check_mark, named_values
from reludiag.monitoring.models import (
    OF_MODEL,
    check_models,
    trained_by_name,
    untrained,
    watched_and_called,
)
from reludiag.monitoring.probe import probe_batches, probe_hash
from reludiag.monitoring.probe_source import ProbeSource
from reludiag.monitoring.rates import RateLog
from reludiag.monitoring.resuming import (
    Resumption,
    checked_resume,
    resumption,
)
from reludiag.monitoring.run_facts import checked_facts, run_facts, untrained_weights
from reludiag.monitoring.settings import (
    check_groups,
    check_intervals,
    check_trains,
    checked_optimizers,
    evidence_share,
    parameters_in,
)
from reludiag.monitoring.snapshot_source import SnapshotSource
from reludiag.monitoring.training_source import TrainingSource
from reludiag.monitoring.unwatched import SnapshotCheck, WeightCheck, nothing_watched
from reludiag.recording import Mark, RecordingWriter, SiteState, read_recording
from reludiag.sites.axes import UnitAxes
from reludiag.sites.functional import may_rectify
from reludiag.sites.guard import Guard, described, warn
from reludiag.sites.torch_internals import AnyBatchNorm


class Monitor:
    """Watches the rectifiers of a model while it trains; a context manager around the loop.

    Steps are counted by `optimizer.step()`, each with the learning rates that it used. With several
    optimizers, the last one completes a step. Without an optimizer, call `step()` after each
    update.

    `model` can also be several models by name, `{"online": q, "target": t}`: then the names of
    sites and parameters in the recording begin with those of their models. Of a model that an
    optimizer trains, passes in eval mode do not count; of one that none trains all passes do, also
    without gradients. What several models share is one site. A `probe` is then one for all, or a
    mapping of one for each, all with as many rows: a row is one sample of all.

    Every `every` steps the state of all units is written to the recording at `path` (None: in
    memory), beginning with the initial state. `probe` is a batch (as in `scan`), an iterable of
    batches, or a function that returns either. They are kept in memory and run through the model in
    eval mode, without gradients, at each snapshot, under the autocast of the last training pass.
    With it, units that died since the last snapshot are examined: this takes a copy of the weights,
    and up to 18 more passes over the probe if units died. `evidence` is the share of the run's time
    that this may take (of the processor's time, if the model is on it); 10 seconds are always
    allowed. Of later deaths no evidence is collected until there is time again: their cause is
    `undetermined`, and the report says of how many. 1.0 examines all, False none. The first
    snapshot also runs a copy of the model, to measure how many units are dead by chance.

    A sample is a row of the probe, or all its rows of one group: `groups` is as in `scan`, and
    graphs that a batch numbers in `batch` are found without it. Training batches have no groups: to
    count them, each step would have to wait for the device.

    Without a probe, every training batch is checked for units that fired; firing rates and other
    statistics are from every `stats_every`-th step (1: every step). `unit_axes`, `merge_calls` and
    `watch` are as in `scan`.
    `facts` are stored in the recording as JSON, for other information about the run.

    `resume=True` goes on with the recording at `path`, after its last step, with the model of the
    checkpoint: what died before is known, and is not taken for dead at birth. Load the optimizer's
    state before: if it says that the checkpoint has taken another number of steps, the run goes on
    there. With an optimizer that does not count, such as SGD, it goes on where the recording ends,
    though the checkpoint may be of an earlier step: `resume=800` says of which. Snapshots of later
    steps are dropped, since they are of steps that the checkpoint does not have.
    Without a recording, `resume=True` and `resume=0` begin one.

    After each snapshot `on_snapshot` is called with it (a `Snapshot`), and `on_death` if units
    died. There is a RuntimeWarning the first time that more than `warn_over` of all units (a share,
    or a number such as "12") die between two snapshots, the first time that as many are dead that
    were alive at the start, and where all units of a site are dead before any training; None turns
    them off. TooManyDeadError ends the run when more than `raise_over` units are dead or not finite
    after step 0.

    The model can be compiled by torch.compile, before or later. The first step runs uncompiled;
    without a probe, a model that calls rectifiers as functions runs uncompiled until the end.

    An error of reludiag during the run is a RuntimeWarning: the training goes on unwatched, and the
    recording says since when.

    Raises UsageError for invalid settings, also for `groups` without a probe, ModelError for a
    model without rectifiers, RecordingError if `path` exists (unless `overwrite` or `resume`),
    cannot be written, or is of another model than the one that resumes it. On entering, it raises
    the errors of `scan` for the probe, such as DataError if a batch lacks the `groups`.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        path: str | Path | None = None,
        every: int = 100,
        stats_every: int = 16,
        probe: Any = None,
        evidence: float | bool = DEFAULT_SHARE,
        unit_axes: UnitAxes | None = None,
        merge_calls: bool = True,
        groups: Groups | None = None,
        watch: Watch | None = None,
        overwrite: bool = False,
        resume: bool | int = False,
        facts: Mapping[str, Any] | None = None,
        on_snapshot: Listener | None = None,
        on_death: Listener | None = None,
        warn_over: str | None = WARN_OVER,
        raise_over: str | None = None,
    ) -> None:
        check_models(model)
        optimizers = self._optimizers = checked_optimizers(optimizer)
        model, called = watched_and_called(model, parameters_in(optimizers) if optimizers else None)
        check_intervals(every=every, stats_every=stats_every)
        compiled = is_compiled(called)
        if not watch and not may_rectify(model):
            raise ModelError(no_rectifier(model))
        self.model = model
        self.every = every
        self.stats_every = stats_every
        self.snapshots: list[int] = []
        """Steps whose snapshots are stored in the recording."""
        self._path = None if path is None else Path(path)
        self._overwrite = overwrite
        self._resume = checked_resume(resume, self._path, overwrite)
        self._resumption: Resumption | None = None  # known when the run begins
        self._facts = {**checked_facts(facts), "every": every, "stats_every": stats_every}
        check_groups(groups, probe)
        batches = None if probe is None else probe_batches(model, probe)
        self._guard = Guard(self._stop_watching)
        self._source: SnapshotSource = (
            TrainingSource(
                model, every, stats_every, unit_axes, compiled, merge_calls, self._guard, watch
            )
            if batches is None
            else ProbeSource(
                model, batches, every, unit_axes, merge_calls, groups, called, self._guard, watch
            )
        )
        self._has_probe = batches is not None
        self._probe_hash = probe_hash(batches)
        self._collector = EvidenceCollector(
            model,
            self._optimizers,
            every,
            batches,
            unit_axes,
            merge_calls,
            evidence_share(evidence),
            self._guard,
            watch,
            compiled,
        )
        self._clock = Clock()
        self._after_step = AfterStep(self._clock, self._end_step)
        lags = batches is not None and any(isinstance(m, AnyBatchNorm) for m in model.modules())
        self._alerts = Alerts(
            on_snapshot,
            on_death,
            warn_over,
            raise_over,
            batches is None,
            lags,
            trained_by_name(model),
        )
        self._rates = RateLog(model, self._optimizers)
        self._metrics = MetricLog(every)
        self._weights = WeightCheck(model)
        self._shown = SnapshotCheck(model)
        self._untrained = {name: WeightCheck(each) for name, each in untrained(model).items()}
        """Of the named models that no optimizer trains."""
        self._unwatched: Unjudged | None = None  # set when the run ends, as the next
        self._unjudged_steps = 0
        """Of a resumed run that was too short to judge its units."""
        check_trains(optimizers, self._rates.param_groups)
        # From `__enter__` on:
        self._undo = self._guard.undo_list(of_optimizer=True)
        self._writer: RecordingWriter | None = None
        self._has_ended = False
        self._stopped: dict[str, Any] = {}
        """The facts about an error that ended watching; the training continues without it."""

    def __enter__(self) -> Self:
        if self._writer is not None:
            raise UsageError("this Monitor was already used; make a new one for another run")
        try:
            try:
                self._begin()
            except ReludiagError:  # a path or a probe that cannot be used
                raise
            except Exception as error:
                self._guard.fail(error)
            self._alerts.tell()
        except BaseException:
            self._guard.let_go()
            if self._resumption is not None and self._writer is not None:
                self._writer.close()
            raise
        return self

    def _begin(self) -> None:
        self._facts |= run_facts(self.model, self._optimizers)
        self._facts["probe_hash"] = self._probe_hash
        before = self._resumption = resumption(
            self._path, self._resume, self.model, self._optimizers, self.every, self._has_probe
        )
        if before is None:  # with `resume`, what is there has no snapshot
            is_replaced = self._overwrite or self._resume is not False
            self._writer = RecordingWriter(self._path, is_replaced)
            self._writer.write_facts(self._facts_now("running"))
        else:  # nothing is written before it is known that the sites are the same
            self._go_on(before)
        for check in (self._weights, *self._untrained.values()):
            check.begin()
        self._collector.begin(self._clock.step)
        if self._source.ready:
            self._snapshot()
        self._source.attach()
        last = len(self._optimizers) - 1
        for index, optimizer in enumerate(self._optimizers):
            changed = partial(self._before_step, index)
            initial = BeforeStep(self._rates.current[index], changed, self._guard)
            self._undo.append(optimizer.register_step_pre_hook(initial).remove)
            if index == last:
                self._undo.append(optimizer.register_step_post_hook(self._after_step).remove)
        self._collector.attach()

    def _go_on(self, before: Resumption) -> None:
        """Take up a recording that is there."""
        self._writer = RecordingWriter(self._path, resume_at=before.step)
        self._facts |= before.facts(self._probe_hash)
        self._clock.step = before.step
        self.snapshots = [*before.steps]
        self._source.go_on(before.step)
        self._alerts.go_on(before.run, len(before.steps))
        if before.warning:
            warn(f"reludiag: {before.warning}", stacklevel=4)  # the `with` statement

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._guard.error is None:
                self._end("complete" if kind is None else f"interrupted by {kind.__name__}")
        except Exception as own_error:
            self._guard.fail(own_error)
        finally:
            self._has_ended = True
            self._guard.let_go()
            self._guard.settle()
        if self._stopped and self._writer is not None:
            with contextlib.suppress(Exception):  # now there may be room on the disk
                self._writer.write_facts(self._stopped)
                self._writer.close()
        self._alerts.tell(stopping=kind is None)

    def _end(self, status: str) -> None:
        self._source.detach()
        self._collector.detach()
        if self._writer is None:
            return
        step, begun = self._clock.step, 0 if self._resumption is None else self._resumption.step
        if not self.snapshots or self.snapshots[-1] != step:
            if self._source.is_due(step):
                self._snapshot(closing=True)
            else:
                self._unjudged_steps = step - begun
        self._writer.write_metrics(self._metrics.take(self._clock.step))
        self._unwatched = nothing_watched(
            step - begun,
            bool(self._optimizers),
            self._weights,
            self._source.unseen(),
            raised=status != "complete",
        )
        if self._unwatched is not None and self._unwatched.reason == "steps_skipped":
            self._facts["nonfinite_gradients"] = self._weights.nonfinite_gradients()
        if status == "complete":  # else the device may be what failed
            for name, check in self._untrained.items():
                self._facts["models"][name]["changed"] = check.changed()
            if self.snapshots[-1:] == [step]:  # else there were steps that none shows
                self._facts["changed_after_last_snapshot"] = self._shown.differs()
        self._writer.write_facts(self._facts_now(status))
        self._writer.close()
        whole = [] if self._unwatched is None else [self._unwatched]
        models = [place for place in self._source.missed if place.reason in OF_MODEL]
        if status == "complete" and (whole or models):
            message = " ".join(sentences(whole or models))
            warn(f"reludiag: {message}", stacklevel=3)  # the `with` statement

    def step(self) -> None:
        """Count one update of the weights, if there is no optimizer."""
        if self._optimizers:
            raise UsageError(
                "steps are counted by optimizer.step(); monitor.step() is for runs "
                "without an optimizer"
            )
        self._after_step()

    def log(self, metrics: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Record what you measure, such as `monitor.log(loss=loss, accuracy=0.9)`.

        Values are numbers or tensors with one element; names that are no identifiers are in a
        mapping: `log({"val/loss": 0.3})`. A tensor is not waited for: it is copied on its device,
        and read at the next snapshot. Of each window of `every` steps, the recording keeps the
        last value and the mean of each name, also where they are not finite.

        Raises UsageError for what is no number, and before the run. After it, values are lost,
        with a RuntimeWarning.
        """
        values = named_values(metrics, named)
        if self._may_note("log"):
            self._metrics.add(self._clock.step, values)

    def mark(self, name: str) -> None:
        """Mark this step with a name, such as `monitor.mark("task 3")` where a task begins.

        Reports say how many units died between marks. With a probe, a snapshot is taken here, so
        that this is exact; without one, a window that a mark falls into counts for what follows it.

        Raises UsageError for what is no name, and before the run. After it, a mark is lost, with a
        RuntimeWarning.
        """
        check_mark(name)
        if not self._may_note("mark"):
            return
        try:
            step = self._clock.step
            if self._has_probe and self.snapshots[-1:] != [step]:
                self._snapshot()
            if self._writer is not None:
                self._writer.write_mark(Mark(step, name))
        except Exception as error:
            self._guard.fail(error)
        self._alerts.tell()

    def _may_note(self, method: str) -> bool:
        """Whether the run is being watched; raises UsageError if it has not begun."""
        if self._writer is None:
            raise UsageError(
                f"{method}() was called before the run; expected it inside of "
                "`with reludiag.Monitor(...) as monitor:`"
            )
        if self._has_ended:
            warn(
                f"reludiag: {method}() was called after the run and is not recorded; call it "
                "inside of the `with` block",
                stacklevel=3,
            )
        return not self._has_ended and self._guard.error is None

    def diagnose(self, thresholds: Thresholds | None = None) -> Diagnosis:
        """The Diagnosis of the run so far, as `reludiag.load` returns it."""
        if self._writer is None:
            raise UsageError("nothing is recorded yet: enter `with reludiag.Monitor(...):` first")
        run = self._writer.read() if self._path is None else read_recording(self._path)
        if self._stopped:  # which a full disk may not have taken
            run = replace(run, facts={**run.facts, **self._stopped})
        return diagnose_run(run, str(self._path or "this run"), thresholds)

    def _before_step(self, index: int, args: Any, kwargs: Any) -> Any:
        """Called before an optimizer steps with changed learning rates."""
        changed = None
        try:
            changed = self._with_initial_state(args, kwargs)
            self._rates.note(index, self._clock.step + 1)
        except Exception as error:
            self._guard.fail(error)
        self._alerts.tell()
        return changed

    def _with_initial_state(self, args: Any, kwargs: Any) -> Any:
        """Take the initial state: now, or after the step's closure if the forward pass is in it.
        Then the result is the new arguments of the step.
        """
        if self._clock.step or self.snapshots:
            return None
        closure = closure_of(args, kwargs)
        if closure is None or self._source.ready:
            self._snapshot()
            return None
        return with_closure(args, kwargs, AfterClosure(closure, self._after_closure))

    def _after_closure(self) -> None:
        if self._guard.error is None and not self.snapshots:
            try:
                self._snapshot()
                self._collector.keep_weights()  # only now is it known which layers to keep
            except Exception as error:
                self._guard.fail(error)
            self._alerts.tell()

    def _end_step(self) -> None:
        if self._guard.error is None:
            try:
                self._count_step()
            except Exception as error:
                self._guard.fail(error)
        else:
            self._clock.step += 1
            self._guard.leave_contexts()
        self._alerts.tell()

    def _count_step(self) -> None:
        if self._clock.step == 0 and not self.snapshots:
            self._snapshot()
        step = self._clock.step = self._clock.step + 1
        self._collector.stepped(step)
        wake = self._source.end_step(step)
        if step % self.every == 0 and self._source.is_due(step):
            self._snapshot()
        self._clock.idle_until = min(wake, self._collector.next_wake(step))

    def _snapshot(self, closing: bool = False) -> None:
        if self._writer is None:
            return
        step = self._clock.step
        with self._source.as_in_training():
            sites, first_step = self._source.take(step, closing)
            states = [SiteState.of(finding) for finding in sites]
            if self._resumption is not None:
                self._resumption.check_sites(self._path, states)
            rates = self._rates.take_changes()
            self._writer.write_snapshot(
                step,
                first_step,
                states,
                self._rates.param_groups,
                rates,
                self._facts_now("running"),
                self._collector.at_snapshot(step, sites),
            )
            self._writer.write_metrics(self._metrics.take(step))
        if self.snapshots[-1:] != [step]:  # a resumed run takes its last one again
            self.snapshots.append(step)
        self._shown.note()
        self._alerts.note(step, states, rates, self._source.per_pass)

    def _facts_now(self, status: str) -> dict[str, Any]:
        whole = [] if self._unwatched is None else [self._unwatched]
        no_rate = untrained_weights(self.model, self._optimizers, self._rates.param_groups)
        return {
            **self._facts,
            **self._source.facts(),
            **self._collector.facts,
            **self._rates.facts,
            "notes": [*no_rate, *self._source.notes, *self._collector.notes],
            "per_pass": [*self._source.per_pass],
            "unjudged_steps": self._unjudged_steps,
            "unjudged": [asdict(place) for place in (*whole, *self._source.missed)],
            "status": status,
        }

    def _stop_watching(self, error: Exception) -> None:
        """Called once, after the first error of reludiag: the training goes on without it."""
        step, what = self._clock.step, described(error)
        place = unjudged("", "unwatched", f"after step {step:,}: {what}")
        self._stopped = {
            **self._facts,
            "status": f"not watched after step {step:,}",
            "unjudged": [asdict(each) for each in (place, *self._source.missed)],
        }
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.write_facts(self._stopped)
        warn(
            f"reludiag: watching stopped after step {step:,} ({what}). The training continues "
            "unwatched; the recording ends there, and says so",
        )

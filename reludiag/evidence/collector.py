"""The evidence collector: collects, during a run, the evidence for the causes of deaths.

It measures the first step and the last step before each snapshot; of all others it only keeps a few
numbers of the weights, in `StepWatch`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reludiag.capture.hooks import Hook, hookable_modules
from reludiag.capture.named_models import NamedModels
from reludiag.capture.watched import Watch
from reludiag.evidence.batch_statistics import LAGGING, BatchStatisticsPass, norm_facts
from reludiag.evidence.budget import Budget, clock_of
from reludiag.evidence.deaths import DeathWatch, UnitState
from reludiag.evidence.initial_state import observe_initial_state
from reludiag.evidence.output_gradients import OutputMeter
from reludiag.evidence.step_inputs import is_plain_layer
from reludiag.evidence.step_watch import AroundStep, StepWatch
from reludiag.evidence.training_input import InputWatch
from reludiag.evidence.unit_histories import UnitHistories
from reludiag.evidence.update_ratios import UpdateMeter
from reludiag.loading.batch_contents import tensors_of
from reludiag.loading.model_inputs import ModelInputs, add_inputs
from reludiag.measure.batch_statistics import Mask, running_norms
from reludiag.measure.gradients import gradient_norm, step_gradients
from reludiag.measure.structure import GradientFacts
from reludiag.measure.unit_counts import SiteCounts
from reludiag.measure.verdicts import is_dead
from reludiag.recording.observations import (
    Death,
    Edit,
    FiringOnBatch,
    GradientNorm,
    History,
    Jump,
    Observations,
    OutputGradient,
    TrainingInput,
    Update,
)
from reludiag.sites.axes import UnitAxes
from reludiag.sites.guard import Guard, described, warn
from reludiag.sites.readable import readable
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    compiled_graphs,
    is_recomputed,
    is_transformed,
    without_dispatch_modes,
)

Result = TypeVar("Result")


class EvidenceCollector:
    """Gets snapshots and steps, and returns `Observations`.

    An error inside it never ends the training: it warns and stops collecting.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        every: int,
        probe: Sequence[Any] | None,
        unit_axes: UnitAxes | None,
        merge_calls: bool,
        share: float,
        guard: Guard,
        watch: Watch | None = None,
        compiled: bool = False,
    ) -> None:
        """`share` is that of the run's time in which deaths may be examined. `compiled` says that
        the training calls a compiled form of the model.
        """
        self._compiled, self._graphs = compiled, compiled_graphs()
        self._guard, self._undo = guard, guard.undo_list()
        self._undo_last = guard.undo_list(of_optimizer=True)
        self._undo_steps = guard.undo_list(of_optimizer=True)
        """What takes off the hooks of every step; only the end of the run does."""
        self._model, self._optimizers, self._every = model, optimizers, every
        self._unit_axes, self._merge_calls, self._watch = unit_axes, merge_calls, watch
        self._names: dict[nn.Module, str] = {}
        """The named models that are trained; none if there is one model without a name."""
        if isinstance(model, NamedModels):
            self._names = {model.models[name]: name for name in model.trained}
        self._batches = list(probe or [])
        self._has_probe = probe is not None
        self._budget = Budget(share, clock_of(model))
        self._deaths = (
            DeathWatch(model, self._batches, unit_axes, merge_calls, self._budget, watch)
            if self._has_probe and share
            else None
        )
        self._on_batch = (
            BatchStatisticsPass(model, self._batches, unit_axes, merge_calls, self._budget, watch)
            if self._has_probe and share
            else None
        )
        self._input = InputWatch(model, guard)
        self._meter = UpdateMeter(model)
        self._steps = StepWatch(model, optimizers)
        self._histories = UnitHistories(model, optimizers)
        self._outputs = OutputMeter()
        self._output_gradients: list[OutputGradient] = []
        self._updates: list[Update] = []
        self._gradient_norms: list[GradientNorm] = []
        self._producers: set[str] = set()
        self._expecting = False
        self._failed = ""
        """The note on the error that ended the collection."""
        self._gradients: GradientFacts | None = None
        """Of the first step; of several optimizers, one may have cleared the others'."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the recording stores as facts about the run, as JSON."""
        gradients = self._gradients
        facts = {
            "evidence": self._budget.share,
            **norm_facts(self._model),
            **self._histories.facts,
        }
        if gradients is None:
            return facts
        return {
            **facts,
            "gradients": {
                "parameters": gradients.parameters,
                "missing": gradients.missing,
                "zero": gradients.zero,
            },
        }

    @property
    def notes(self) -> list[str]:
        """What a reader of the recording must know of the evidence."""
        notes = [self._failed] if self._failed else []
        if self._on_batch is not None:
            return notes + self._on_batch.notes
        return notes + ([LAGGING] if self._has_probe and running_norms(self._model) else [])

    def begin(self, step: int = 0) -> None:
        """The run begins after this step: from now on its time counts, and its steps are watched.

        It has to be called before other hooks of the optimizers are set: a snapshot that is taken
        after a step has to know that step.
        """
        self._budget.begin()
        self._guarded(lambda: self._steps.begin(step), None)
        for index, optimizer in enumerate(self._optimizers):
            before = AroundStep(self._steps.before, index, self._fail)
            after = AroundStep(self._steps.after, index, self._fail)
            self._undo_steps.append(optimizer.register_step_pre_hook(before).remove)
            self._undo_steps.append(optimizer.register_step_post_hook(after).remove)

    def attach(self) -> None:
        """Watch the coming steps."""
        if not self._has_probe:
            for root in self._names or (self._model,):
                look = Hook(self._look_at_first_batch, self._guard, root, None)
                self._undo.append(root.register_forward_pre_hook(look, with_kwargs=True).remove)
        self._expect()

    def detach(self) -> None:
        """The run has ended."""
        self._input.detach()
        for undo in (self._undo, self._undo_last):
            while undo:
                undo.pop()()

    def next_wake(self, step: int) -> int:
        """The first step after `step` at whose end it must be called."""
        end = (step // self._every + 1) * self._every
        return end if end - step == 1 else end - 1

    def stepped(self, step: int) -> None:
        """A step has ended."""
        if step == 1 and len(self._optimizers) == 1:
            model = self._model
            trained = model.trained_models() if isinstance(model, NamedModels) else model
            self._gradients = self._guarded(lambda: step_gradients(trained), None)
        if self._expecting:
            self.detach()
            self._expecting = False
            if not self._has_probe:
                self._batches = []  # the first step was measured: its copy is no longer needed
            self._updates += self._guarded(lambda: self._meter.measure(step), [])
            norm = self._guarded(lambda: gradient_norm(self._model), None)
            if norm is not None and math.isfinite(norm):
                self._gradient_norms.append(GradientNorm(step, norm))
            self._guarded(lambda: self._histories.measure(step), None)
            self._output_gradients += self._guarded(lambda: self._outputs.measure(step), [])
        if (step + 1) % self._every == 0:
            self._expect()

    def at_snapshot(self, step: int, findings: Sequence[SiteCounts]) -> Observations:
        """The observations since the last snapshot."""
        states = [
            UnitState(
                finding.site,
                is_dead(finding.counts, finding.site.rectifier),
                ~finding.counts.nonfinite & (finding.counts.samples > 0),
            )
            for finding in findings
        ]
        self._producers = {
            producer
            for state in states
            if state.site.rectifier.can_die
            for producer in state.site.producers
        }
        observations, deaths = Observations(), self._deaths
        on_batch: tuple[FiringOnBatch, ...] = ()
        if (second := self._on_batch) is not None:
            on_batch = self._guarded(lambda: second.observe(step), on_batch)
        firing = {each.site: each.fires for each in on_batch}
        if step == 0:
            begun = [_not_only_in_eval(state, firing.get(state.site.key)) for state in states]
            observations = self._guarded(
                lambda: observe_initial_state(
                    self._model,
                    begun,
                    self._batches,
                    self._unit_axes,
                    self._merge_calls,
                    self._watch,
                    on_batch=bool(firing),
                ),
                observations,
            )
        if deaths is not None:
            died: list[Death] = self._guarded(lambda: deaths.observe(step, states), [])
            observations = replace(observations, deaths=tuple(died))
        nothing: tuple[tuple[Jump, ...], tuple[Edit, ...]] = (), ()
        jumps, edits = self._guarded(self._steps.take, nothing)
        updates, self._updates = tuple(self._updates), []
        norms, self._gradient_norms = tuple(self._gradient_norms), []
        outputs, self._output_gradients = tuple(self._output_gradients), []
        seen: tuple[TrainingInput, ...] = self._guarded(lambda: self._input.take(step), ())
        histories: list[History] = self._guarded(lambda: self._histories.observe(step, states), [])
        return replace(
            observations,
            updates=updates,
            histories=tuple(histories),
            jumps=jumps,
            edits=edits,
            gradient_norms=norms,
            on_batch=on_batch,
            training_inputs=seen,
            output_gradients=outputs,
        )

    def _expect(self) -> None:
        """Prepare to measure the next step."""
        self._expecting = True
        self._watch_passes()
        for optimizer in self._optimizers:
            before = BeforeMeasuredStep(self, self._guard)
            self._undo_last.append(optimizer.register_step_pre_hook(before).remove)
        if not self._optimizers:
            self.keep_weights()

    def keep_weights(self) -> None:
        """Copy the weights that the coming step will change, once for all optimizers."""
        if not self._meter.keeping:
            self._guarded(lambda: self._meter.keep(sorted(self._producers)), None)
            self._guarded(self._histories.keep, None)

    def _watch_passes(self) -> None:
        """See what the coming step's passes show of the layers' inputs and of the loss."""
        self._histories.begin_step()
        self._outputs.begin_step()
        if self._compiled or compiled_graphs() != self._graphs:
            return  # a hook that comes and goes would have compiled code compiled anew
        self._input.expect()
        if not self._optimizers:
            return

        def is_of_step() -> bool:
            return torch.is_grad_enabled() and not is_recomputed() and not is_transformed()

        def take_input(module: nn.Module, args: Any, output: Any) -> None:
            if is_of_step() and args and readable(args[0]) is not None:
                with DisableTorchFunction(), without_dispatch_modes():  # not part of the model
                    self._guarded(lambda: self._histories.take_input(module, args[0]), None)

        def take_output(module: nn.Module, args: Any, output: Any) -> None:
            if is_of_step():
                outputs = [each for each in tensors_of(output) if readable(each) is not None]
                self._guarded(lambda: self._histories.take_output(outputs), None)
                self._guarded(lambda: self._outputs.follow(outputs), None)

        for _, module in hookable_modules(self._model):
            if is_plain_layer(module):
                hook = Hook(take_input, self._guard, module, None)
                self._undo.append(module.register_forward_hook(hook).remove)
        if not self._names:  # what is shared with another model has ways to its output, too
            hook = Hook(take_output, self._guard, self._model, None)
            self._undo.append(self._model.register_forward_hook(hook).remove)

    def _look_at_first_batch(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self._names.get(module)
        is_known = any(name is None or name in batch for batch in self._batches)
        if is_known or is_recomputed() or is_transformed():
            return
        if any(readable(tensor) is None for tensor in tensors_of([args, kwargs])):
            return  # a pass outside training would not take it as the training does
        if name is not None:
            with DisableTorchFunction():
                values = [each.detach() if isinstance(each, Tensor) else each for each in args]
            add_inputs(self._batches, ModelInputs.of(name, values, kwargs, args))
        elif len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            with DisableTorchFunction():
                self._batches = [args[0].detach()]
        elif not args and kwargs:
            self._batches = [dict(kwargs)]

    def _guarded(self, observe: Callable[[], Result], nothing: Result) -> Result:
        if self._failed:
            return nothing
        try:
            with torch.no_grad():
                return observe()
        except Exception as error:  # it runs the model's code in unusual ways
            self._fail(error)
            return nothing

    def _fail(self, error: Exception) -> None:
        if self._failed:
            return
        what = f"no longer collected ({described(error)})"
        self._failed = f"Evidence for causes was {what}: later deaths have no cause."
        warn(
            f"reludiag: evidence for causes is {what}. The training and the rest of the "
            "recording continue"
        )


def _not_only_in_eval(state: UnitState, fires: Mask | None) -> UnitState:
    """A unit that fires on the statistics of the batch is not dead."""
    return state if fires is None else replace(state, dead=state.dead & ~fires)


class BeforeMeasuredStep:
    """A hook of an optimizer; a copy of the optimizer does not have it."""

    def __init__(self, collector: EvidenceCollector, guard: Guard) -> None:
        self._collector, self._guard = collector, guard

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._guard.error is None:
            try:
                self._collector.keep_weights()
            except Exception as error:
                self._guard.fail(error)

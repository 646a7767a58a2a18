"""PassTracker: begins and ends the forward passes of a model."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.capture.call_stack import is_nested
from reludiag.capture.calls import ExpectedCall
from reludiag.capture.following import Following
from reludiag.capture.forward_pass import PerThread
from reludiag.capture.idle import Idle
from reludiag.capture.missed import MissedCalls
from reludiag.capture.named_models import TrainingRule, owners_of, roots_of
from reludiag.capture.sample_counter import SampleCounter, shape_of
from reludiag.capture.site_registry import SiteRegistry
from reludiag.loading.batch_contents import row_tensors, tensors_of
from reludiag.sites.functional import OnCall, RectifierMode
from reludiag.sites.guard import Guard
from reludiag.sites.products import Product
from reludiag.sites.provenance import OperatorObserver, ProvenanceMode
from reludiag.sites.torch_internals import DisableTorchFunction, is_transformed, version_of
from reludiag.sites.watching import Watcher


class PassTracker:
    """The states that a thread's `ForwardPass` goes through; it alone sets them.

    | event | none | watched | unwatched |
    |---|---|---|---|
    | `run` | watched, none at its end | | |
    | `begin` | watched | deeper | deeper |
    | the same, evaluating without gradients, or of a replica | unwatched | deeper | deeper |
    | the same of a model, not within that pass | | as after `reset` | as after `reset` |
    | `end` | none | less deep, or none | less deep, or none |
    | `reset` | none | none | none |

    A pass is complete if it ended with an output. Complete passes are counted; they tell
    `following` that they were followed, and `idle` whether they went another way.

    Passes without gradients are watched if they count as training.
    """

    def __init__(
        self,
        model: nn.Module,
        registry: SiteRegistry,
        threads: PerThread,
        counter: SampleCounter,
        following: Following,
        idle: Idle,
        missed: MissedCalls,
        functional: bool,
        finds_consumers: bool,
        counts_samples: bool,
        on_function: OnCall,
        on_operator: OperatorObserver,
        watcher: Watcher,
        guard: Guard,
        rule: TrainingRule,
    ) -> None:
        """`on_function` and `on_operator` are what the modes of a watched pass call; `watcher` is
        what functions ask for that the user has registered.
        """
        self._model, self._registry, self._threads = model, registry, threads
        self._roots, self._rule = frozenset((model, *roots_of(model))), rule
        self._owners = owners_of(model)
        self._counter, self._following = counter, following
        self._idle, self._missed = idle, missed
        self._on_function, self._on_operator = on_function, on_operator
        self._watcher = watcher
        self._finds_consumers, self._counts_samples = finds_consumers, counts_samples
        self._open_passes = threads.open_passes
        self._guard = guard
        self.model_error: BaseException | None = None
        """What the model raised in the last `run` that raised."""
        self.passes = 0
        """Number of complete passes."""
        self.called: set[nn.Module] = set()
        """The modules that were called in those that count as training."""
        self.mixes_rows = False
        """Whether a followed pass made rows of several samples."""
        self.functional = functional
        """Whether the model calls rectifiers as functions. A followed pass may show it."""
        self.products: dict[str, Product] = {}
        """The first product with each weight, by the weight's name, in passes that were followed.
        """
        self.feeding: set[str] = set()
        """Names of the parameters that the output of a site depends on, in these passes."""

    def run(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        groups: tuple[Tensor, int] | None = None,
    ) -> None:
        """Call the model, or a function that calls it, as one pass."""
        current = self._threads.current
        current.groups, current.group_count = groups or (None, 0)
        try:
            self._open(self._model, [*args, *kwargs.values()])
            try:
                output = call(*args, **kwargs)
            except BaseException as error:
                self.model_error = error
                raise
        except BaseException:
            with contextlib.suppress(Exception):  # the error of the model is the one to tell
                self._close(complete=False)
            raise
        self._close(complete=True, output=output)
        self._guard.raise_error()

    def run_surely(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        groups: tuple[Tensor, int] | None = None,
    ) -> None:
        """Call the model. Call it again if a call on a new path could not be read.

        The second pass is followed and hands over only these calls. The model must repeat itself,
        as in eval mode. If it changed its input, the next pass is followed instead.
        """
        inputs = [t for t in tensors_of([args, kwargs]) if not t.is_inference()]
        versions = [version_of(tensor) for tensor in inputs]
        following, missed = self._following, self._missed
        following.begin_first_run()
        try:
            self.run(self._model, args, kwargs, groups)
            if not following.deferred:
                return
            following.begin_again()
            if versions != [version_of(tensor) for tensor in inputs]:
                missed.unrepeatable += len(following.deferred)
                return
            following.begin_second_run()
            transformed = missed.transformed.copy()
            self.run(self._model, args, kwargs, groups)
            missed.transformed = transformed
        finally:
            following.end_runs()

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before the forward of the model, or of a part that a loop may call alone."""
        current = self._threads.current
        if current.depth and module in self._roots:
            if is_nested(sys._getframe(), module, current.entrance):
                self._idle.path_varies = True
            else:
                self.reset()
        if current.depth:
            current.depth += 1
            return
        current.entrance = module
        if "_is_replica" in module.__dict__:  # of nn.DataParallel, which copies hooks along
            self._missed.replicas += 1
            current.depth, current.unwatched = 1, True
            return
        if not module.training and not self._rule.counts_pass(module):
            self._missed.evaluations += 1
            self._missed.evaluated.add(module)
            if not torch.is_grad_enabled():
                current.depth, current.unwatched = 1, True
                return
        self._open(module, [*args, *kwargs.values()])

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it; without an output, if it raised an error."""
        current = self._threads.current
        if current.depth == 1:
            self._close(complete=output is not None, output=output)
        elif current.depth:
            current.depth -= 1

    def reset(self) -> None:
        """Forget a forward pass that never ended: an interrupt skips the closing hook."""
        if self._threads.current.depth:
            self._close(complete=False)

    @property
    def expected_calls(self) -> list[ExpectedCall]:
        """Those that the next pass of this thread is expected to make."""
        return self._threads.current.expected_calls

    @property
    def evaluating(self) -> bool:
        """Whether the current pass of this thread is in eval mode."""
        root = self._threads.current.root
        return root is not None and not root.training

    def _open(self, root: nn.Module, values: list[Any]) -> None:
        current = self._threads.current
        current.depth = 1
        self._open_passes.add(current)
        if root is not current.root:
            current.begin_at(root)
        current.call_count, current.expected_count = 0, len(current.expected_calls)
        current.producer = current.pre_activation = None
        current.rectifier_depth = 0
        if not current.is_input_usual(values):
            with DisableTorchFunction():  # a subclass of tensors must not notice
                current.samples = self._counter.of(root, values)
                if current.groups is not None and current.samples is not None:
                    current.samples = len(current.groups)  # of graphs, the nodes
                current.input_shape = shape_of(values)
            current.first_layer = None
        traced = self._missed.traced
        whole = self._whole(root)
        follow = (
            not self._following.is_over
            and self._following.is_needed(whole, current.samples)
            and not traced
            and current.samples != 0  # an empty batch has no coordinates to follow
            and not is_transformed()
        )
        if follow:
            current.first_layer = None
            current.unobserved = Counter()
            consumers = self._finds_consumers and not self._following.is_whole(whole)
            current.provenance = ProvenanceMode(
                self._model, self._on_operator, consumers, guard=self._guard
            )
            if root in self._roots:  # what a part of it gets may come from another part
                with DisableTorchFunction():
                    current.provenance.mark_raw(tensors_of(values))
            if current.samples is not None:
                with DisableTorchFunction():
                    current.provenance.mark_inputs(row_tensors(values), current.samples)
                if self._counts_samples:
                    current.provenance.follow_rows(values, current.samples, current.groups)
            self._guard.modes.add(current.provenance)
            current.provenance.__enter__()
        if (self.functional and not traced) or follow:
            current.function_mode = RectifierMode(self._on_function, self._guard)
            self._guard.modes.add(current.function_mode)
            current.function_mode.__enter__()  # type: ignore[no-untyped-call]
        thread = current.thread
        current.outer_watcher, thread.watcher = thread.watcher, self._watcher

    def _whole(self, root: nn.Module | None) -> nn.Module:
        """The model that a pass of this module is a pass of: the model, or a named one."""
        return self._model if root is None else self._owners.get(root, self._model)

    def _close(self, complete: bool, output: Any = None) -> None:
        current = self._threads.current
        current.depth = 0
        if current.unwatched:
            current.unwatched = False
            return
        self._open_passes.discard(current)
        current.thread.watcher, current.outer_watcher = current.outer_watcher, None
        if complete and current.root is not None:
            self.passes += 1
            if current.root not in self.called and self._rule.counts_pass(current.root):
                self.called.add(current.root)
            self._idle.path_varies |= (
                current.root is not self._model or 0 < current.expected_count != current.call_count
            )
        if current.function_mode is not None:
            current.function_mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._guard.modes.discard(current.function_mode)
            current.function_mode = None
        if current.provenance is not None:
            current.provenance.__exit__(None, None, None)
            self._guard.modes.discard(current.provenance)
            self.products = {**current.provenance.products, **self.products}
            self.feeding |= current.provenance.feeding
            if complete and not self._missed.elsewhere:
                with DisableTorchFunction():
                    consumers = current.provenance.end(output)
                    selections = current.provenance.selections.end(output)
                self._registry.note_consumers(consumers)
                self._registry.selections.add(selections)
            rows = current.provenance.row_ids
            self.mixes_rows |= rows is not None and rows.mixes_rows
            current.provenance = None
            self._missed.unobserved |= current.unobserved
            if complete:
                whole = self._whole(current.root)
                self._following.note_followed(whole, current.samples)
            self.functional |= self._registry.has_functions()

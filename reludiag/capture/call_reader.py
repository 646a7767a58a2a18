"""CallReader: reads each call of a rectifier once, and hands it over."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from reludiag.capture.call_stack import calling_module
from reludiag.capture.calls import Call, CallSamples, ExpectedCall, UnitView
from reludiag.capture.following import Following
from reludiag.capture.forward_pass import ForwardPass, PerThread
from reludiag.capture.idle import Idle
from reludiag.capture.missed import MissedCalls
from reludiag.capture.named_models import TrainingRule
from reludiag.capture.rectifying_layers import Part, parts_of, product_of
from reludiag.capture.sample_counter import SampleCounter
from reludiag.capture.signals import signal_of
from reludiag.capture.site_registry import SiteRegistry
from reludiag.loading.batch_contents import tensors_of
from reludiag.sites.axes import Axes, are_samples, coordinates_of, label_of
from reludiag.sites.provenance import ProvenanceMode
from reludiag.sites.readable import kind_of, readable
from reludiag.sites.rectifiers import is_fused_rectifier, rectifier_call
from reludiag.sites.site import Rectifier
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    backward_task,
    innermost_transform,
    without_dispatch_modes,
)

Receiver = Callable[[Call], None]

_OBSERVED = Rectifier("observed", can_die=True, signed=True, is_asked_for=True)


class CallReader:
    """Is called by the hooks and modes of one capture at each call of a rectifier.

    It has no state of its own. Of a thread's `ForwardPass` it sets what changes from call to call,
    of an `ExpectedCall` its site and view. It adds to the registry and to the missed calls, lets
    calls wait in `following`, and tells `idle` where a call is not the one that was expected.
    """

    def __init__(
        self,
        receive: Receiver,
        wants_pre_activation: Callable[[bool, int | None], bool],
        note_pre_activation: Callable[[int, Tensor, UnitView], None] | None,
        paths: Mapping[nn.Module, str],
        rectifiers: Mapping[nn.Module, Rectifier],
        watched: Mapping[nn.Module, Rectifier],
        registry: SiteRegistry,
        threads: PerThread,
        counter: SampleCounter,
        following: Following,
        idle: Idle,
        missed: MissedCalls,
        rule: TrainingRule,
    ) -> None:
        self._receive = receive
        self._wants_pre_activation = wants_pre_activation
        self._note_pre_activation = note_pre_activation
        self._paths, self._rectifiers, self._watched = paths, rectifiers, watched
        self._registry, self._threads = registry, threads
        self._counter, self._following = counter, following
        self._idle, self._missed, self._rule = idle, missed, rule
        self._lock = threading.Lock()

    # What hooks and modes call

    def note_producer(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a module with weights: what runs next is fed by it."""
        current = self._threads.current
        if (
            current.producer is None
            and module is not current.first_layer
            and current.depth
            and current.root is not None
            and current.samples is not None
            and current.input_shape
            and args
            and isinstance(args[0], Tensor)
        ):
            self._note_first_layer(current, current.root, module, args[0])
        current.producer = module
        if current.provenance is not None:
            self._note_product(module, output, current.provenance)
        if not current.depth and self._threads.open_passes:
            self._missed.elsewhere = True

    def _note_first_layer(
        self, current: ForwardPass, root: nn.Module, layer: nn.Module, x: Tensor
    ) -> None:
        shape = current.input_shape
        with self._hidden(current):
            rows = None if current.provenance is None else current.provenance.origin_of(x).sample
            if self._counter.note_first_layer(root, shape, layer, x, rows):
                current.samples = None
                if current.provenance is not None:
                    current.provenance.row_ids = None
            else:
                current.first_layer = layer

    def keep_input(self, module: nn.Module, args: Any) -> None:
        """Called before an in-place rectifier, which will overwrite its input."""
        current = self._threads.current
        if args and isinstance(args[0], Tensor) and not current.unwatched:
            copy = self._copy_or_note(module, "", args[0])
            current.pre_activation = None if copy is None else (module, copy)

    def read_module(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a rectifier module."""
        current = self._threads.current
        if current.unwatched:
            return
        pre_activation = args[0] if args else None
        copy = current.pre_activation
        if copy is not None:
            current.pre_activation = None
            if copy[0] is module:
                pre_activation = copy[1]
        rectifier = self._rectifiers[module]
        if rectifier.is_composed and not isinstance(output, Tensor):
            output = next(tensors_of(output), output)
        self._hand_over(current, module, "", rectifier, pre_activation, output)

    def read_watched(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a module whose output is a site because the user says so."""
        current = self._threads.current
        if not current.unwatched:
            output = next(tensors_of(output), output)
            self._hand_over(current, module, "", self._watched[module], None, output)

    def read_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a layer that rectifies its own product: its input is not what is rectified."""
        current = self._threads.current
        if not current.unwatched:
            self._hand_over(current, module, "", self._rectifiers[module], None, output)

    def read_function(
        self, rectifier: Rectifier, pre_activation: Any, in_place: bool, call: Callable[[], Any]
    ) -> Any:
        """In place of a rectifying function, which `call` calls. Returns what that returns."""
        current = self._threads.current
        owner, hooked = calling_module(sys._getframe(1), self._paths)
        if current.rectifier_depth or (hooked and owner in self._rectifiers):
            current.rectifier_depth += 1
            try:
                return call()
            finally:
                current.rectifier_depth -= 1
        operator = "" if owner in self._rectifiers else rectifier.activation
        if in_place and isinstance(pre_activation, Tensor):
            pre_activation = self._copy_or_note(owner, operator, pre_activation)
        current.rectifier_depth += 1
        try:
            output = call()
        finally:
            current.rectifier_depth -= 1
        read = output
        if rectifier.is_composed and not isinstance(output, Tensor):
            read = next(tensors_of(output), output)
        self._hand_over(current, owner, operator, rectifier, pre_activation, read)
        return output

    def observe(self, name: str, tensor: Any, unit_axis: int | Sequence[int] | None) -> None:
        """For a tensor that a module has reported under a name."""
        owner, _ = calling_module(sys._getframe(1), self._paths)
        axes: Axes | None = None
        if unit_axis is not None and isinstance(tensor, Tensor):
            axes = coordinates_of(unit_axis, tuple(tensor.shape))
            if axes is None:
                why = f"unit_axis={unit_axis} is not an axis of its shape {list(tensor.shape)}"
                self._missed.unreadable[self._paths[owner], name] = why
                return
        self._hand_over(self._threads.current, owner, name, _OBSERVED, None, tensor, axes)

    def note_operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An operator of a followed forward pass; notes a rectifier that nothing else saw."""
        current = self._threads.current
        if current.rectifier_depth:
            return
        fused = is_fused_rectifier(name, args, kwargs)
        rectifier = None if fused else rectifier_call(name, args, kwargs)
        if not fused and (rectifier is None or not rectifier.can_die):
            return
        owner, hooked = calling_module(sys._getframe(1), self._paths)
        if not (hooked and owner in self._rectifiers):
            current.unobserved[self._paths[owner], name.strip("_")] += 1

    def sees_functions(self) -> bool:
        """Whether the function mode is at work, and an operator need not be followed."""
        current = self._threads.current
        return current.function_mode is not None and current.provenance is None

    # How a call is read

    def _copy_or_note(self, owner: nn.Module, operator: str, x: Tensor) -> Tensor | None:
        """A copy of a pre-activation that will be overwritten, if it still has to be read."""
        current = self._threads.current
        call = current.expected(owner, operator)
        site = None if call is None else call.site
        rectifier = self._rectifiers.get(owner)
        if (type(x) is Tensor and x.is_quantized) or (rectifier and rectifier.fired):
            return x.detach().clone()
        if not self._wants_pre_activation(
            self._is_training(owner), None if site is None else site.index
        ):
            return None
        if backward_task() != -1 or innermost_transform() is not None:
            return None
        with self._lock if current.function_mode is None else self._hidden(current):
            plain = readable(x)
            if plain is None:
                return None
            x = plain
            view = None if call is None or current.provenance is not None else call.view
            if (
                site is None
                or view is None
                or view.shape != x.shape
                or view.samples != current.samples
                or self._note_pre_activation is None
            ):
                return x.detach().clone()
            self._note_pre_activation(site.index, x, view)
            return None

    @contextlib.contextmanager
    def _hidden(self, current: ForwardPass) -> Iterator[None]:
        """One thread at a time, with the modes off for reludiag's own operators."""
        followed = current.provenance is not None
        with (
            self._lock,
            DisableTorchFunction(),
            without_dispatch_modes() if followed else contextlib.nullcontext(),
        ):
            yield

    def _hand_over(
        self,
        current: ForwardPass,
        owner: nn.Module,
        operator: str,
        rectifier: Rectifier,
        pre_activation: Any,
        output: Any,
        axes: Axes | None = None,
    ) -> None:
        """`axes` are where its units are, if who calls this says so."""
        # Between the model's kernels this code is never in the CPU's caches: every line costs time.
        if backward_task() != -1:  # is_recomputed()
            return
        if innermost_transform() is not None:  # is_transformed()
            self._missed.transformed[self._paths[owner], operator] += 1
            return
        if not isinstance(output, Tensor) or (type(output) is Tensor and output.is_quantized):
            self._hand_over_parts(current, owner, operator, rectifier, pre_activation, output)
            return
        with self._lock if current.function_mode is None else self._hidden(current):
            plain = readable(output)
            if plain is None:
                self._missed.unreadable[self._paths[owner], operator] = kind_of(output)
                return
            output, signal = plain, None
            if rectifier.has_own_rule:
                signal, problem = signal_of(rectifier, pre_activation, output)
                if signal is None:
                    self._missed.unreadable[self._paths[owner], operator] = problem
                    return
            if current.provenance is not None and rectifier.is_composed:
                current.provenance.note_rectified(pre_activation, output)
            call = current.expected(owner, operator)
            if call is None:
                call = self._unexpected(owner, operator)
            else:
                current.call_count += 1
            if call.is_left_out:
                return
            view = call.view
            if (
                view is None
                or view.shape != output.shape
                or view.samples != current.samples
                or current.provenance is not None
                or not current.depth
            ):
                view = self._settle(call, rectifier, output, current, axes=axes)
            site = call.site
            if site is None or view is None:
                return
            samples = None
            if current.provenance is not None or site.repeats or current.groups is not None:
                view, samples = self._samples(output, view, current)
                samples = replace(samples, is_first=call.is_first)
            only = self._following.only
            if only and call not in only:
                if samples is None or not self._following.is_again(call):
                    return
                samples = replace(samples, again=True)
            self._receive(
                Call(
                    site.index,
                    self._is_training(owner),
                    output,
                    pre_activation,
                    view,
                    samples,
                    signal,
                )
            )

    def _is_training(self, owner: nn.Module) -> bool:
        """Whether a call of it counts as one in training."""
        # During training this code is never in the CPU's caches, so the usual case comes first.
        return owner.training or self._rule.counts_call(owner, self._threads.current.root)

    def _samples(
        self,
        output: Tensor,
        view: UnitView,
        current: ForwardPass,
        returned: Tensor | None = None,
    ) -> tuple[UnitView, CallSamples]:
        """Which samples of the pass a call is of, and the view that fits this.

        `returned` is the model's own tensor, if that is another.
        """
        rows = None if current.provenance is None else current.provenance.row_ids
        count = current.samples if current.groups is None else current.group_count
        own = output if returned is None else returned
        ids = None if rows is None else rows.of(own.detach())
        if count is None:
            return view, CallSamples(view.rows)
        if ids is not None and rows is not None:
            in_order = view.rows == current.samples and rows.are_in_order(
                ids, output.shape, view.sample
            )
            if ids.is_chosen or not in_order:
                self._following.follow_always()
            if not in_order:
                view = view.without_samples(output)
                return view, view.call_samples(ids.values, count)
        groups = None
        if current.groups is not None and view.rows == current.samples:
            groups = current.groups = current.groups.to(output.device)
        return view, CallSamples(count, groups)

    def _part_samples(
        self, part: Part, view: UnitView, current: ForwardPass
    ) -> tuple[UnitView, CallSamples | None]:
        """The same for a part; None where its rows are samples, maybe not all of the pass."""
        if part.output.shape == part.returned.shape and view.rows in (1, current.samples):
            if current.provenance is None and current.groups is None:
                return view, None
            return self._samples(part.output, view, current, part.returned)
        if current.groups is None:
            return view, None
        # Its rows are in an order of their own: of which groups is not known.
        return view.without_samples(part.output), CallSamples(current.group_count)

    def _hand_over_parts(
        self,
        current: ForwardPass,
        owner: nn.Module,
        operator: str,
        rectifier: Rectifier,
        pre_activation: Any,
        output: Any,
    ) -> None:
        """The same for an output of which parts are read, or a copy in real numbers."""
        call = current.expected(owner, operator)
        if call is None:
            call = self._unexpected(owner, operator)
        else:
            current.call_count += 1
        path, readable, only = self._paths[owner], False, self._following.only
        with self._lock if current.function_mode is None else self._hidden(current):
            if isinstance(pre_activation, Tensor) and pre_activation.is_quantized:
                pre_activation = pre_activation.dequantize()
            for part in parts_of(owner, output, path):
                readable = True
                view = self._settle(call, rectifier, part.output, current, part)
                # Of how many samples such a call is depends on more than the rows of the pass.
                self._idle.path_varies |= part.samples not in (None, current.samples)
                if (only and call not in only) or call.site is None or view is None:
                    continue
                view, samples = self._part_samples(part, view, current)
                site, output = call.site.index, part.output
                training = self._is_training(owner)
                self._receive(Call(site, training, output, pre_activation, view, samples))
        if not readable:
            self._missed.unreadable[path, operator] = f"it returned a {type(output).__name__}"

    def _unexpected(self, owner: nn.Module, operator: str) -> ExpectedCall:
        """A call that is not the one that was expected."""
        current = self._threads.current
        if current.depth:
            self._idle.path_varies |= current.expected_count > 0
            return current.unexpected(owner, operator)
        self._idle.path_varies = True
        if self._threads.open_passes:
            self._missed.elsewhere = True
        return ExpectedCall(owner, operator, current.producer, 0, 0)

    def _note_product(self, module: nn.Module, output: Any, provenance: ProvenanceMode) -> None:
        """Tell what follows the forward where the units of a layer are that knows it best."""
        if isinstance(module, nn.RNN) and isinstance(output, tuple) and output:
            output = output[0]
        if isinstance(output, Tensor):
            origin = product_of(module, output, self._paths[module])
            if origin is not None:
                provenance.note_product(output.detach(), origin)

    def _settle(
        self,
        call: ExpectedCall,
        rectifier: Rectifier,
        output: Tensor,
        current: ForwardPass,
        part: Part | None = None,
        axes: Axes | None = None,
    ) -> UnitView | None:
        """Find and note of which site a call is. Returns its view, None if it cannot be read."""
        path = self._paths[call.owner]
        if output.numel() == 0:
            self._missed.without_rows.add((path, call.operator))
            return None
        provenance, following = current.provenance, self._following
        if axes and provenance and are_samples(axes, provenance.origin_of(output.detach())):
            why = f"unit_axis={label_of(axes)} is the axis of its samples"
            self._missed.unreadable[path, call.operator] = why
            call.is_left_out = True
            return None
        samples, may_wait = current.samples, False
        if part is not None and part.samples is not None:
            samples = part.samples
        elif not current.depth:
            samples = len(output) if output.ndim else None
        elif following.deferring and provenance is None:
            may_wait = True
        deferred = following.deferred if may_wait else None
        if part is None:
            match = self._registry.match(
                call, rectifier, output, samples, provenance, deferred, axes=axes
            )
        else:
            if provenance is not None:
                origin = provenance.origin_of(part.returned.detach())
                if part.origin is not None and part.origin.sample is not None:
                    origin = part.origin
                provenance.note_product(output.detach(), origin)
            match = self._registry.match(
                call, rectifier, output, samples, provenance, deferred, part.origin
            )
        self._registry.add(call, match)
        if provenance is not None and match.site is not None and match.layout is not None:
            returned = output if part is None else part.returned
            provenance.begin_site(
                match.site.index,
                match.site.identity.base,
                rectifier,
                returned.detach(),
                match.layout.unit,
            )
        call.site, call.view = match.site, match.view
        if match.site is not None and match.view is None:
            why = f"its shape {list(output.shape)} does not fit that of its first call"
            self._missed.unreadable[path, call.operator] = why
        if match.site is None and not match.left_out:
            following.deferred.add(call)
        return match.view

"""CallReader: reads each call of a rectifier once, and hands it over."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from reludiag.capture.call_stack import calling_module
from reludiag.capture.calls import Call, ExpectedCall, UnitView
from reludiag.capture.following import Following
from reludiag.capture.forward_pass import ForwardPass, PerThread
from reludiag.capture.idle import Idle
from reludiag.capture.missed import MissedCalls
from reludiag.capture.site_registry import SiteRegistry
from reludiag.sites.rectifiers import is_fused_rectifier, rectifier_call
from reludiag.sites.site import Rectifier
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    backward_task,
    innermost_transform,
)

Receiver = Callable[[Call], None]


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
        registry: SiteRegistry,
        threads: PerThread,
        following: Following,
        idle: Idle,
        missed: MissedCalls,
    ) -> None:
        self._receive = receive
        self._wants_pre_activation = wants_pre_activation
        self._note_pre_activation = note_pre_activation
        self._paths, self._rectifiers = paths, rectifiers
        self._registry, self._threads = registry, threads
        self._following, self._idle, self._missed = following, idle, missed
        self._lock = threading.Lock()

    # What hooks and modes call

    def note_producer(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a module with weights: what runs next is fed by it."""
        current = self._threads.current
        current.producer = module
        if not current.depth and self._threads.open_passes:
            self._missed.elsewhere = True

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
        self._hand_over(module, "", self._rectifiers[module], pre_activation, output)

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
        self._hand_over(owner, operator, rectifier, pre_activation, output)
        return output

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
        if not self._wants_pre_activation(owner.training, None if site is None else site.index):
            return None
        if backward_task() != -1 or innermost_transform() is not None:
            return None
        with self._lock if current.function_mode is None else self._hidden(current):
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
        provenance = current.provenance
        unfollowed = contextlib.nullcontext() if provenance is None else provenance.paused()
        with self._lock, DisableTorchFunction(), unfollowed:
            yield

    def _hand_over(
        self,
        owner: nn.Module,
        operator: str,
        rectifier: Rectifier,
        pre_activation: Any,
        output: Any,
    ) -> None:
        # Between the model's kernels this code is never in the CPU's caches: every line costs time.
        if not isinstance(output, Tensor) or backward_task() != -1:  # is_recomputed()
            return
        if innermost_transform() is not None:  # is_transformed()
            self._missed.transformed += 1
            return
        current = self._threads.current
        call = current.expected(owner, operator)
        if call is None:
            call = self._unexpected(owner, operator)
        else:
            current.call_count += 1
        with self._lock if current.function_mode is None else self._hidden(current):
            view = call.view
            if (
                view is None
                or view.shape != output.shape
                or view.samples != current.samples
                or current.provenance is not None
                or not current.depth
            ):
                view = self._settle(call, rectifier, output, current)
            only = self._following.only
            if only and call not in only:
                return
            if call.site is not None and view is not None:
                self._receive(Call(call.site.index, owner.training, output, pre_activation, view))

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

    def _settle(
        self, call: ExpectedCall, rectifier: Rectifier, output: Tensor, current: ForwardPass
    ) -> UnitView | None:
        """Find and note of which site a call is. Returns its view, None if it cannot be read."""
        if output.numel() == 0:
            return None
        provenance, following = current.provenance, self._following
        if output.is_quantized:  # integers are listed, but not read
            if provenance is not None:
                name = call.operator or rectifier.activation
                current.unobserved[self._paths[call.owner], name] += 1
            return None
        samples, may_wait = current.samples, False
        if not current.depth:
            samples = len(output) if output.ndim else None
        elif following.deferring and provenance is None:
            may_wait = True
        match = self._registry.match(
            call, rectifier, output, samples, provenance, following.deferred if may_wait else None
        )
        self._registry.add(call, match)
        if provenance is not None and match.site is not None and match.layout is not None:
            provenance.begin_site(
                match.site.index,
                match.site.identity.base,
                output.detach(),
                match.layout.unit,
            )
        call.site, call.view = match.site, match.view
        if match.site is None:
            following.deferred.add(call)
        return match.view

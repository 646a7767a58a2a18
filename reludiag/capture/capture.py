"""Capture: sees every call of a model's rectifiers once, names its site, hands over the tensor.

Forward hooks on rectifier modules do the seeing; a function mode, entered only for models that
call rectifiers as functions, sees the rest. Hooks on the modules with weights remember which of
them ran last, which tells the calls of a reused rectifier apart. The first forward is also
followed operator by operator, to find the unit axes, and the rectifiers that nothing can read.
"""

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.utils.hooks import RemovableHandle

from reludiag.capture.calls import Call, Reading, Rest, Turn
from reludiag.capture.forward_pass import Pass, ThisThread
from reludiag.capture.fused import Unfused, fusible
from reludiag.capture.hooks import (
    CALL,
    INNER,
    FrozenHook,
    Hook,
    backward_task,
    entrances,
    forget_compiled,
    innermost_transform,
    is_transformed,
    rows_of,
    watched,
)
from reludiag.capture.site_registry import Places
from reludiag.sites.functional import RectifierMode, functional_calls
from reludiag.sites.provenance import ProvenanceMode, tensors_in
from reludiag.sites.rectifiers import Rectifier, is_fused_rectifier, rectifier_call
from reludiag.sites.site import Site, rectifier_modules

_SETTLED = 32
"""After so many passes that went the same way, the next is expected to."""

Receiver = Callable[[Call], None]


class Capture:
    """Watches a model between `attach()` and `detach()`; sites are known as calls are first met.

    A pass is what `run` calls; `in_loop` it stands in a training loop, and a pass is told by hooks:
    the loop may call a part of the model alone, as in `model.encoder(x)`, and it may copy the model
    meanwhile, save it or compile it. Passes in evaluation mode that ask for no gradient are counted
    then and not watched, so that they run as they would.

    `wants_before(training, site)` says whether the receiver will read the pre-activation of a call,
    which is expected to be of that site (None: of one never met). Where that is overwritten by the
    call, it is handed to `note_before(site, before, reading)` ahead of it, or without that copied.
    `unit_axes` maps names or modules of sites to the axis of their units, where the one found is to
    be overruled.
    """

    def __init__(
        self,
        model: nn.Module,
        receive: Receiver,
        wants_before: Callable[[bool, int | None], bool] = lambda training, site: False,
        note_before: Callable[[int, Tensor, Reading], None] | None = None,
        unit_axes: Mapping[str, int] | None = None,
        in_loop: bool = False,
    ) -> None:
        self.model = model
        self.unobserved: Counter[tuple[str, str]] = Counter()
        """(owner module, operator) -> rectifier calls in a followed forward that nothing read."""
        self.evaluations = 0
        """Passes in evaluation mode, but for those while it rested."""
        self.transformed = 0
        """Calls inside a `torch.func` transform, which cannot be read from outside."""
        self.unread = 0
        """Calls that only a second run could read, of a batch that could not be run again."""
        self._receive = receive
        self._wants_before = wants_before
        self._note_before = note_before
        self._paths: dict[nn.Module, str] = {}
        for path, module in model.named_modules():
            self._paths.setdefault(module, path)
        self._rectifiers = {module: rectifier for _, module, rectifier in rectifier_modules(model)}
        self._producers = [
            module
            for _, module in watched(model)
            if module not in self._rectifiers and any(True for _ in module.parameters(False))
        ]
        self._places = Places(model, self._paths, dict(unit_axes or {}))
        self._in_loop = in_loop
        self._hooks = self._make_hooks()
        self._handles: list[RemovableHandle | Unfused] = []
        self._functions = functional_calls(model)
        self._functional = bool(self._functions)
        self._followed = self._followed_one = False
        self._may_run_again = False
        self._only: set[Turn] = set()
        """If there are any, no calls but these are handed over."""
        self._open = 0
        self._passes = 0
        self._wanders = False
        """Whether passes went different ways, or began elsewhere than at the model."""
        self.traced = False
        """Whether the hooks were called from compiled code, where functions are not seen."""
        self._resting: Rest | None = None
        self._complete = 0, False
        """Whether all rectifiers were called, as of so many places."""
        self._elsewhere = False
        self._thread = ThisThread()
        self._lock = threading.Lock()

    @property
    def sites(self) -> list[Site]:
        """In the order of their first call. A name may change when another path is first taken."""
        return self._places.sites

    @property
    def overruled(self) -> set[str]:
        """Names of `unit_axes` that were met."""
        return self._places.overruled

    @property
    def followed(self) -> bool:
        """Whether a whole forward was followed, so that no other needs to be."""
        return self._followed

    @property
    def passes(self) -> int:
        """Number of forwards seen."""
        return self._passes

    @property
    def functional(self) -> bool:
        """Whether the model calls rectifiers as functions."""
        return self._functional

    @property
    def elsewhere(self) -> bool:
        """Whether part of a forward ran in another thread, where functions are not seen."""
        return self._elsewhere and self._functional

    def attach(self) -> None:
        """Register the hooks."""
        self._handles = [register() for register in self._hooks]
        for module in () if self._in_loop else fusible(self.model):
            unfused = Unfused(module, self._sees_functions, self._called_as_function)
            unfused.attach()
            self._handles.append(unfused)

    def _make_hooks(self) -> list[Callable[[], RemovableHandle]]:
        """What registers each hook."""
        made: list[Callable[[], RemovableHandle]] = []

        def hook(
            module: nn.Module, target: Callable[..., None], reads: str | None = ""
        ) -> Hook | FrozenHook:
            if self._in_loop:
                return Hook(target, module, reads, self._note_traced)
            return FrozenHook(target)

        for module in entrances(self.model) if self._in_loop else ():
            begin, end = hook(module, self._begin, "input"), hook(module, self._end)
            made += [
                partial(module.register_forward_pre_hook, begin, prepend=True, with_kwargs=True),
                partial(module.register_forward_hook, end, always_call=True),
            ]
        for module in self._producers:
            made.append(partial(module.register_forward_hook, hook(module, self._produced)))
        for module in self._rectifiers:
            if getattr(module, "inplace", False):
                about_to = hook(module, self._about_to, None)
                made.append(partial(module.register_forward_pre_hook, about_to))
            called = hook(module, self._called, "output")
            made.append(partial(module.register_forward_hook, called))
        return made

    def _note_traced(self) -> None:
        self.traced = True

    def rest(self, known: Collection[int]) -> None:
        """Watch nothing for now but how many samples come: there is nothing else to learn of them.

        `known` are the sites of which that is so. It does not rest where a call might be missed
        that was never seen before: where passes went different ways, or there are rectifiers that
        were not called yet.
        """
        if (
            self._resting is not None
            or self._wanders
            or self.traced  # compiled code does not see that hooks come and go
            or self._passes < _SETTLED
            or not self.model.training
            or not self._all_seen()
        ):
            return
        turns = [(turn, turn.owner.training) for turn in self._thread.now.turns]
        if any(
            training and (turn.place is None or turn.place.index not in known)
            for turn, training in turns
        ):
            return
        self.detach()
        self._resting = Rest(self.model, turns, self._note_traced)

    def _all_seen(self) -> bool:
        """Whether each rectifier that is known of was called."""
        if self._complete[0] != len(self._places):
            modules = self._rectifiers.keys() - {turn.owner for turn in self._thread.now.turns}
            complete = not modules and not self._functions - self._places.functions()
            self._complete = len(self._places), complete
        return self._complete[1]

    @property
    def resting(self) -> bool:
        """Whether it watches nothing for now."""
        return self._resting is not None

    @property
    def evaluating(self) -> bool:
        """Whether the pass that this thread is in is one in evaluation mode."""
        root = self._thread.now.root
        return root is not None and not root.training

    def wake(self) -> list[tuple[int, bool, int, int]]:
        """Watch again. Returns (site, in training, calls, samples) of what was called meanwhile."""
        if self._resting is None:
            return []
        calls, evaluations = self._resting.end()
        self.evaluations += evaluations
        self._resting = None
        self.attach()
        if self.traced:
            forget_compiled()
        return calls

    def detach(self) -> None:
        """Remove every hook and leave no mode behind, whatever state a forward was left in."""
        self.reset()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def reset(self) -> None:
        """Forget a forward that never ended: an interrupt does not run the closing hook."""
        if self._thread.now.depth:
            self._close(complete=False)

    def uncalled(self) -> list[Site]:
        """A site for each rectifier module that no forward has called."""
        called = {place.path for place in self._places if not place.identity.operator}
        paths = {self._paths[module]: rectifier for module, rectifier in self._rectifiers.items()}
        names = {path: path or type(self.model).__name__ for path in paths}
        return [
            Site(names[path], names[path], path, "", rectifier, "", None, None, None)
            for path, rectifier in paths.items()
            if path not in called
        ]

    # The forward pass

    def run(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the model, or what calls it, as one pass."""
        self._open_pass(self.model, [*args, *kwargs.values()])
        try:
            call(*args, **kwargs)
        except BaseException:
            self._close(complete=False)
            raise
        self._close(complete=True)

    def run_surely(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the model; again, if it met a call of a path not taken before that cannot be read.

        The second pass is followed, and hands over no call but these. The model must do the same
        again, as it does in eval mode. Where it changed its input, the next pass is followed.
        """
        inputs = [t for t in tensors_in([*args, *kwargs.values()]) if not t.is_inference()]
        versions = [tensor._version for tensor in inputs]
        self._may_run_again = True
        try:
            self.run(self.model, args, kwargs)
            self._may_run_again = False
            if not self._places.waiting:
                return
            self._followed = self._followed_one = False
            if versions != [tensor._version for tensor in inputs]:
                self.unread += len(self._places.waiting)
            else:
                self._only = self._places.waiting
                transformed = self.transformed
                self.run(self.model, args, kwargs)
                self.transformed = transformed
        finally:
            self._may_run_again = False
            self._only, self._places.waiting = set(), set()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        now = self._thread.now
        if now.depth and module is self.model:
            if self._is_nested():
                self._wanders = True
            else:
                self.reset()
        if now.depth:
            now.depth += 1
            return
        if not module.training:
            self.evaluations += 1
            if not torch.is_grad_enabled():
                now.depth, now.idle = 1, True
                return
        self._open_pass(module, [*args, *kwargs.values()])

    def _open_pass(self, root: nn.Module, values: list[Any]) -> None:
        now = self._thread.now
        now.depth = 1
        self._open += 1
        now.turn, now.known = 0, len(now.turns)
        now.root = root
        now.producer = now.before = None
        now.inside = 0
        now.samples = rows_of(values)
        known = self._followed or (self._followed_one and now.samples == 1)
        # An empty batch has no coordinates to follow.
        follow = not (known or self.traced) and now.samples != 0 and not is_transformed()
        if follow:
            now.unobserved = Counter()
            now.following = ProvenanceMode(self.model, self._operator)
            if now.samples is not None:
                now.following.mark_inputs(tensors_in(values), now.samples)
            now.following.__enter__()  # type: ignore[no-untyped-call]
        if (self._functional and not self.traced) or follow:
            now.mode = RectifierMode(self._called_as_function)
            now.mode.__enter__()  # type: ignore[no-untyped-call]

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        now = self._thread.now
        if now.depth == 1:
            self._close(complete=output is not None)
        elif now.depth:
            now.depth -= 1

    def _close(self, complete: bool) -> None:
        now = self._thread.now
        now.depth = 0
        if now.idle:
            now.idle = False
            return
        self._open -= 1
        if complete:
            self._passes += 1
            self._wanders |= now.root is not self.model or 0 < now.known != now.turn
        if now.mode is not None:
            now.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            now.mode = None
        if now.following is not None:
            now.following.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            now.following = None
            self.unobserved |= now.unobserved
            # In a batch of one, every axis of length one may be the samples'.
            self._followed_one |= complete and now.samples == 1
            self._followed |= complete and now.samples != 1
            self._functional |= any(place.identity.operator for place in self._places)

    def _is_nested(self) -> bool:
        """Whether the model is being called from inside its own forward.

        Told by the stack: after an interrupt the last forward never ended, and looks the same.
        """
        frame: FrameType | None = sys._getframe()
        calls = 0
        while frame is not None:
            if frame.f_code is CALL:
                calls += frame.f_locals.get("self") is self.model
            frame = frame.f_back
        return calls > 1

    def _produced(self, module: nn.Module, args: Any, output: Any) -> None:
        now = self._thread.now
        now.producer = module
        if not now.depth and self._open:
            self._elsewhere = True

    def _sees_functions(self) -> bool:
        """Whether the mode is at work, and an operator need not be followed."""
        now = self._thread.now
        return now.mode is not None and now.following is None

    # Rectifier calls

    def _about_to(self, module: nn.Module, args: Any) -> None:
        """Before a rectifier that works in place: its input is about to be overwritten."""
        now = self._thread.now
        if args and isinstance(args[0], Tensor) and not now.idle:
            kept = self._kept(module, "", args[0])
            now.before = None if kept is None else (module, kept)

    def _kept(self, owner: nn.Module, operator: str, before: Tensor) -> Tensor | None:
        """A copy of a pre-activation that is about to be overwritten, if it is yet to be read."""
        now = self._thread.now
        turn = now.expected(owner, operator)
        place = None if turn is None else turn.place
        if not self._wants_before(owner.training, None if place is None else place.index):
            return None
        if backward_task() != -1 or innermost_transform() is not None:
            return None
        with self._lock if now.mode is None else self._unseen(now):
            reading = None if turn is None or now.following is not None else turn.reading
            if (
                place is None
                or reading is None
                or reading.shape != before.shape
                or reading.samples != now.samples
                or self._note_before is None
            ):
                return before.detach().clone()
            self._note_before(place.index, before, reading)
            return None

    @contextlib.contextmanager
    def _unseen(self, now: Pass) -> Iterator[None]:
        """One thread at a time; and our own operators are no business of the modes."""
        unfollowed = contextlib.nullcontext() if now.following is None else now.following.paused()
        with self._lock, DisableTorchFunction(), unfollowed:
            yield

    def _called(self, module: nn.Module, args: Any, output: Any) -> None:
        now = self._thread.now
        if now.idle:
            return
        before = args[0] if args else None
        kept = now.before
        if kept is not None:
            now.before = None
            if kept[0] is module:
                before = kept[1]
        self._hand_over(module, "", self._rectifiers[module], before, output)

    def _called_as_function(
        self, rectifier: Rectifier, before: Any, in_place: bool, call: Callable[[], Any]
    ) -> Any:
        now = self._thread.now
        owner, hooked = self._owner()
        if now.inside or (hooked and owner in self._rectifiers):
            now.inside += 1
            try:
                return call()
            finally:
                now.inside -= 1
        operator = "" if owner in self._rectifiers else rectifier.activation
        if in_place and isinstance(before, Tensor):
            before = self._kept(owner, operator, before)
        now.inside += 1
        try:
            output = call()
        finally:
            now.inside -= 1
        self._hand_over(owner, operator, rectifier, before, output)
        return output

    def _hand_over(
        self, owner: nn.Module, operator: str, rectifier: Rectifier, before: Any, output: Any
    ) -> None:
        # In between the model's own kernels this code is cold each time: every line of it costs.
        if not isinstance(output, Tensor) or backward_task() != -1:  # is_recomputed()
            return
        if innermost_transform() is not None:  # is_transformed()
            self.transformed += 1
            return
        now = self._thread.now
        turn = now.expected(owner, operator)
        if turn is None:
            turn = self._next_turn(owner, operator)
        else:
            now.turn += 1
        following = now.following
        with self._lock if now.mode is None else self._unseen(now):
            reading, samples = turn.reading, now.samples
            if (
                reading is None
                or reading.shape != output.shape
                or reading.samples != samples
                or following is not None
                or not now.depth
            ):
                if output.numel() == 0:
                    return
                if output.is_quantized:  # integers, which are listed and not read
                    if following is not None:
                        name = operator or rectifier.activation
                        now.unobserved[self._paths[owner], name] += 1
                    return
                if not now.depth:
                    samples = len(output) if output.ndim else None
                waits = self._may_run_again and following is None and bool(now.depth)
                reading = self._places.find(turn, rectifier, output, samples, following, waits)
            if self._only and turn not in self._only:
                return
            if turn.place is not None and reading is not None:
                self._receive(Call(turn.place.index, owner.training, output, before, reading))

    def _next_turn(self, owner: nn.Module, operator: str) -> Turn:
        """Where in the pass a call is that is not what was expected."""
        now = self._thread.now
        producer = now.producer
        if not now.depth:
            self._wanders = True
            if self._open:
                self._elsewhere = True
            return Turn(owner, operator, producer, 0, 0)
        turns, index = now.turns, now.turn
        now.turn += 1
        del turns[index:]
        self._wanders |= now.known > 0
        same = [turn for turn in turns if turn.owner is owner and turn.operator == operator]
        ordinal = sum(turn.producer is producer for turn in same)
        turns.append(Turn(owner, operator, producer, len(same), ordinal))
        return turns[index]

    def _owner(self) -> tuple[nn.Module, bool]:
        """The innermost module at work, and whether its hooks will run when it is done."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            if code.co_argcount and code is not CALL:
                module = frame.f_locals.get("self")
                if isinstance(module, nn.Module) and module in self._paths:
                    above = frame.f_back
                    return module, above is not None and above.f_code in (CALL, INNER)
            frame = frame.f_back
        return self.model, False

    def _operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An operator of a followed forward: a rectifier that nothing else saw is written down."""
        if self._thread.now.inside:
            return
        fused = is_fused_rectifier(name, args, kwargs)
        rectifier = None if fused else rectifier_call(name, args, kwargs)
        if not fused and (rectifier is None or not rectifier.can_die):
            return
        owner, hooked = self._owner()
        if not (hooked and owner in self._rectifiers):
            self._thread.now.unobserved[self._paths[owner], name.strip("_")] += 1

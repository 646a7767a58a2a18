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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reludiag.coordinates import Coordinate, Origin
from reludiag.functional import RectifierMode, functional_calls
from reludiag.provenance import ProvenanceMode, tensors_in
from reludiag.rectifiers import Rectifier, is_fused_rectifier, rectifier_call
from reludiag.sites import (
    Identity,
    Layout,
    Site,
    arrange,
    find_layout,
    rectifier_modules,
    site_names,
)

Receiver = Callable[["Call"], None]


class Call:
    """One call of a rectifier. Its tensors are the model's own memory: read them at once."""

    __slots__ = ("_before", "_layout", "_output", "_samples", "site", "training")

    def __init__(
        self,
        site: int,
        training: bool,
        output: Tensor,
        before: Tensor | None,
        layout: Layout,
        samples: int | None,
    ) -> None:
        self.site = site
        """Index in `Capture.sites`."""
        self.training = training
        """The training flag of the module that called."""
        self._output, self._before = output, before
        self._layout, self._samples = layout, samples

    @property
    def rows(self) -> int:
        """Number of samples; 1 where they cannot be told apart."""
        sample = self._layout.sample
        if sample is None:
            return 1
        if self._output.shape == self._layout.shape and self._samples in (None, sample.size):
            return sample.size
        arranged = self.output()
        return 0 if arranged is None else len(arranged)

    @property
    def dtype(self) -> torch.dtype:
        """Of the output."""
        return self._output.dtype

    @property
    def device(self) -> torch.device:
        """Of the output."""
        return self._output.device

    def output(self) -> Tensor | None:
        """The output as `[sample, unit, position]`; None if it does not fit its site."""
        return arrange(self._output, self._layout, self._samples)

    def before(self) -> Tensor | None:
        """The pre-activation likewise; None where it was overwritten before it was asked for."""
        if self._before is None or self._before.shape != self._output.shape:
            return None
        return arrange(self._before.detach(), self._layout, self._samples)


@dataclass
class _Place:
    """A site while it is being found."""

    index: int
    path: str
    identity: Identity
    rectifier: Rectifier
    layout: Layout
    label: str
    producer: str | None
    norm: str | None
    numbers: set[int] = field(default_factory=set)
    """Which call of its owner it was, in each of the forwards that it was seen in."""


class _Pass(threading.local):
    """The forward pass that a thread is in."""

    def __init__(self) -> None:
        self.depth = 0
        self.samples: int | None = None
        self.calls: Counter[tuple[Any, ...]] = Counter()
        self.producer: nn.Module | None = None
        self.mode: RectifierMode | None = None
        self.following: ProvenanceMode | None = None
        self.inside = 0
        """Depth of rectifier calls: what they call themselves is theirs."""
        self.before: tuple[nn.Module, Tensor] | None = None


class Capture:
    """Watches a model between `attach()` and `detach()`; sites are known as calls are first met.

    `wants_before(training)` says whether the receiver reads pre-activations now. `unit_axes` maps
    names or modules of sites to the axis of their units, where the one found is to be overruled.
    """

    def __init__(
        self,
        model: nn.Module,
        receive: Receiver,
        wants_before: Callable[[bool], bool] = lambda training: False,
        unit_axes: Mapping[str, int] | None = None,
    ) -> None:
        self.model = model
        self.unobserved: Counter[tuple[str, str]] = Counter()
        """(owner module, operator) -> rectifier calls in a followed forward that nothing read."""
        self.transformed = 0
        """Calls inside a `torch.func` transform, which cannot be read from outside."""
        self.overruled: set[str] = set()
        """Names of `unit_axes` that were met."""
        self._receive = receive
        self._wants_before = wants_before
        self._unit_axes = dict(unit_axes or {})
        self._paths: dict[nn.Module, str] = {}
        for path, module in model.named_modules():
            self._paths.setdefault(module, path)
        self._rectifiers = {
            module: (path, rectifier) for path, module, rectifier in rectifier_modules(model)
        }
        self._producers: dict[nn.Module, str] = {}
        for path, module in _watched(model):
            if module not in self._rectifiers and any(True for _ in module.parameters(False)):
                self._producers[module] = path
        self._places: list[_Place] = []
        self._found: dict[tuple[Any, ...], tuple[_Place, Layout]] = {}
        self._names: list[Site] | None = None
        self._handles: list[RemovableHandle] = []
        self._functional = bool(functional_calls(model))
        self._followed = False
        self._open = 0
        self._elsewhere = False
        self._pass = _Pass()
        self._lock = threading.Lock()

    @property
    def sites(self) -> list[Site]:
        """In the order of their first call. A name may change when another path is first taken."""
        if self._names is None:
            names = site_names([(place.identity, place.numbers) for place in self._places])
            self._names = [
                Site(
                    key=str(place.identity),
                    name=name,
                    module=place.path,
                    operator=place.identity.operator,
                    rectifier=place.rectifier,
                    unit_axis=place.label,
                    units=place.layout.unit.size,
                    producer=place.producer,
                    norm=place.norm,
                )
                for name, place in zip(names, self._places, strict=True)
            ]
        return self._names

    @property
    def elsewhere(self) -> bool:
        """Whether part of a forward ran in another thread, where functions are not seen."""
        return self._elsewhere and self._functional

    def attach(self) -> None:
        """Register the hooks."""
        for module in _entrances(self.model):
            self._handles += [
                module.register_forward_pre_hook(
                    _Hook(self._begin), with_kwargs=True, prepend=True
                ),
                module.register_forward_hook(_Hook(self._end), always_call=True),
            ]
        for module in self._producers:
            self._handles.append(module.register_forward_hook(_Hook(self._produced)))
        for module in self._rectifiers:
            if getattr(module, "inplace", False):
                self._handles.append(module.register_forward_pre_hook(_Hook(self._about_to)))
            self._handles.append(module.register_forward_hook(_Hook(self._called)))

    def detach(self) -> None:
        """Remove every hook and leave no mode behind, whatever state a forward was left in."""
        self.reset()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def reset(self) -> None:
        """Forget a forward that never ended: an interrupt does not run the closing hook."""
        if self._pass.depth:
            self._close(complete=False)

    def uncalled(self) -> list[Site]:
        """A site for each rectifier module that no forward has called."""
        called = {place.path for place in self._places if not place.identity.operator}
        names = {path: path or type(self.model).__name__ for path, _ in self._rectifiers.values()}
        return [
            Site(names[path], names[path], path, "", rectifier, "", None, None, None)
            for path, rectifier in self._rectifiers.values()
            if path not in called
        ]

    # The forward pass

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        now = self._pass
        if now.depth and module is self.model and not self._is_nested():
            self.reset()
        now.depth += 1
        if now.depth > 1:
            return
        self._open += 1
        now.calls.clear()
        now.producer = now.before = None
        now.inside = 0
        values = [*args, *kwargs.values()]
        now.samples = _rows(values)
        # An empty batch has no coordinates to follow.
        follow = not self._followed and now.samples != 0 and not _is_transformed()
        if follow:
            self.unobserved.clear()
            now.following = ProvenanceMode(self.model, self._operator)
            if now.samples is not None:
                now.following.mark_inputs(tensors_in(values), now.samples)
            now.following.__enter__()  # type: ignore[no-untyped-call]
        if self._functional or follow:
            now.mode = RectifierMode(self._called_as_function)
            now.mode.__enter__()  # type: ignore[no-untyped-call]

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._pass.depth == 1:
            self._close(complete=output is not None)
        elif self._pass.depth:
            self._pass.depth -= 1

    def _close(self, complete: bool) -> None:
        now = self._pass
        now.depth = 0
        self._open -= 1
        if now.mode is not None:
            now.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            now.mode = None
        if now.following is not None:
            now.following.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            now.following = None
            # In a batch of one, every axis of length one may be the samples': follow the next too.
            self._followed = complete and now.samples != 1
            self._functional |= any(place.identity.operator for place in self._places)

    def _is_nested(self) -> bool:
        """Whether the model is being called from inside its own forward.

        Told by the stack: after an interrupt the last forward never ended, and looks the same.
        """
        frame: FrameType | None = sys._getframe()
        calls = 0
        while frame is not None:
            if frame.f_code is _CALL:
                calls += frame.f_locals.get("self") is self.model
            frame = frame.f_back
        return calls > 1

    def _produced(self, module: nn.Module, args: Any, output: Any) -> None:
        now = self._pass
        now.producer = module
        if not now.depth and self._open:
            self._elsewhere = True

    # Rectifier calls

    def _about_to(self, module: nn.Module, args: Any) -> None:
        """Before a rectifier that works in place: its input is about to be overwritten."""
        if args and isinstance(args[0], Tensor) and self._wants_before(module.training):
            self._pass.before = module, self._kept(args[0])

    def _kept(self, before: Tensor) -> Tensor:
        """A copy, gone as soon as the call was read."""
        following = self._pass.following
        with torch.no_grad(), following.paused() if following else contextlib.nullcontext():
            return before.detach().clone()

    def _called(self, module: nn.Module, args: Any, output: Any) -> None:
        before: Tensor | None = None
        if getattr(module, "inplace", False):
            kept, self._pass.before = self._pass.before, None
            if kept is not None and kept[0] is module:
                before = kept[1]
        elif args and isinstance(args[0], Tensor):
            before = args[0]
        if module in self._rectifiers:
            path, rectifier = self._rectifiers[module]
            self._hand_over(module, path, "", rectifier, before, output)

    def _called_as_function(
        self, rectifier: Rectifier, before: Any, in_place: bool, call: Callable[[], Any]
    ) -> Any:
        now = self._pass
        owner, hooked = self._owner()
        if now.inside or (hooked and owner in self._rectifiers):
            now.inside += 1
            try:
                return call()
            finally:
                now.inside -= 1
        kept: Tensor | None = before if isinstance(before, Tensor) else None
        if in_place and kept is not None:
            kept = self._kept(kept) if self._wants_before(owner.training) else None
        now.inside += 1
        try:
            output = call()
        finally:
            now.inside -= 1
        path = self._paths[owner]
        operator = "" if owner in self._rectifiers else rectifier.activation
        self._hand_over(owner, path, operator, rectifier, kept, output)
        return output

    def _hand_over(
        self,
        owner: nn.Module,
        path: str,
        operator: str,
        rectifier: Rectifier,
        before: Tensor | None,
        output: Any,
    ) -> None:
        if not isinstance(output, Tensor) or _is_recomputed():
            return
        if _is_transformed():
            self.transformed += 1
            return
        now, producer = self._pass, self._pass.producer
        number = ordinal = 0
        if now.depth:
            number, ordinal = now.calls[owner, operator], now.calls[owner, operator, producer]
            now.calls[owner, operator] += 1
            now.calls[owner, operator, producer] += 1
        elif self._open:
            self._elsewhere = True
        if output.numel() == 0:
            return
        if before is not None and _same_memory(before, output):
            before = None
        output = output.detach()
        samples = now.samples if now.depth else len(output) if output.ndim else None
        following = now.following
        key: tuple[Any, ...] = (owner, operator, producer, ordinal)
        with (
            self._lock,
            # Our own operators are no business of the modes.
            torch._C.DisableTorchFunction(),
            following.paused() if following else contextlib.nullcontext(),
        ):
            place, layout = self._found.get(key, (None, None))
            shape: tuple[int, ...] = ()
            if layout is not None and not layout.fits(output):
                # Where units are the positions of an axis of varying length, each is a site.
                shape = tuple(output.shape[1:])
                key = (*key, shape)
                place, layout = self._found.get(key, (None, None))
            if (
                place is None
                or layout is None
                or (following is not None and layout.sample_is_ambiguous)
            ):
                identity = Identity(
                    owner=path or type(self.model).__name__,
                    operator=operator,
                    fed_by="" if producer is None else self._producers[producer],
                    ordinal=ordinal,
                    shape=shape,
                )
                place, layout = self._meet(
                    place, path, identity, number, rectifier, output, samples
                )
                self._found[key] = place, layout
            if number not in place.numbers:
                place.numbers.add(number)
                self._names = None
            training = owner.training
            self._receive(Call(place.index, training, output, before, layout, samples))

    def _meet(
        self,
        known: _Place | None,
        path: str,
        identity: Identity,
        number: int,
        rectifier: Rectifier,
        output: Tensor,
        samples: int | None,
    ) -> tuple[_Place, Layout]:
        """A call met for the first time: find its unit axis.

        Of a `known` one only the layout is found anew.
        """
        now = self._pass
        origin: Origin | None = None
        if now.following is not None:
            origin = now.following.origin_of(output)
        layout, label = find_layout(
            output, origin, now.producer, samples, self._overruled(identity, number, output)
        )
        if known is not None:
            return known, layout
        place = _Place(
            index=len(self._places),
            path=path,
            identity=identity,
            rectifier=rectifier,
            layout=layout,
            label=label,
            producer=(origin.producer if origin is not None else None) or identity.fed_by or None,
            norm=origin.norm if origin is not None else None,
        )
        self._places.append(place)
        return place, layout

    def _overruled(self, identity: Identity, number: int, output: Tensor) -> Coordinate | None:
        for name in (
            f"{identity.base}#{number}" if number else identity.base,
            f"{identity.base}@{identity.fed_by}",
        ):
            axis = self._unit_axes.get(name)
            if axis is not None and -output.ndim <= axis < output.ndim:
                self.overruled.add(name)
                return Coordinate(axis % output.ndim, output.shape[axis])
        return None

    def _owner(self) -> tuple[nn.Module, bool]:
        """The innermost module at work, and whether its hooks will run when it is done."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            if code.co_argcount and code is not _CALL:
                module = frame.f_locals.get("self")
                if isinstance(module, nn.Module) and module in self._paths:
                    above = frame.f_back
                    return module, above is not None and above.f_code in (_CALL, _INNER)
            frame = frame.f_back
        return self.model, False

    def _operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An operator of a followed forward: a rectifier that nothing else saw is written down."""
        if self._pass.inside:
            return
        fused = is_fused_rectifier(name, args, kwargs)
        rectifier = None if fused else rectifier_call(name, args, kwargs)
        if not fused and (rectifier is None or not rectifier.can_die):
            return
        owner, hooked = self._owner()
        if not (hooked and owner in self._rectifiers):
            self.unobserved[self._paths[owner], name.strip("_")] += 1


_CALL = nn.Module._call_impl.__code__
# The function inside it that calls forward, where there are hooks.
_INNER = next(c for c in _CALL.co_consts if getattr(c, "co_name", None) == "inner")


class _Hook:
    """A hook that a copy of the model does not take along: copied or unpickled, it does nothing."""

    def __init__(self, target: Callable[..., None] | None) -> None:
        self._target = target

    def __call__(self, *args: Any) -> None:
        if self._target is not None:
            self._target(*args)

    def __deepcopy__(self, memo: Any) -> "_Hook":
        return _Hook(None)

    def __reduce__(self) -> Any:
        return _Hook, (None,)


def _watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules below `model`, but for those inside a fused layer with no rectifier module.

    A hook inside an encoder layer or an attention sends it off its fused path, which changes
    the last bits of its output; there is nothing to see there. TorchScript takes no hooks.
    """
    closed = tuple(
        path + "."
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention | torch.jit.ScriptModule)
        or (isinstance(module, nn.TransformerEncoderLayer) and not any(rectifier_modules(module)))
    )
    for path, module in model.named_modules():
        if (
            module is not model
            and not path.startswith(closed)
            and not isinstance(module, torch.jit.ScriptModule)
        ):
            yield path, module


def _entrances(model: nn.Module) -> Iterator[nn.Module]:
    """Where a forward pass may begin: the model, and the parts of it that a loop may call alone.

    A pass is told by its outermost call, so that `model.encoder(x)` is one as well.
    """
    yield model
    waiting = list(model.children())
    while waiting:
        module = waiting.pop(0)
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            waiting += module.children()
        elif not isinstance(
            module, nn.TransformerEncoderLayer | nn.MultiheadAttention | torch.jit.ScriptModule
        ) and any(True for _ in module.children()):
            yield module


def _rows(values: list[Any]) -> int | None:
    """The number of samples in a forward's arguments: rows of a tensor, or length of a list."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            return int(value.shape[0])
        if isinstance(value, dict):
            return _rows(list(value.values()))
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            return len(value)
    return None


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.numel() > 0)


def _is_recomputed() -> bool:
    """Whether this is activation checkpointing's second forward, run inside the backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def _is_transformed() -> bool:
    """Whether vmap, grad or jvp is at work: its tensors cannot be read from outside."""
    return torch._C._functorch.peek_interpreter_stack() is not None

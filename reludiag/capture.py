"""Capture: sees every call of a model's rectifier modules, names its site, hands over the tensor.

Forward hooks on the rectifiers do the seeing; hooks on the modules with weights remember which
of them ran last, which tells the calls of a reused rectifier apart. The first forward is also
followed operator by operator, to find the unit axes and the functional rectifiers that no
module hook sees.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reludiag.coordinates import Origin
from reludiag.provenance import ProvenanceMode, tensors_in
from reludiag.rectifiers import Rectifier, is_rectifying
from reludiag.sites import Layout, Site, arrange, find_layout, rectifier_modules, site_name

Receiver = Callable[[Site, Tensor, bool], None]
"""Called with the site, its output as `[sample, unit, position]`, and the module's training flag.
The tensor is the model's own memory: read it at once, never write to it."""


class Capture:
    """Watches a model between `attach()` and `detach()`; `sites` grows as calls are first met."""

    def __init__(self, model: nn.Module, receive: Receiver) -> None:
        self.model = model
        self.sites: list[Site] = []
        """In the order of their first call."""
        self.functional: Counter[tuple[str, str]] = Counter()
        """(owner module, operator) -> functional rectifier calls in the followed forward."""
        self._receive = receive
        self._rectifiers = {
            module: (path, rectifier) for path, module, rectifier in rectifier_modules(model)
        }
        self._producers: dict[nn.Module, str] = {}
        for path, module in _watched(model):
            if module not in self._rectifiers and any(True for _ in module.parameters(False)):
                self._producers[module] = path
        self._found: dict[tuple[Any, ...], tuple[Site, Layout]] = {}
        self._handles: list[RemovableHandle] = []
        self._following: ProvenanceMode | None = None
        self._followed = False
        self._owners: list[nn.Module] = []
        self._owner_handles: list[RemovableHandle] = []
        self._depth = 0
        self._samples: int | None = None
        self._calls: Counter[tuple[nn.Module, nn.Module | None]] = Counter()
        self._last_producer: nn.Module | None = None

    def attach(self) -> None:
        """Register the hooks. A model without rectifier modules gets none but the root's."""
        hook = self._hook
        self._handles = [
            self.model.register_forward_pre_hook(hook(self._begin), with_kwargs=True, prepend=True),
            self.model.register_forward_hook(hook(self._end), always_call=True),
        ]
        if self._rectifiers:
            self._handles += [
                m.register_forward_hook(hook(self._produced)) for m in self._producers
            ]
            self._handles += [m.register_forward_hook(hook(self._called)) for m in self._rectifiers]

    def detach(self) -> None:
        """Remove every hook and leave no mode behind, whatever state a forward was left in."""
        self.reset()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def reset(self) -> None:
        """Forget a forward that never ended: an interrupt does not run the closing hook."""
        self._depth = 0
        self._stop_following(complete=False)

    def uncalled(self) -> list[Site]:
        """A site for each rectifier module that no forward has called."""
        called = {site.module for site in self.sites}
        return [
            Site(site_name(path, module, 0), path, rectifier, "", None, None)
            for module, (path, rectifier) in self._rectifiers.items()
            if path not in called
        ]

    @staticmethod
    def _hook(target: Callable[..., None]) -> "_Hook":
        return _Hook(target)

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._depth and not self._is_nested():
            self.reset()
        self._depth += 1
        if self._depth > 1:
            return
        self._calls.clear()
        self._last_producer = None
        values = [*args, *kwargs.values()]
        self._samples = _rows(values)
        # An empty batch has no coordinates to follow.
        if not self._followed and self._samples != 0:
            self._start_following(values)

    def _is_nested(self) -> bool:
        """Whether the model is being called from inside its own forward.

        Told by the stack: after an interrupt the last forward never ended, and looks the same.
        """
        frame: FrameType | None = sys._getframe()
        calls = 0
        while frame is not None:
            if frame.f_code is nn.Module._call_impl.__code__:
                calls += frame.f_locals.get("self") is self.model
            frame = frame.f_back
        return calls > 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._stop_following(complete=output is not None)

    def _produced(self, module: nn.Module, args: Any, output: Any) -> None:
        self._last_producer = module

    def _called(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or _is_recomputed() or _is_transformed():
            return
        path, rectifier = self._rectifiers[module]
        inside = self._depth > 0
        producer = self._last_producer if inside else None
        ordinal = self._calls[module, producer]
        if inside:
            self._calls[module, producer] += 1
        if output.numel() == 0:
            return
        samples = self._samples if inside else len(output) if output.ndim else None
        output = output.detach()
        call: tuple[Any, ...] = (module, producer, ordinal)
        # Where units are the positions of an axis of varying length, each length is a site.
        for key in (call, (*call, tuple(output.shape[1:]))):
            site, layout = self._found.get(key, (None, None))
            if layout is None or (self._following is not None and layout.sample_is_ambiguous):
                site, layout = self._meet(site, path, module, rectifier, output, samples)
                self._found[key] = site, layout
            with self._following.paused() if self._following else contextlib.nullcontext():
                arranged = arrange(output, layout, samples)
                if site is not None and arranged is not None:
                    self._receive(site, arranged, module.training)
                    return

    def _meet(
        self,
        known: Site | None,
        path: str,
        module: nn.Module,
        rectifier: Rectifier,
        output: Tensor,
        samples: int | None,
    ) -> tuple[Site, Layout]:
        """A call met for the first time: find its unit axis and give it a name.

        Of a `known` one only the layout is found anew.
        """
        origin: Origin | None = None
        if self._following is not None:
            origin = self._following.origin_of(output)
        layout, label = find_layout(output, origin, self._last_producer, samples)
        if known is not None:
            return known, layout
        producer = origin.producer if origin is not None else None
        if producer is None and self._last_producer is not None:
            producer = self._producers[self._last_producer]
        ordinal = sum(site.module == path for site in self.sites)
        site = Site(
            name=site_name(path, module, ordinal),
            module=path,
            rectifier=rectifier,
            unit_axis=label,
            units=layout.unit.size,
            producer=producer,
        )
        self.sites.append(site)
        return site, layout

    def _start_following(self, values: list[Any]) -> None:
        for _, module in _watched(self.model):
            self._owner_handles += [
                module.register_forward_pre_hook(self._hook(self._enter)),
                module.register_forward_hook(self._hook(self._leave), always_call=True),
            ]
        self._owners = [self.model]
        self.functional.clear()
        self._following = ProvenanceMode(self.model, self._operator)
        if self._samples is not None:
            self._following.mark_inputs(tensors_in(values), self._samples)
        self._following.__enter__()  # type: ignore[no-untyped-call]

    def _stop_following(self, complete: bool) -> None:
        if self._following is None:
            return
        self._following.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._following = None
        # In a batch of one, every axis of length one may be the samples': follow the next too.
        self._followed = complete and self._samples != 1
        for handle in self._owner_handles:
            handle.remove()
        self._owner_handles = []

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._owners.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if len(self._owners) > 1:
            self._owners.pop()

    def _operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        owner = self._owners[-1]
        if owner not in self._rectifiers and is_rectifying(name, args, kwargs):
            path = next((p for p, m in self.model.named_modules() if m is owner), "")
            self.functional[path, name.removesuffix("_")] += 1


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
    the last bits of its output; there is nothing to see there.
    """
    closed = tuple(
        path + "."
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        or (isinstance(module, nn.TransformerEncoderLayer) and not any(rectifier_modules(module)))
    )
    for path, module in model.named_modules():
        if module is not model and not path.startswith(closed):
            yield path, module


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


def _is_recomputed() -> bool:
    """Whether this is activation checkpointing's second forward, run inside the backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def _is_transformed() -> bool:
    """Whether vmap, grad or jvp is at work: its tensors cannot be read from outside."""
    return torch._C._functorch.peek_interpreter_stack() is not None

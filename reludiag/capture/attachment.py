"""Attachment: the hooks of a capture on its model."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from reludiag.capture.call_reader import CallReader
from reludiag.capture.fused import FusedForward, fusible
from reludiag.capture.hooks import FrozenHook, Hook, entrances, hookable_modules
from reludiag.capture.pass_tracker import PassTracker
from reludiag.capture.rectifying_layers import is_rectifying_layer
from reludiag.sites.guard import Guard
from reludiag.sites.site import Rectifier


class Attachment:
    """Puts the hooks of a capture on its model, and takes them off.

    They are made once: those of a training loop if `on_traced` is given, which is called when
    compiled code calls one; else those of passes that are `run`.
    """

    def __init__(
        self,
        model: nn.Module,
        rectifiers: Mapping[nn.Module, Rectifier],
        watched: Mapping[nn.Module, Rectifier],
        passes: PassTracker,
        reader: CallReader,
        on_traced: Callable[[], None] | None,
        guard: Guard,
    ) -> None:
        self._model, self._rectifiers, self._watched = model, rectifiers, watched
        self._passes, self._reader, self._on_traced = passes, reader, on_traced
        self._guard = guard
        self._registrations = list(self._make())
        """What registers each hook."""
        self._undo = guard.undo_list()
        """What takes off what is on the model: changed by `attach` and `remove`."""

    def attach(self) -> None:
        """Put them on."""
        for register in self._registrations:
            self._undo.append(register().remove)
        for module in fusible(self._model) if self._on_traced is None else ():
            reader = self._reader
            unfused = FusedForward(module, reader.sees_functions, reader.read_function, self._guard)
            module.forward = unfused.run
            self._undo.append(partial(delattr, module, "forward"))

    def remove(self) -> None:
        """Take them off."""
        for undo in self._undo:
            undo()
        self._undo.clear()

    def _make(self) -> Iterator[Callable[[], RemovableHandle]]:
        passes, reader = self._passes, self._reader
        for module in () if self._on_traced is None else entrances(self._model):
            begin = self._hook(module, passes.begin, "input")
            yield partial(module.register_forward_pre_hook, begin, prepend=True, with_kwargs=True)
        for _, module in hookable_modules(self._model):
            has_weights = is_parametrized(module) or any(
                True for _ in module.parameters(recurse=False)
            )
            own = is_rectifying_layer(module)
            if own or (has_weights and module not in self._rectifiers):
                hook = self._hook(module, reader.note_producer)
                yield partial(module.register_forward_hook, hook)
        for module, rectifier in self._rectifiers.items():
            if getattr(module, "inplace", False):
                pre_hook = self._hook(module, reader.keep_input, None)
                yield partial(module.register_forward_pre_hook, pre_hook)
            reads = reader.read_layer if is_rectifying_layer(module) else reader.read_module
            several = "first" if rectifier.is_composed else "output"
            hook = self._hook(module, reads, "both" if rectifier.fired else several)
            yield partial(module.register_forward_hook, hook)
        for module in self._watched:
            hook = self._hook(module, reader.read_watched, "first")
            yield partial(module.register_forward_hook, hook)
        for module in () if self._on_traced is None else entrances(self._model):
            end = self._hook(module, passes.end)  # after all that reads its output
            yield partial(module.register_forward_hook, end, always_call=True)

    def _hook(
        self, module: nn.Module, target: Callable[..., None], reads: str | None = ""
    ) -> Hook | FrozenHook:
        if self._on_traced is None:
            return FrozenHook(target, self._guard)
        return Hook(target, self._guard, module, reads, self._on_traced)

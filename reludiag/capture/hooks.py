"""Where hooks go in a model, and what can be asked of the forward pass that they are called in.

In a model that torch.compile compiles, a hook is traced, and our code is nothing to trace: there it
becomes a call of one operator that the compiler does not look into, and that calls the hook.
"""

import contextlib
import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, compiler, nn
from torch.compiler import is_dynamo_compiling

from reludiag.sites.site import rectifier_modules

CALL = nn.Module._call_impl.__code__
"""Of every module call, between the caller and `forward`."""
# The function inside it that calls forward, where there are hooks.
INNER = next(c for c in CALL.co_consts if getattr(c, "co_name", None) == "inner")


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """While entered, what torch.compile compiled runs as it was written."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def forget_compiled() -> None:
    """Have everything compiled anew: code that was compiled before does not see new hooks."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters["stats"]["unique_graphs"]:
        dynamo.reset()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While entered, what is compiled for one module is not run for its twin with other hooks."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        yield
        return
    with dynamo.config.patch(skip_nnmodule_hook_guards=False):
        yield


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or part of it, is known to be compiled."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    )


_numbers = itertools.count()
_hooks: weakref.WeakValueDictionary[int, "Hook"] = weakref.WeakValueDictionary()
# Written to by the operator, so that compilers keep its calls, and in their order.
_order = torch.zeros(1)


@torch.library.custom_op("reludiag::hook", mutates_args={"order"})
def _call_hook(order: Tensor, number: int, seen: list[Tensor]) -> None:
    hook = _hooks.get(number)
    if hook is not None:  # compiled code outlives its hooks
        hook.traced(seen)


class Hook:
    """A hook that a copy of the model does not take along: copied or unpickled, it does nothing.

    `target` is called as PyTorch calls the hook. From compiled code it is called with the tensors
    that it `reads`: the first "input", or the "output"; a hook that reads None is left out there.
    """

    def __init__(
        self,
        target: Callable[..., None] | None,
        module: nn.Module | None = None,
        reads: str | None = "",
        was_traced: Callable[[], None] = lambda: None,
    ) -> None:
        self._target, self._module, self._reads = target, module, reads
        self._was_traced = was_traced
        self._number = next(_numbers)
        _hooks[self._number] = self

    def __call__(self, *args: Any) -> None:
        """As PyTorch calls it: of the module, its arguments, keywords and output, where asked."""
        # The program that is then written has no part in this, and there are no values to read.
        # Not asked by is_exporting(): the compiler of some releases takes that to be true always.
        if compiler._is_exporting_flag:
            return
        if is_dynamo_compiling():
            if self._reads is None:
                return
            seen: list[Tensor] = []
            if self._reads == "input":
                seen = [value.detach() for value in args[1][:1] if isinstance(value, Tensor)]
            elif self._reads == "output" and isinstance(args[-1], Tensor):
                seen = [args[-1].detach()]
            _call_hook(_order, self._number, seen)
        elif self._target is not None and not _is_tracing():
            self._target(*args)

    def traced(self, seen: list[Tensor]) -> None:
        """As compiled code calls it."""
        if self._target is None:
            return
        self._was_traced()
        if self._reads == "input":
            self._target(self._module, tuple(seen), {})
        else:
            self._target(self._module, (), seen[0] if seen else ())

    def __deepcopy__(self, memo: Any) -> "Hook":
        return Hook(None)

    def __reduce__(self) -> Any:
        return Hook, (None,)


class FrozenHook(functools.partial[None]):
    """The same of a pass in which nothing is traced. It costs no call of its own."""

    def __deepcopy__(self, memo: Any) -> "FrozenHook":
        return FrozenHook(_nothing)

    def __reduce__(self) -> Any:
        return FrozenHook, (_nothing,)


def _nothing(*args: Any) -> None:
    """What the hook of a copy does."""


def watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
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


def entrances(model: nn.Module) -> Iterator[nn.Module]:
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


def rows_of(values: list[Any]) -> int | None:
    """The number of samples in a forward's arguments: rows of a tensor, or length of a list."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            return int(value.shape[0])
        if isinstance(value, dict):
            return rows_of(list(value.values()))
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            return len(value)
    return None


_is_tracing = torch._C._is_tracing
backward_task = torch._C._current_graph_task_id
"""Number of the backward pass that is running, -1 if none is."""
innermost_transform = torch._C._functorch.peek_interpreter_stack
"""The `torch.func` transform that is at work, None if none is."""


def is_recomputed() -> bool:
    """Whether this is activation checkpointing's second forward, run inside the backward pass."""
    return backward_task() != -1


def is_transformed() -> bool:
    """Whether vmap, grad or jvp is at work: its tensors cannot be read from outside."""
    return innermost_transform() is not None

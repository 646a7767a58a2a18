"""Where hooks go in a model, and what can be asked of the forward pass that they are called in."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.sites import rectifier_modules

CALL = nn.Module._call_impl.__code__
"""Of every module call, between the caller and `forward`."""
# The function inside it that calls forward, where there are hooks.
INNER = next(c for c in CALL.co_consts if getattr(c, "co_name", None) == "inner")


class Hook:
    """A hook that a copy of the model does not take along: copied or unpickled, it does nothing."""

    def __init__(self, target: Callable[..., None] | None) -> None:
        self._target = target

    def __call__(self, *args: Any) -> None:
        if self._target is not None:
            self._target(*args)

    def __deepcopy__(self, memo: Any) -> "Hook":
        return Hook(None)

    def __reduce__(self) -> Any:
        return Hook, (None,)


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


_backward = torch._C._current_graph_task_id
_transform = torch._C._functorch.peek_interpreter_stack


def is_recomputed() -> bool:
    """Whether this is activation checkpointing's second forward, run inside the backward pass."""
    return _backward() != -1


def is_transformed() -> bool:
    """Whether vmap, grad or jvp is at work: its tensors cannot be read from outside."""
    return _transform() is not None

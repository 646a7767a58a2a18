"""Hooks that copies of a model do not take along, and where they go in it.

torch.compile traces hooks, and reludiag's code cannot be traced. In compiled code a hook becomes a
call of one opaque operator, which calls the hook.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from reludiag.capture.named_models import is_left_alone, roots_of
from reludiag.sites.guard import Guard
from reludiag.sites.rectifiers import rectifier_modules
from reludiag.sites.registration import visible_modules
from reludiag.sites.torch_internals import is_exporting, is_tracing
from reludiag.sites.weight_axes import PARAMETRIZATIONS

_numbers = itertools.count()
_hooks: weakref.WeakValueDictionary[int, "Hook"] = weakref.WeakValueDictionary()
# The operator writes to it, so that compilers keep its calls and their order.
_order = torch.zeros(1)


@torch.library.custom_op("reludiag::hook", mutates_args={"order"})
def _call_hook(order: Tensor, number: int, tensors: list[Tensor]) -> None:
    hook = _hooks.get(number)
    if hook is not None:  # compiled code outlives its hooks
        hook.traced(tensors)


class Hook:
    """A hook that does nothing in a copy of the model, also after unpickling.

    `target` is called as PyTorch calls the hook. From compiled code it is called with the tensor
    that it `reads`: the first "input", the "output", the "first" of several outputs, or "both" the
    first output and the first input. A hook that reads None is skipped there.
    """

    def __init__(
        self,
        target: Callable[..., None] | None,
        guard: Guard | None = None,
        module: nn.Module | None = None,
        reads: str | None = "",
        was_traced: Callable[[], None] = lambda: None,
    ) -> None:
        self._target, self._module, self._reads = target, module, reads
        self._guard, self._was_traced = guard or Guard(), was_traced
        self._number = next(_numbers)
        _hooks[self._number] = self

    def __call__(self, *args: Any) -> None:
        """Called by PyTorch with the module and, on request, its arguments, keywords, output."""
        # An exported program must not contain the hook, and there are no values to read.
        if is_exporting():
            return
        if is_dynamo_compiling():
            if self._reads is None:
                return
            tensors: list[Tensor] = []
            if self._reads == "input":
                tensors = [value.detach() for value in args[1][:1] if isinstance(value, Tensor)]
            elif self._reads in ("output", "first", "both"):
                output = args[-1]
                if self._reads != "output" and isinstance(output, tuple | list) and len(output):
                    output = output[0]
                tensors = [output.detach()] if isinstance(output, Tensor) else []
                if self._reads == "both" and len(args[1]) and isinstance(args[1][0], Tensor):
                    tensors.append(args[1][0].detach())
            _call_hook(_order, self._number, tensors)
        elif self._target is not None and not is_tracing():
            guard = self._guard
            try:
                if guard.error is None:
                    self._target(*args)
                    return
            except Exception as error:
                guard.error = error
            try:  # noqa: SIM105  where the stack is full, even suppress() would fail
                guard.settle()
            except Exception:
                pass

    def traced(self, tensors: list[Tensor]) -> None:
        """Called by compiled code."""
        target, guard = self._target, self._guard
        if target is None or guard.error is not None:
            return
        try:
            self._was_traced()
            if self._reads == "input":
                target(self._module, tuple(tensors), {})
            else:
                target(self._module, tuple(tensors[1:]), tensors[0] if tensors else ())
        except Exception as error:
            guard.fail(error)

    def __deepcopy__(self, memo: Any) -> "Hook":
        return Hook(None)

    def __reduce__(self) -> Any:
        return Hook, (None,)


class FrozenHook:
    """The same hook for passes without tracing. Its error is raised when the pass is over."""

    def __init__(self, target: Callable[..., None] | None, guard: Guard | None = None) -> None:
        self._target, self._guard = target, guard or Guard()

    def __call__(self, *args: Any) -> None:
        """Called by PyTorch."""
        guard = self._guard
        if self._target is not None and guard.error is None:
            try:
                self._target(*args)
            except Exception as error:
                guard.error = error

    def __deepcopy__(self, memo: Any) -> "FrozenHook":
        return FrozenHook(None)

    def __reduce__(self) -> Any:
        return FrozenHook, (None,)


def hookable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules of `model`, except those inside a fused layer without a rectifier module.

    A hook inside an encoder layer or an attention turns off its fused path, which changes the last
    bits of its output, and there is nothing to see there. TorchScript accepts no hooks. The
    modules of a parametrization compute a weight, not activations: they are left out, as are those
    inside a rectifier of the user's.
    """
    closed = tuple(
        path + "."
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention | torch.jit.ScriptModule)
        or (isinstance(module, nn.TransformerEncoderLayer) and not any(rectifier_modules(module)))
    )
    for path, module in visible_modules(model):
        if (
            module is not model
            and not path.startswith(closed)
            and not isinstance(module, torch.jit.ScriptModule)
            and PARAMETRIZATIONS not in path.split(".")
        ):
            yield path, module


def entrances(model: nn.Module) -> Iterator[nn.Module]:
    """Modules at which a forward pass may begin: the model, and the parts that a loop may call
    alone.

    The outermost call is the pass, so `model.encoder(x)` is one too. Of several named models each
    is such a module.
    """
    roots = roots_of(model)
    yield from (root for root in roots if not is_left_alone(model, root))
    waiting = [child for root in roots for child in root.children()]
    passed = set(roots)
    while waiting:
        module = waiting.pop(0)
        if module in passed:  # several models may share it
            continue
        passed.add(module)
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            waiting += module.children()
        elif not isinstance(
            module, nn.TransformerEncoderLayer | nn.MultiheadAttention | torch.jit.ScriptModule
        ) and any(name != PARAMETRIZATIONS for name, _ in module.named_children()):
            yield module

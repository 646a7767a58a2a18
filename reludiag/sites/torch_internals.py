"""The names of torch that reludiag uses and torch does not promise to keep, all in this file.

`tests/test_torch_internals.py` fails where a version of torch changes what one of them does. Where
one is gone, importing this file raises a TorchVersionError that names it.

| name here | what it is for | in torch |
|---|---|---|
| `is_tracing` | no hooks under torch.jit.trace | `torch._C._is_tracing` |
| `is_exporting` | nor torch.export | `torch.compiler._is_exporting_flag` |
| `backward_task` | leave out recomputed forwards | `torch._C._current_graph_task_id` |
| `innermost_transform` | leave out vmap, grad, jvp | `torch._C._functorch.peek_interpreter_stack` |
| `MODULE_CALL`, `HOOKED_FORWARD` | who calls, by the stack | `torch.nn.Module._call_impl` |
| `DisableTorchFunction` | hide operators from function modes | `torch._C.DisableTorchFunction` |
| `TorchDispatchMode` | follow every operator | `torch.utils._python_dispatch` |
| `without_dispatch_modes` | run operators of our own unseen | `torch.utils._python_dispatch` |
| `function_modes` | is a mode of the user's active? | `torch._C._len_torch_function_stack` |
| `leave_modes` | take modes off after an error | the same, `torch._C._get_function_stack_at`, \
`torch.utils._python_dispatch._get_current_dispatch_mode` |
| `is_autocasting` | do not take operators apart then | `torch._C._is_any_autocast_enabled` |
| `ENCODER_LAYER` | the fused encoder layer | `torch.ops.aten._transformer_encoder_layer_fwd` |
| `multi_head_attention` | its attention | `torch._native_multi_head_attention` |
| `version_of` | was a tensor changed in place? | `torch.Tensor._version` |
| `storage_of` | do two tensors share memory? | `torch.UntypedStorage._cdata` |
| `operator_name` | name of a dispatched operator | `torch._ops.OpOverload._schema` |
| `is_composite` | is an operator made of others? | `torch._ops.OpOverload._can_decompose` |
| `operator_arguments` | names of its arguments, and which it writes to | the same |
| `OpOverload` | an operator in a program's graph | `torch._ops.OpOverload` |
| `AnyBatchNorm` | BatchNorm of any dimension | `torch.nn.modules.batchnorm._BatchNorm` |
| `buffers_of` | restore a model's buffers | `torch.nn.Module._buffers` |
| `parameters_of` | which parameters are a layer's own | `torch.nn.Module._parameters` |
| `forward_hooks_of`, `forward_pre_hooks_of` | take a user's hooks off a copy | \
`torch.nn.Module._forward_hooks`, `_forward_pre_hooks` |
| `INT8_RECTIFIERS`, `INT8_LAYERS` | what a converted int8 model is made of | `torch.ao.nn` |
| `eager_module` | unwrap a compiled model | `_orig_mod` of what torch.compile returns |
| `is_compiled_module` | does it run compiled? | `torch.nn.Module._compiled_call_impl` |
| `compiled_graphs`, `forget_graphs`, `hook_guards` | compile again with hooks | `torch._dynamo` |

`torch._dynamo` is looked at only where something else has imported it: that takes a second. Its
names, and `_orig_mod`, are so not looked for when this file is imported.
"""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, compiler, nn
from torch.overrides import TorchFunctionMode

from reludiag.errors import TorchVersionError

TRIED = ("2.13.0",)
"""The versions of torch that all of these were tried with, the oldest first."""


def internal(path: str) -> Any:
    """What torch has under a dotted path; raises TorchVersionError where it has nothing."""
    value: Any = torch
    for name in path.split(".")[1:]:
        try:
            value = getattr(value, name)
        except AttributeError:
            raise _missing_internal(path) from None
    return value


def _missing_internal(path: str) -> TorchVersionError:
    return TorchVersionError(
        f"torch {torch.__version__} has no {path}, which reludiag needs: it is not part of torch's "
        f"public interface, and changes without notice. Install a newer reludiag, or a version of "
        f"torch that this one was tried with: {', '.join(TRIED)}"
    )


try:
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
except ImportError:
    raise _missing_internal("torch.utils._python_dispatch.TorchDispatchMode") from None

# What the forward pass is in, at the moment

is_tracing: Callable[[], bool] = internal("torch._C._is_tracing")
backward_task: Callable[[], int] = internal("torch._C._current_graph_task_id")
"""Number of the running backward pass, -1 if there is none."""
innermost_transform: Callable[[], Any] = internal("torch._C._functorch.peek_interpreter_stack")
"""The active `torch.func` transform, None if there is none."""
is_autocasting: Callable[[], bool] = internal("torch._C._is_any_autocast_enabled")
function_modes: Callable[[], int] = internal("torch._C._len_torch_function_stack")
"""Number of function modes that are active."""

_function_mode_at: Callable[[int], Any] = internal("torch._C._get_function_stack_at")
_dispatch_mode: Callable[[], Any] = internal(
    "torch.utils._python_dispatch._get_current_dispatch_mode"
)


def leave_modes(owner: object) -> set[object]:
    """Take the modes whose `guard` is `owner` off the tops of this thread's stacks. Returns them.

    By PyTorch's own `__exit__`, whatever theirs does.
    """
    left: set[object] = set()
    while count := function_modes():
        mode = _function_mode_at(count - 1)
        if getattr(mode, "guard", None) is not owner:
            break
        TorchFunctionMode.__exit__(mode, None, None, None)  # type: ignore[no-untyped-call]
        left.add(mode)
    while getattr(mode := _dispatch_mode(), "guard", None) is owner:
        TorchDispatchMode.__exit__(mode, None, None, None)  # type: ignore[no-untyped-call]
        left.add(mode)
    return left


internal("torch.compiler._is_exporting_flag")


def is_exporting() -> bool:
    """Whether torch.export is at work.

    Not asked by torch.compiler.is_exporting(): the compiler of some releases takes that to be true
    always.
    """
    return compiler._is_exporting_flag


def is_recomputed() -> bool:
    """Whether this is activation checkpointing's second forward, run inside the backward pass."""
    return backward_task() != -1


def is_transformed() -> bool:
    """Whether vmap, grad or jvp is active: its tensors cannot be read from outside."""
    return innermost_transform() is not None


# Operators and modes

DisableTorchFunction: Callable[[], contextlib.AbstractContextManager[Any]] = internal(
    "torch._C.DisableTorchFunction"
)
without_dispatch_modes: Callable[[], contextlib.AbstractContextManager[Any]] = internal(
    "torch.utils._python_dispatch._disable_current_modes"
)
OpOverload: type = internal("torch._ops.OpOverload")
ENCODER_LAYER: Any = internal("torch.ops.aten._transformer_encoder_layer_fwd.default")
multi_head_attention: Callable[..., Any] = internal("torch._native_multi_head_attention")

internal("torch.ops.aten.relu.default._schema.name")
internal("torch.ops.aten.relu.default._schema.arguments")
internal("torch.ops.aten.relu.default._can_decompose")


def operator_name(operator: Any) -> str:
    """The dispatcher's name of an operator: `relu_`."""
    name: str = operator._schema.name
    return name.rpartition("::")[2]


@functools.cache
def is_composite(operator: Any) -> bool:
    """Whether `decompose` runs it as the operators that it is made of."""
    return bool(operator._can_decompose())


def operator_arguments(operator: Any) -> list[Any]:
    """Its arguments in order: of each the `name`, `default_value` and `alias_info`."""
    arguments: list[Any] = operator._schema.arguments
    return arguments


# Tensors

internal("torch.Tensor._version")
internal("torch.UntypedStorage._cdata")


def version_of(tensor: Tensor) -> int:
    """How often a tensor's memory was written to in place; 0 for one of inference mode, where that
    is not counted.
    """
    if type(tensor) is Tensor:
        return 0 if tensor.is_inference() else tensor._version
    with DisableTorchFunction():  # a subclass must not notice
        return 0 if tensor.is_inference() else tensor._version


def holds_reals(tensor: Tensor) -> bool:
    """Whether it holds floating-point numbers, or quantized ones."""
    if type(tensor) is Tensor:
        return tensor.is_floating_point() or tensor.is_quantized
    with DisableTorchFunction():  # a subclass must not notice
        return tensor.is_floating_point()


def storage_of(tensor: Tensor) -> int:
    """A number that all tensors in the same memory share; a sparse tensor has its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


# Modules

MODULE_CALL: CodeType = internal("torch.nn.Module._call_impl").__code__
"""PyTorch's function between the caller of a module and its `forward`."""


def _function_in(code: CodeType, name: str) -> CodeType:
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and constant.co_name == name:
            return constant
    raise _missing_internal(f"torch.nn.Module._call_impl.{name}")


HOOKED_FORWARD = _function_in(MODULE_CALL, "inner")
"""The function inside it that calls `forward` where there are hooks."""

AnyBatchNorm: type[nn.Module] = internal("torch.nn.modules.batchnorm._BatchNorm")

for _name in ("_buffers", "_parameters", "_forward_hooks", "_forward_pre_hooks"):
    if not hasattr(nn.Identity(), _name):
        raise _missing_internal(f"torch.nn.Module.{_name}")
internal("torch.nn.Module._compiled_call_impl")


def _int8_modules(package: str, *names: str) -> tuple[type[nn.Module], ...]:
    """Classes of torch.ao, which is to leave torch: without it no model has such a layer."""
    try:
        found = importlib.import_module(f"torch.ao.nn.{package}")
    except ImportError:
        return ()
    return tuple(getattr(found, name) for name in names if hasattr(found, name))


_INT8_NORMS = _int8_modules("intrinsic.quantized", "BNReLU2d", "BNReLU3d")
INT8_RECTIFIERS = (
    *_INT8_NORMS,
    *_int8_modules("intrinsic.quantized", "ConvReLU1d", "ConvReLU2d", "ConvReLU3d"),
    *_int8_modules("intrinsic.quantized", "ConvAddReLU2d", "LinearReLU"),
    *_int8_modules("intrinsic.quantized.dynamic", "LinearReLU"),
)
"""The layers of a converted int8 model with a ReLU fused in."""
INT8_LAYERS = (
    *_INT8_NORMS,
    *_int8_modules("quantized.modules.utils", "WeightedQuantizedModule"),
)
"""Its layers with weights, fused or not; they are no parameters."""


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own buffers by name, to read and to set."""
    return module._buffers


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters by name; not those that are computed again at each access."""
    return module._parameters


def forward_hooks_of(module: nn.Module) -> dict[int, Any]:
    """The hooks that run after a module's forward."""
    return module._forward_hooks


def forward_pre_hooks_of(module: nn.Module) -> dict[int, Any]:
    """The hooks that run before a module's forward."""
    return module._forward_pre_hooks


# torch.compile


def eager_module(model: Any) -> Any:
    """The model itself, without torch.compile's wrapper."""
    return getattr(model, "_orig_mod", model)


def is_compiled_module(module: nn.Module) -> bool:
    """Whether torch.compile wraps it, or `module.compile()` was called."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _dynamo() -> Any:
    return sys.modules.get("torch._dynamo")


def is_compiler_loaded() -> bool:
    """Whether anything can have been compiled: nothing is before torch.compile is first called."""
    return _dynamo() is not None


def compiled_graphs() -> int:
    """How many graphs were compiled in this process."""
    dynamo = _dynamo()
    return 0 if dynamo is None else dynamo.utils.counters["stats"]["unique_graphs"]


def forget_graphs() -> None:
    """Have everything compiled again when it is next called."""
    _dynamo().reset()


def hook_guards() -> contextlib.AbstractContextManager[Any]:
    """While entered, code compiled for one module is not run for its twin with other hooks."""
    dynamo = _dynamo()
    if dynamo is None:
        return contextlib.nullcontext()
    patch: contextlib.AbstractContextManager[Any] = dynamo.config.patch(
        skip_nnmodule_hook_guards=False
    )
    return patch

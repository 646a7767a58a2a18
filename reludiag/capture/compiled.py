"""torch.compile: what of it must not run, or must be compiled again, while a model is watched."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from reludiag.sites.torch_internals import (
    compiled_graphs,
    forget_graphs,
    hook_guards,
    is_compiled_module,
    is_compiler_loaded,
)


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """A context in which compiled code runs uncompiled."""
    if not is_compiler_loaded():
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def forget_compiled() -> None:
    """Have everything compiled again: code that was compiled earlier does not see new hooks."""
    if compiled_graphs():
        forget_graphs()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Prevents that code compiled for one module is reused for another with other hooks."""
    with hook_guards():
        yield


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is compiled."""
    return any(is_compiled_module(module) for module in model.modules())

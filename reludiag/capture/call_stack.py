"""Who is calling, by the stack of Python frames."""

from collections.abc import Mapping
from types import FrameType

from torch import nn

from reludiag.sites.torch_internals import HOOKED_FORWARD, MODULE_CALL


def calling_module(
    frame: FrameType | None, paths: Mapping[nn.Module, str]
) -> tuple[nn.Module, bool]:
    """The innermost module at work in `frame`, and whether its hooks will run when it is done.

    `paths` has the modules in question; if none of them is at work, it is the first.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_argcount:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module in paths:
                # A forward whose first argument has another name is found by who calls it.
                return module, code is MODULE_CALL or _is_hooked(module, frame.f_back)
        frame = frame.f_back
    return next(iter(paths)), False


def _is_hooked(module: nn.Module, above: FrameType | None) -> bool:
    """Whether the innermost call of a module above this frame is of `module`.

    Its forward may be decorated, and may have called other methods; or it was called directly.
    """
    if above is not None and above.f_code in (MODULE_CALL, HOOKED_FORWARD):
        return True
    while above is not None and above.f_code is not MODULE_CALL:
        above = above.f_back
    return above is not None and above.f_locals.get("self") is module


def is_nested(frame: FrameType | None, model: nn.Module, entrance: nn.Module | None) -> bool:
    """Whether a call of the model, in which `frame` is, was made from inside a forward of itself,
    or of `entrance`.

    Told by the stack: after an interrupt the last forward never ended, and its state says the same.
    """
    calls = 0
    while frame is not None:
        if frame.f_code is MODULE_CALL:
            module = frame.f_locals.get("self")
            calls += module is model or module is entrance
        frame = frame.f_back
    return calls > 1

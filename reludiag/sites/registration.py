"""register_rectifier(): rectifiers of the user's own, as classes of modules or as functions.

Registered in this process, they are found wherever those of `rectifiers.py` are, and before them.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

from torch import Tensor, nn
from torch.compiler import is_compiling

from reludiag.errors import UsageError
from reludiag.sites.site import Rectifier
from reludiag.sites.watching import THREAD

Target = TypeVar("Target", bound=Callable[..., Any])
Fired = Callable[[Tensor, Tensor], Tensor]
"""From the input and the output of a rectifier, a mask of the output's shape: where it fired."""

_CLASSES: dict[type[nn.Module], Rectifier] = {}
_FUNCTIONS: dict[Callable[..., Any], Rectifier] = {}
"""By the function itself, not by what `register_rectifier` returned for it."""
_WATCHED: dict[Callable[..., Any], Callable[..., Any]] = {}
"""What it returned for a function -> that function."""


@overload
def register_rectifier(
    target: Target,
    /,
    *,
    zero_gradient: str = ...,
    off_value: float = ...,
    fired: Fired | None = ...,
    can_die: bool = ...,
) -> Target: ...


@overload
def register_rectifier(
    *,
    zero_gradient: str = ...,
    off_value: float = ...,
    fired: Fired | None = ...,
    can_die: bool = ...,
) -> Callable[[Target], Target]: ...


def register_rectifier(
    target: Any = None,
    /,
    *,
    zero_gradient: str = "",
    off_value: float = 0.0,
    fired: Fired | None = None,
    can_die: bool = True,
) -> Any:
    """Teach reludiag a rectifier of your own: a class of modules, or a function.

    Each module of the class, or of a subclass of it, is then one site: its units are those of the
    first tensor that it returns, and nothing inside it is a site. So is each call of a function,
    if it is made through what this returns; it is best used as a decorator, of a class as well:

        @reludiag.register_rectifier(zero_gradient="x <= theta")
        def jumprelu(x, theta): ...

    `zero_gradient` says for readers where the gradient is zero, and may be empty only where
    `can_die` is false, as for a leaky activation. A unit is off where the output is `off_value`;
    or where `fired`, called with the first argument and the output, returns False: a mask of the
    output's shape. What `fired` gets is detached; where the input was overwritten in place, the
    site cannot be read. The registration holds in this process; another one of the same class or
    function replaces it. Returns the class itself, and of a function one that does the same.

    Raises UsageError if `target` is neither, or for other arguments of the wrong kind.
    """
    _check(zero_gradient, off_value, fired, can_die)

    def register(target: Any) -> Any:
        rectifier = Rectifier(
            _name_of(target),
            can_die,
            signed=True,
            zero_gradient=zero_gradient,
            is_composed=True,
            is_asked_for=True,
            off_value=float(off_value),
            fired=fired,
        )
        if isinstance(target, type) and issubclass(target, nn.Module) and target is not nn.Module:
            _CLASSES[target] = rectifier
            return target
        if isinstance(target, type | nn.Module) or not callable(target):
            given = target.__name__ if isinstance(target, type) else type(target).__name__
            expected = "a subclass of torch.nn.Module, or a function"
            if isinstance(target, nn.Module) and type(target) is not nn.Module:
                expected += f". Register its class: register_rectifier({given}, ...)"
            raise UsageError(f"register_rectifier({given}) was given; expected {expected}")
        function = _WATCHED.get(target, target)
        _FUNCTIONS[function] = rectifier
        return target if function is not target else _watched(function)

    return register if target is None else register(target)


def registered_class(module: nn.Module) -> Rectifier | None:
    """What was registered for the class of this module, or for the nearest of its bases."""
    if not _CLASSES:
        return None
    found = (_CLASSES.get(cls) for cls in type(module).__mro__)
    return next((rectifier for rectifier in found if rectifier is not None), None)


def registered_function(value: Any) -> Rectifier | None:
    """What was registered for the function that `register_rectifier` returned as `value`."""
    function = _WATCHED.get(value) if inspect.isfunction(value) else None
    return None if function is None else _FUNCTIONS[function]


def registered_functions() -> frozenset[str]:
    """The names of the functions that were registered."""
    return frozenset(rectifier.activation for rectifier in _FUNCTIONS.values())


def visible_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module as in `named_modules`; none inside a module of a registered class."""
    if not _CLASSES:
        yield from model.named_modules()
        return
    seen: set[nn.Module] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        yield path, module
        if registered_class(module) is None:
            children = [
                (f"{path}.{name}" if path else name, c) for name, c in module.named_children()
            ]
            waiting += reversed(children)


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose calls are read while a model is watched."""

    @functools.wraps(function)
    def rectifier(*args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return function(*args, **kwargs)
        watcher = THREAD.current.watcher
        if watcher is None:
            return function(*args, **kwargs)
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return watcher.read_function(
            _FUNCTIONS[function], next(tensors, None), False, lambda: function(*args, **kwargs)
        )

    _WATCHED[rectifier] = function
    return rectifier


def _name_of(target: Any) -> str:
    """How reports call it: by a function or a class; `Rectify.apply` by its class."""
    owner = getattr(target, "__self__", None)
    if isinstance(owner, type):
        return owner.__name__
    return str(getattr(target, "__name__", type(target).__name__)).strip("<>")


def _check(zero_gradient: Any, off_value: Any, fired: Any, can_die: Any) -> None:
    """Raises UsageError for arguments of the wrong kind."""
    if not isinstance(zero_gradient, str):
        raise UsageError(
            f"zero_gradient={zero_gradient!r} was given; expected words for readers, such as "
            '"x <= theta"'
        )
    if not isinstance(can_die, bool):
        raise UsageError(f"can_die={can_die!r} was given; expected True or False")
    if can_die and not zero_gradient.strip():
        raise UsageError(
            "zero_gradient was not given; expected where the gradient is zero, in words such as "
            '"x <= theta". For an activation that passes a gradient everywhere, can_die=False'
        )
    is_number = isinstance(off_value, int | float) and not isinstance(off_value, bool)
    if not is_number or not math.isfinite(off_value):
        raise UsageError(
            f"off_value={off_value!r} was given; expected a finite number, the output of a unit "
            "that is off"
        )
    if fired is not None and not callable(fired):
        raise UsageError(
            f"fired={fired!r} was given; expected a function of the input and the output that "
            "returns a mask of where units fired"
        )
    if fired is not None and off_value != 0:
        raise UsageError(
            "off_value and fired were both given; expected one: either says where units are off"
        )

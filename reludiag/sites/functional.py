"""Rectifiers called as functions: `F.relu(x)`, `x.clamp(min=0)`, `torch.maximum(x, zeros)`, ...

`RectifierMode` sees their calls. `functional_calls` searches a model's source code for them, to
decide whether the mode is needed and to list them without running the model.
"""

import ast
import functools
import inspect
import sys
import textwrap
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from reludiag.sites.guard import Guard, OnlyOnce
from reludiag.sites.rectifiers import operator_names, rectifier_call, rectifier_of
from reludiag.sites.registration import (
    registered_class,
    registered_function,
    registered_functions,
    visible_modules,
)
from reludiag.sites.site import Rectifier
from reludiag.sites.spelled_arguments import READS, in_order
from reludiag.sites.spellings import AFTER_TOP, Parts, in_their_places
from reludiag.sites.spellings import OPERATORS as SPELLING


class OnCall(Protocol):
    """Makes the call of a functional rectifier and returns its result."""

    def __call__(
        self, rectifier: Rectifier, pre_activation: Any, in_place: bool, call: Callable[[], Any]
    ) -> Any: ...


class RectifierMode(TorchFunctionMode):
    """Passes each functional rectifier call made while it is active to `on_call`.

    Besides the operators of the table it knows these spellings: `maximum(x, 0)`,
    `where(x > theta, x, 0)`, `x * (x > theta)`, `x.masked_fill(x < theta, 0)`, `x[x < theta] = 0`,
    `clamp(x, min=zeros)`, and `zeros.scatter(-1, indices, values)` of what `topk` returned; if it
    saw the zeros or the mask being made and they are unchanged since.
    """

    def __init__(self, on_call: OnCall, guard: Guard) -> None:
        super().__init__()
        self._on_call, self.guard = on_call, guard
        self._parts = Parts()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        guard = self.guard
        if guard.error is not None:
            return func(*args, **kwargs)
        rectifier = x = parts = None
        try:
            name = getattr(func, "__name__", "").partition(".")[0]  # relu.default: an overload
            operator = name.strip("_")
            in_place = name.endswith("_")
            if torch.is_inference_mode_enabled() and _writes(name) and operator not in SPELLING:
                self._parts.clear()
            if operator in _OPERATORS:
                rectifier = rectifier_call(operator, args, kwargs)
                lower = args[1] if len(args) > 1 else kwargs.get("min")
                if isinstance(lower, Tensor) and self._parts.is_zero(lower):
                    rectifier = rectifier_call(operator, args[:1], {**kwargs, "min": 0})
                if rectifier is not None:
                    x = args[0] if args else kwargs.get("input")
                    in_place |= bool(kwargs.get("inplace"))
            elif operator in SPELLING or (self._parts.has_top and operator in AFTER_TOP):
                parts = in_order(operator, args, kwargs)
                if operator in READS:
                    self._read(parts)
                spelled = self._parts.spelled(operator, parts)
                if spelled is not None:
                    rectifier, x = spelled
                    in_place &= operator != "scatter"  # it writes to the zeros
        except Exception as error:
            guard.error = error
            return func(*args, **kwargs)
        if rectifier is None:
            result = func(*args, **kwargs)
            if parts is None:
                return result
        else:
            written = x if operator == "setitem" else None  # that returns nothing
            call = OnlyOnce(func, args, kwargs, written)
            result = call.within(guard, self._on_call, rectifier, x, in_place)
        try:
            self._note(operator, rectifier, x, parts, in_place, result)
        except Exception as error:
            guard.error = error
        return result

    def _read(self, parts: tuple[Any, ...]) -> None:
        """Read the largest values where a weight is read at their indices, before that is done."""
        read = self._parts.read(parts)
        if read is not None:
            rectifier, x, index, values = read
            self._on_call(rectifier, x, False, lambda: in_their_places(x, index, values))

    def _note(
        self,
        operator: str,
        rectifier: Rectifier | None,
        x: Any,
        parts: tuple[Any, ...] | None,
        in_place: bool,
        result: Any,
    ) -> None:
        """What later calls may be composed of."""
        if rectifier is None:
            assert parts is not None
            self._parts.note(operator, parts, result)
        elif parts is None:
            if rectifier.passes_input and not in_place and isinstance(x, Tensor):
                self._parts.note_rectified(x, result)
        elif operator == "scatter":
            self._parts.forget(result)


def _writes(name: str) -> bool:
    """Whether a function of this name writes in place: `add_`, `__iadd__`."""
    return name.startswith("__i") if name.endswith("__") else name.endswith("_")


_OPERATORS = operator_names()


_CLIPPED = (nn.Hardtanh, nn.Threshold)
_FROM_ZERO = frozenset({"clamp", "clamp_min", "clip", "hardtanh"})
_CERTAIN = frozenset({"relu", "relu6", "hardswish", "hardsigmoid"})
_FUNCTIONS = frozenset(
    map(id, (functional.relu, functional.relu6, functional.hardswish, torch.relu))
)


def functional_calls(model: nn.Module, certain: bool = False) -> Counter[tuple[str, str]]:
    """(owner module, operator) -> number of calls in its class's source, or of functions that it
    holds.

    `block.relu(x)` may be a method of a tensor, or a submodule of `block`. If `certain`, it is left
    out where some module has a submodule of this name. So is then what a rectifier's own class
    calls, whose output is a site, and a method that nothing in the model calls, such as
    `FloatFunctional.add_relu` where only its `add` is used.
    """
    children = (
        {name for module in model.modules() for name, _ in module.named_children()}
        if certain
        else set()
    )
    mentioned = _mentioned_in(model) if certain else frozenset()
    calls: Counter[tuple[str, str]] = Counter()
    registered_names = registered_functions()
    for path, module in visible_modules(model):
        if registered_class(module) is not None:
            continue
        for value in vars(module).values():
            # nn.TransformerEncoderLayer(activation="relu") keeps F.relu as an attribute.
            if id(value) in _FUNCTIONS:
                calls[path, value.__name__] += 1
            elif registered_names and (registered := registered_function(value)) is not None:
                calls[path, registered.activation] += 1
        if certain and rectifier_of(module) is not None:
            continue
        for cls in type(module).__mro__:
            if cls.__module__.startswith("torch.nn."):
                break
            calls.update(
                (path, name)
                for name, attribute, method, other in _written_in(cls, registered_names)
                # `self.relu(...)` is a submodule, which hooks do see.
                if not isinstance(getattr(module, attribute, None), nn.Module)
                and other not in children
                and (not certain or not method or _is_entered(method, mentioned))
                and not _is_replaced(type(module), cls, method)
            )
    return calls


def may_rectify(model: nn.Module) -> bool:
    """Whether it can contain a rectifier: it has one, or its code cannot be read."""
    return bool(functional_calls(model)) or any(
        rectifier_of(module) is not None or not type(module).__module__.startswith("torch.nn.")
        for module in model.modules()
    )


def has_only_known(model: nn.Module) -> bool:
    """Whether it can contain no activation that is not in the table: all of it is PyTorch's own."""
    return all(
        type(module).__module__.startswith("torch.nn.")
        # With other bounds than those in the table they are flat as well.
        and (rectifier_of(module) is not None or not isinstance(module, _CLIPPED))
        and all(value.__module__.startswith("torch") for value in _functions_of(module))
        for module in model.modules()
    )


def _functions_of(module: nn.Module) -> Iterator[types.FunctionType]:
    """Functions that it holds, as an encoder layer does its activation."""
    return (value for value in vars(module).values() if isinstance(value, types.FunctionType))


def _is_entered(method: str, mentioned: frozenset[str]) -> bool:
    """Whether a method may be called: PyTorch's ways in, and those with a name in the code."""
    return method == "forward" or method.startswith("__") or method in mentioned


def _mentioned_in(model: nn.Module) -> frozenset[str]:
    """Every name in the code of the model's classes, also as a text, for `getattr`."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    return frozenset().union(*map(_names_in, classes))


@functools.lru_cache(maxsize=1024)
def _names_in(cls: type) -> frozenset[str]:
    if cls.__module__.startswith("torch.nn.") or cls is object:
        return frozenset()
    names: set[str] = set()
    waiting = [
        code
        for value in vars(cls).values()
        for function in (getattr(value, "fget", None) or getattr(value, "__func__", value),)
        if isinstance(code := getattr(function, "__code__", None), types.CodeType)
    ]
    while waiting:
        code = waiting.pop()
        names.update(code.co_names)
        names.update(value for value in code.co_consts if isinstance(value, str))
        waiting += [value for value in code.co_consts if isinstance(value, types.CodeType)]
    return frozenset(names)


def _is_replaced(cls: type, base: type, method: str) -> bool:
    """Whether `cls` has a method in place of this one of `base`, which does not call it."""
    owner = next((each for each in cls.__mro__ if method in vars(each)), base)
    code = getattr(vars(owner).get(method), "__code__", None)
    return owner is not base and code is not None and "super" not in code.co_names


@functools.lru_cache(maxsize=1024)
def _written_in(
    cls: type, registered_names: frozenset[str]
) -> tuple[tuple[str, str, str, str], ...]:
    """(operator, attribute of `self`, method that it is in, attribute of something else) of the
    calls in the source of `cls`; empty where there is none. Registered functions are those of
    `registered_names` that the module of `cls` has.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return ()  # no source: made by exec, or not written in Python
    definition = tree.body[0]
    parts = definition.body if isinstance(definition, ast.ClassDef) else tree.body
    names = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
    if not registered_names:
        names = {}
    return tuple(call for part in parts for call in _calls_in(part, names))


def _calls_in(part: ast.stmt, names: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Of one statement; `names` are what it can call by name."""
    method = part.name if isinstance(part, ast.FunctionDef) else ""
    for node in ast.walk(part):
        if not isinstance(node, ast.Call):
            continue
        function, attribute, other = node.func, "", ""
        if (registered := _registered(function, names)) is not None:
            yield registered.activation, "", method, ""
            continue
        if isinstance(function, ast.Name):
            name = function.id
        elif isinstance(function, ast.Attribute):
            name = function.attr
            if isinstance(function.value, ast.Name) and function.value.id == "self":
                attribute = name
            elif not _is_library(function.value):
                other = name
        else:
            continue
        name = name.strip("_")
        if name in _CERTAIN or (name in _FROM_ZERO and _starts_at_zero(node, function)):
            yield name, attribute, method, other


def _registered(function: ast.expr, names: dict[str, Any]) -> Rectifier | None:
    """What was registered for a function that is called as `jump(x)` or `library.jump(x)`."""
    if isinstance(function, ast.Name):
        return registered_function(names.get(function.id))
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        library = names.get(function.value.id)
        if isinstance(library, types.ModuleType):
            return registered_function(vars(library).get(function.attr))
    return None


def _is_library(value: ast.expr) -> bool:
    """Whether functions of PyTorch are called through this name."""
    return isinstance(value, ast.Name) and value.id in {"torch", "F", "functional"}


def _starts_at_zero(call: ast.Call, function: ast.expr) -> bool:
    """Whether a clamp's lower bound is written as 0, by position or by name."""
    bounds: list[ast.expr] = [k.value for k in call.keywords if k.arg in {"min", "min_val"}]
    is_method = isinstance(function, ast.Attribute) and not _is_library(function.value)
    bounds += call.args[0 if is_method else 1 :][:1]
    return any(isinstance(bound, ast.Constant) and bound.value == 0 for bound in bounds)

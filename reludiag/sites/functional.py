"""Rectifiers called as functions: `F.relu(x)`, `x.clamp(min=0)`, `torch.maximum(x, zeros)`, ...

`RectifierMode` sees their calls. `functional_calls` searches a model's source code for them, to
decide whether the mode is needed and to list them without running the model.
"""

import ast
import functools
import inspect
import textwrap
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from reludiag.sites.guard import Guard, OnlyOnce
from reludiag.sites.rectifiers import is_zero, operator_names, rectifier_call, rectifier_of
from reludiag.sites.site import Rectifier
from reludiag.sites.torch_internals import holds_reals, version_of


class OnCall(Protocol):
    """Makes the call of a functional rectifier and returns its result."""

    def __call__(
        self, rectifier: Rectifier, pre_activation: Any, in_place: bool, call: Callable[[], Any]
    ) -> Any: ...


class RectifierMode(TorchFunctionMode):
    """Passes each functional rectifier call made while it is active to `on_call`.

    Besides the operators of the table it knows these spellings: `maximum(x, 0)`,
    `where(x > 0, x, 0)`, `x * (x > 0)`, `x.masked_fill(x < 0, 0)`, `x[x < 0] = 0` and
    `clamp(x, min=zeros)`, if it saw the zeros or the mask being made and they are unchanged since.
    """

    def __init__(self, on_call: OnCall, guard: Guard) -> None:
        super().__init__()
        self._on_call, self.guard = on_call, guard
        self._parts = _Parts()

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
            if torch.is_inference_mode_enabled() and _writes(name) and operator not in _PARTS:
                self._parts.clear()
            if operator in _OPERATORS:
                rectifier = rectifier_call(operator, args, kwargs)
                lower = args[1] if len(args) > 1 else kwargs.get("min")
                if isinstance(lower, Tensor) and self._parts.is_zero(lower):
                    rectifier = rectifier_call(operator, args[:1], {**kwargs, "min": 0})
                if rectifier is not None:
                    x = args[0] if args else kwargs.get("input")
                    in_place |= bool(kwargs.get("inplace"))
            elif operator in _PARTS:
                parts = _in_order(operator, args, kwargs)
                x = self._parts.rectified(operator, parts)
                if x is not None and holds_reals(x):
                    rectifier = Rectifier(operator, can_die=True, passes_input=True)
        except Exception as error:
            guard.error = error
            return func(*args, **kwargs)
        if rectifier is not None:
            written = x if operator == "setitem" else None
            call = OnlyOnce(func, args, kwargs, written)
            return call.within(guard, self._on_call, rectifier, x, in_place)
        result = func(*args, **kwargs)
        if parts is not None:
            try:
                self._parts.note(operator, parts, result)
            except Exception as error:
                guard.error = error
        return result


def _writes(name: str) -> bool:
    """Whether a function of this name writes in place: `add_`, `__iadd__`."""
    return name.startswith("__i") if name.endswith("__") else name.endswith("_")


_OPERATORS = operator_names()
_ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})
_FILLED = frozenset({"full", "full_like", "new_full"})
_MASKS = {"gt": True, "ge": True, "lt": False, "le": False}
_CASTS = frozenset({"float", "double", "half", "bfloat16", "to", "type_as", "type"})
_MAXIMA = frozenset({"maximum", "max", "fmax"})
_PARTS = (
    _ZEROS | _FILLED | _MASKS.keys() | _CASTS | _MAXIMA | {"where", "mul", "masked_fill", "setitem"}
)
_NAMES = frozenset({"input", "condition", "self", "other", "mask", "value", "fill_value"})


def _in_order(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments by position, as the function has them."""
    parts = args
    if kwargs:  # in the order of the signature, or it is a call that is not known
        parts = (*args, *(value for name, value in kwargs.items() if name in _NAMES))
    if operator == "where" and len(parts) == 3 and getattr(parts[1], "dtype", None) == torch.bool:
        return parts[1], parts[0], parts[2]  # x.where(mask, other)
    return parts


class _Parts:
    """Zeros and the masks `x > 0` and `x < 0`, from which a rectifier can be composed."""

    def __init__(self) -> None:
        # id -> (the tensor, its version, and of a mask: whose, that one's version, its sense)
        self._parts: dict[int, tuple[Any, ...]] = {}

    def clear(self) -> None:
        """Forget all: something was written in place where versions are not counted."""
        self._parts.clear()

    def note(self, operator: str, args: tuple[Any, ...], result: Any) -> None:
        """Remember a result from which a rectifier may be composed."""
        if not isinstance(result, Tensor) or not args:
            return
        what: tuple[Any, ...] | None = None
        if operator in _ZEROS or (operator in _FILLED and is_zero(args[-1])):
            what = ()
        elif operator in _MASKS and len(args) > 1 and self.is_zero(args[1]):
            what = (weakref.ref(args[0]), version_of(args[0]), _MASKS[operator])
        elif operator in _CASTS and (of := self._mask(args[0])) is not None:
            what = of
        if what is not None:
            key = id(result)
            reference = weakref.ref(result, lambda _: self._parts.pop(key, None))
            self._parts[key] = (reference, version_of(result), *what)

    def rectified(self, operator: str, args: tuple[Any, ...]) -> Tensor | None:
        """The tensor that this call rectifies; None if it is not a rectifier or this is unknown."""
        if operator in _MAXIMA and len(args) == 2:
            for x, other in (args, args[::-1]):
                if isinstance(x, Tensor) and isinstance(other, Tensor) and self.is_zero(other):
                    return x
        elif operator == "where" and len(args) == 3:
            mask, a, b = args
            for x, other, sense in ((a, b, True), (b, a, False)):
                if self._is_mask(mask, x, sense) and self.is_zero(other):
                    return x  # type: ignore[no-any-return]
        elif operator == "mul" and len(args) == 2:
            for x, mask in (args, args[::-1]):
                if self._is_mask(mask, x, True):
                    return x  # type: ignore[no-any-return]
        elif operator in {"masked_fill", "setitem"} and len(args) == 3:
            x, mask, value = args
            if self._is_mask(mask, x, False) and self.is_zero(value):
                return x  # type: ignore[no-any-return]
        return None

    def _part(self, value: Any) -> tuple[Any, ...] | None:
        part = self._parts.get(id(value)) if isinstance(value, Tensor) else None
        if part is None or part[0]() is not value or version_of(value) != part[1]:
            return None
        return part[2:]

    def is_zero(self, value: Any) -> bool:
        """Whether this is 0, or a tensor of zeros that was seen being made."""
        return self._part(value) == () or is_zero(value)

    def _mask(self, value: Any) -> tuple[Any, ...] | None:
        return self._part(value) or None

    def _is_mask(self, mask: Any, x: Any, sense: bool) -> bool:
        """Whether `mask` marks where `x` is positive (with a false `sense`: negative)."""
        source = self._mask(mask)
        return (
            source is not None
            and isinstance(x, Tensor)
            and source[0]() is x
            and version_of(x) == source[1]
            and source[2] is sense
        )


_FROM_ZERO = frozenset({"clamp", "clamp_min", "clip", "hardtanh"})
_CERTAIN = frozenset({"relu", "relu6", "hardswish", "hardsigmoid"})
_FUNCTIONS = frozenset(
    map(id, (functional.relu, functional.relu6, functional.hardswish, torch.relu))
)


def functional_calls(model: nn.Module, certain: bool = False) -> Counter[tuple[str, str]]:
    """(owner module, operator) -> number of calls in its class's source, or of functions that it
    holds.

    `block.relu(x)` may be a method of a tensor, or a submodule of `block`. If `certain`, it is left
    out where some module has a submodule of this name.
    """
    children = (
        {name for module in model.modules() for name, _ in module.named_children()}
        if certain
        else set()
    )
    calls: Counter[tuple[str, str]] = Counter()
    for path, module in model.named_modules():
        for value in vars(module).values():
            # nn.TransformerEncoderLayer(activation="relu") keeps F.relu as an attribute.
            if id(value) in _FUNCTIONS:
                calls[path, value.__name__] += 1
        for cls in type(module).__mro__:
            if cls.__module__.startswith("torch.nn."):
                break
            calls.update(
                (path, name)
                for name, attribute, method, other in _written_in(cls)
                # `self.relu(...)` is a submodule, which hooks do see.
                if not isinstance(getattr(module, attribute, None), nn.Module)
                and other not in children
                and not _is_replaced(type(module), cls, method)
            )
    return calls


def may_rectify(model: nn.Module) -> bool:
    """Whether it can contain a rectifier: it has one, or its code cannot be read."""
    return bool(functional_calls(model)) or any(
        rectifier_of(module) is not None or not type(module).__module__.startswith("torch.nn.")
        for module in model.modules()
    )


def _is_replaced(cls: type, base: type, method: str) -> bool:
    """Whether `cls` has a method in place of this one of `base`, which does not call it."""
    owner = next((each for each in cls.__mro__ if method in vars(each)), base)
    code = getattr(vars(owner).get(method), "__code__", None)
    return owner is not base and code is not None and "super" not in code.co_names


@functools.lru_cache(maxsize=1024)
def _written_in(cls: type) -> tuple[tuple[str, str, str, str], ...]:
    """(operator, attribute of `self`, method that it is in, attribute of something else) of the
    calls in the source of `cls`; empty where there is none.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return ()  # no source: made by exec, or not written in Python
    definition = tree.body[0]
    parts = definition.body if isinstance(definition, ast.ClassDef) else tree.body
    return tuple(call for part in parts for call in _calls_in(part))


def _calls_in(part: ast.stmt) -> Iterator[tuple[str, str, str, str]]:
    method = part.name if isinstance(part, ast.FunctionDef) else ""
    for node in ast.walk(part):
        if not isinstance(node, ast.Call):
            continue
        function, attribute, other = node.func, "", ""
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


def _is_library(value: ast.expr) -> bool:
    """Whether functions of PyTorch are called through this name."""
    return isinstance(value, ast.Name) and value.id in {"torch", "F", "functional"}


def _starts_at_zero(call: ast.Call, function: ast.expr) -> bool:
    """Whether a clamp's lower bound is written as 0, by position or by name."""
    bounds: list[ast.expr] = [k.value for k in call.keywords if k.arg in {"min", "min_val"}]
    is_method = isinstance(function, ast.Attribute) and not _is_library(function.value)
    bounds += call.args[0 if is_method else 1 :][:1]
    return any(isinstance(bound, ast.Constant) and bound.value == 0 for bound in bounds)

"""Functional rectifiers, found by reading a model's source: what no module hook will see.

This is for a model that has not been run; a forward pass tells more exactly.
"""

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

_NAMES = frozenset({"relu", "relu_", "relu6", "hardswish"})
_FROM_ZERO = frozenset({"clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_"})
_FUNCTIONS = (functional.relu, functional.relu6, functional.hardswish, torch.relu)


def functional_calls(model: nn.Module) -> Counter[tuple[str, str]]:
    """(owner module, operator) -> calls written in its class, or functions that it was given."""
    found: Counter[tuple[str, str]] = Counter()
    for path, module in model.named_modules():
        for value in vars(module).values():
            # nn.TransformerEncoderLayer(activation="relu") keeps F.relu as an attribute.
            if any(value is function for function in _FUNCTIONS):
                found[path, "relu"] += 1
        if isinstance(module, nn.RNN | nn.RNNCell) and module.nonlinearity == "relu":
            found[path, "relu"] += 1
        if not type(module).__module__.startswith("torch.nn."):
            found.update((path, name) for name in _written_in(module))
    return found


def _written_in(module: nn.Module) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))
    except (OSError, TypeError, SyntaxError):
        return  # no source: made by exec, or not written in Python
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name):
            name = function.id
        elif isinstance(function, ast.Attribute) and not _is_module(module, function):
            name = function.attr
        else:
            continue
        if name in _NAMES or (name in _FROM_ZERO and _starts_at_zero(node, function)):
            yield name.removesuffix("_")


def _is_module(module: nn.Module, function: ast.Attribute) -> bool:
    """Whether this is `self.relu(...)` of a submodule, which hooks do see."""
    return (
        isinstance(function.value, ast.Name)
        and function.value.id == "self"
        and isinstance(getattr(module, function.attr, None), nn.Module)
    )


def _starts_at_zero(call: ast.Call, function: ast.expr) -> bool:
    """Whether a clamp's lower bound is written as 0, by position or by name."""
    bounds: list[ast.expr] = [k.value for k in call.keywords if k.arg == "min"]
    is_method = isinstance(function, ast.Attribute) and not (
        isinstance(function.value, ast.Name) and function.value.id in {"torch", "F", "functional"}
    )
    bounds += call.args[0 if is_method else 1 :][:1]
    return any(isinstance(bound, ast.Constant) and bound.value == 0 for bound in bounds)

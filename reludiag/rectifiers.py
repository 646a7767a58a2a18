"""The rectifiers: which activations have a zero-gradient region, and how to read their output.

A rectifier is a row of `RECTIFIERS`; an activation that cannot die is a row of `LEAKY`. To teach
reludiag another one, add a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Rectifier:
    """How one rectifier module is read."""

    activation: str
    """Its name in reports, `ReLU6`."""
    can_die: bool
    """Whether it has a region in which its gradient is zero and its output is 0."""
    signed: bool = False
    """Its output may be negative outside that region, so that a unit fires where it is not 0."""


@dataclass(frozen=True)
class _Row:
    module: type[nn.Module]
    zero_gradient: str
    signed: bool = False
    when: Callable[[Any], bool] = lambda module: True


# The first row whose type matches and whose condition holds describes the module.
# In each of these regions the output is exactly 0; ReLU6 and its like are flat above as well.
RECTIFIERS: tuple[_Row, ...] = (
    _Row(nn.ReLU6, "x <= 0, x >= 6"),
    _Row(nn.ReLU, "x <= 0"),
    _Row(nn.Hardtanh, "x <= 0, x >= max_val", when=lambda m: m.min_val == 0),
    _Row(
        nn.Threshold,
        "x <= threshold",
        when=lambda m: m.value == 0 and m.threshold >= 0,
    ),
    _Row(nn.Hardswish, "x <= -3", signed=True),
    _Row(nn.Hardsigmoid, "x <= -3, x >= 3"),
    _Row(nn.Hardshrink, "|x| <= lambd", signed=True),
    _Row(nn.Softshrink, "|x| <= lambd", signed=True),
    _Row(nn.LeakyReLU, "x <= 0", when=lambda m: m.negative_slope == 0),
    _Row(nn.ELU, "x <= 0", when=lambda m: m.alpha == 0),
)

LEAKY: tuple[type[nn.Module], ...] = (
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
)


def _from_zero(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    lower = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
    return isinstance(lower, int | float) and lower == 0


# Operators that rectify, by their name in the dispatcher, each with the arguments for which it
# does. A forward pass is searched for them, to list the calls that no module hook can see.
OPERATORS: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], bool]] = {
    "relu": lambda args, kwargs: True,
    "clamp_min": _from_zero,
    "clamp": _from_zero,
    "hardtanh": _from_zero,
    "threshold": lambda args, kwargs: args[1] >= 0 and args[2] == 0,
    "hardswish": lambda args, kwargs: True,
    "_addmm_activation": lambda args, kwargs: not kwargs.get("use_gelu", False),
    # The fused encoder layer; its last flags say whether the activation is GELU.
    "_transformer_encoder_layer_fwd": lambda args, kwargs: not args[7],
}


def is_rectifying(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of a dispatcher operator (`relu_`, `clamp`, ...) is a rectifier."""
    applies = OPERATORS.get(operator.removesuffix("_"))
    return applies is not None and applies(args, kwargs)


def rectifier_of(module: nn.Module) -> Rectifier | None:
    """How `module` is read, or None if it is no activation that reludiag knows."""
    for row in RECTIFIERS:
        if isinstance(module, row.module) and row.when(module):
            return Rectifier(type(module).__name__, can_die=True, signed=row.signed)
    if isinstance(module, LEAKY):
        return Rectifier(type(module).__name__, can_die=False, signed=True)
    return None

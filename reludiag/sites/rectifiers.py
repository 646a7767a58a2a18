"""The rectifiers: which activations have a zero-gradient region, and how to read their output.

A rectifier is a row of `RECTIFIERS`, as a module, as an operator, or as both. To teach reludiag
another one, add a row; a user registers one (`registration.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from reludiag.sites.registration import registered_class, visible_modules
from reludiag.sites.site import Rectifier
from reludiag.sites.torch_internals import INT8_LAYERS, INT8_RECTIFIERS, holds_reals

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


def is_zero(value: Any) -> bool:
    """Whether this is 0: a number, or a tensor of one element that can be read without waiting."""
    if isinstance(value, Tensor):
        return (
            value.numel() == 1
            and value.device.type == "cpu"
            and not value.requires_grad
            and value.item() == 0
        )
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0


def _always(*_: Any) -> bool:
    return True


def _from_zero(args: Arguments, kwargs: Keywords) -> bool:
    lower = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
    return is_zero(lower)


def _threshold(args: Arguments, kwargs: Keywords) -> bool:
    values = dict(zip(("threshold", "value"), args[1:], strict=False)) | kwargs
    return bool(values["threshold"] >= 0) and is_zero(values["value"])


def _upper_of_module(module: Any) -> float | None:
    """The upper bound of a clipped module."""
    upper = getattr(module, "max_val", None)
    return upper if isinstance(upper, int | float) else None


def _upper_of_call(args: Arguments, kwargs: Keywords) -> float | None:
    """The upper bound of `clamp(x, 0, 1)` and its like."""
    names = ("max", "max_val")
    upper = args[2] if len(args) > 2 else next((kwargs[n] for n in names if n in kwargs), None)
    return upper if isinstance(upper, int | float) else None


def _no_slope(args: Arguments, kwargs: Keywords) -> bool:
    return is_zero(args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01))


@dataclass(frozen=True)
class _Row:
    """One rectifier. `operators` are names in `torch`, of methods, and in the dispatcher alike,
    without the underscores that say "in place".
    """

    zero_gradient: str
    """Where the gradient is zero; empty for activations that cannot die."""
    module: type[nn.Module] | None = None
    operators: tuple[str, ...] = ()
    signed: bool = False
    passes_input: bool = False
    module_if: Callable[[Any], bool] = _always
    operator_if: Callable[[Arguments, Keywords], bool] = _always
    upper: float | None = None
    """Its upper bound, where that is always the same."""

    def rectifier(self, activation: str, upper: float | None = None) -> Rectifier:
        """The description by its name in reports, and by its upper bound if it has one."""
        return Rectifier(
            activation,
            bool(self.zero_gradient),
            self.signed,
            self.passes_input,
            self.zero_gradient,
            self.upper if upper is None else upper,
        )


# The first matching row describes a module or an operator.
# In each of these regions the output is exactly 0; ReLU6 and similar ones are also flat above.
RECTIFIERS: tuple[_Row, ...] = (
    _Row("x <= 0, x >= 6", nn.ReLU6, ("relu6",), upper=6.0),
    _Row("x <= 0", nn.ReLU, ("relu",), passes_input=True),
    _Row(
        "x <= 0, x >= max_val",
        nn.Hardtanh,
        ("hardtanh", "clamp", "clamp_min", "clip"),
        module_if=lambda m: m.min_val == 0,
        operator_if=_from_zero,
    ),
    _Row(
        "x <= threshold",
        nn.Threshold,
        ("threshold",),
        passes_input=True,
        module_if=lambda m: m.value == 0 and m.threshold >= 0,
        operator_if=_threshold,
    ),
    _Row("x <= -3", nn.Hardswish, ("hardswish",), signed=True),
    _Row("x <= -3, x >= 3", nn.Hardsigmoid, ("hardsigmoid",), upper=1.0),
    _Row("|x| <= lambd", nn.Hardshrink, ("hardshrink",), signed=True),
    _Row("|x| <= lambd", nn.Softshrink, ("softshrink",), signed=True),
    _Row(
        "x <= 0",
        nn.LeakyReLU,
        ("leaky_relu",),
        module_if=lambda m: m.negative_slope == 0,
        operator_if=_no_slope,
    ),
    _Row("x <= 0", nn.ELU, module_if=lambda m: m.alpha == 0),
    # Layers that rectify their own product.
    *(
        _Row("x <= 0", module, module_if=lambda m: m.nonlinearity == "relu")
        for module in (nn.RNN, nn.RNNCell)
    ),
    *(_Row("x <= 0", module) for module in INT8_RECTIFIERS),
    *(
        _Row("", module, operators, signed=True)
        for module, operators in (
            (nn.LeakyReLU, ("leaky_relu",)),
            (nn.PReLU, ("prelu",)),
            (nn.RReLU, ("rrelu",)),
            (nn.ELU, ("elu",)),
            (nn.CELU, ("celu",)),
            (nn.SELU, ("selu",)),
            (nn.GELU, ("gelu",)),
            (nn.SiLU, ("silu",)),
            (nn.Mish, ("mish",)),
            (nn.Softplus, ("softplus",)),
        )
    ),
)

_BY_OPERATOR: dict[str, list[_Row]] = {}
for _row in RECTIFIERS:
    for _operator in _row.operators:
        _BY_OPERATOR.setdefault(_operator, []).append(_row)

# Operators with a rectifier inside that cannot be read, because its output never leaves them.
_FUSED: dict[str, Callable[[Arguments, Keywords], bool]] = {
    "addmm_activation": lambda args, kwargs: not kwargs.get("use_gelu", False),
    **dict.fromkeys(  # of a converted quantized model
        (
            "linear_relu",
            "linear_relu_dynamic",
            "conv1d_relu",
            "conv2d_relu",
            "conv3d_relu",
            "add_relu",
            "mul_relu",
            "batch_norm2d_relu",
            "batch_norm3d_relu",
        ),
        _always,
    ),
    # The fused encoder layer; this argument says whether the activation is GELU.
    "transformer_encoder_layer_fwd": lambda args, kwargs: not args[7],
}


def is_int8_layer(module: nn.Module) -> bool:
    """Whether this is a layer of a converted int8 model, whose weights are no parameters."""
    return isinstance(module, INT8_LAYERS)


def rectifier_of(module: nn.Module) -> Rectifier | None:
    """How to read the output of `module`; None if it is not a known activation."""
    registered = registered_class(module)
    if registered is not None:
        return registered
    for row in RECTIFIERS:
        if row.module is not None and isinstance(module, row.module) and row.module_if(module):
            return row.rectifier(type(module).__name__, _upper_of_module(module))
    return None


def rectifier_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Rectifier]]:
    """Path, module and description of every rectifier module, leaky ones included."""
    for path, module in visible_modules(model):
        rectifier = rectifier_of(module)
        if rectifier is not None:
            yield path, module, rectifier


def rectifier_call(operator: str, args: Arguments, kwargs: Keywords) -> Rectifier | None:
    """How to read the output of a call; None if it is not an activation (`clamp(x, min=0)` is one).

    `operator` is the name of a function, a method or a dispatcher operator. Calls on integers
    (indices, lengths) are not activations.
    """
    x = args[0] if args else kwargs.get("input")
    if isinstance(x, Tensor) and not holds_reals(x):
        return None
    rows = _BY_OPERATOR.get(operator.strip("_"))
    for row in rows or ():
        if row.operator_if(args, kwargs):
            upper = _upper_of_call(args, kwargs) if row.module is nn.Hardtanh else None
            return row.rectifier(operator.strip("_"), upper)
    return None


def is_fused_rectifier(operator: str, args: Arguments, kwargs: Keywords) -> bool:
    """Whether this dispatcher operator rectifies inside, where it cannot be read."""
    applies = _FUSED.get(operator.strip("_"))
    return applies is not None and applies(args, kwargs)


def operator_names() -> frozenset[str]:
    """The operators that can be rectifiers, depending on their arguments."""
    return frozenset(_BY_OPERATOR)

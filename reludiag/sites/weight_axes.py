"""Weights: how the axes of a parameter are followed to where it is multiplied."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from reludiag.sites.products import Convolution, Product

PARAMETRIZATIONS = "parametrizations"
"""Where torch.nn.utils.parametrize keeps the parameters that a weight is computed from."""


@dataclass(frozen=True)
class Weight:
    """A tensor that is a parameter, a view or copy of one, or was computed from parameters."""

    name: str
    shape: tuple[int, ...]
    """Of the parameter."""
    axes: tuple[tuple[int, ...], ...] | None
    """For each axis of the tensor, the axes of the parameter that it runs through, none for one of
    length 1. None if the tensor was computed from the parameter."""
    cut: frozenset[int] = frozenset()
    """Axes of the parameter of which it has only a part."""

    @property
    def is_bias(self) -> bool:
        """Whether it can be a bias: the numbers of all units, maybe of one product of several."""
        inside = {axis for each in self.axes or () for axis in each}
        return self.axes is not None and not self.cut & inside

    @classmethod
    def of(cls, name: str, parameter: Tensor) -> "Weight":
        """The parameter itself."""
        shape = tuple(parameter.shape)
        return cls(
            name, shape, tuple((axis,) if shape[axis] != 1 else () for axis in range(len(shape)))
        )

    def after(
        self, operator: str, args: tuple[Any, ...], shape: Sequence[int], out: Tensor
    ) -> "Weight":
        """The weight that `operator` made of this one, which had this `shape`."""
        computed = replace(self, axes=None)
        if self.axes is None:
            return computed
        axes, ndim = list(self.axes), len(shape)
        if operator in {"t", "transpose", "permute"}:
            order = list(range(ndim))
            if operator == "permute":
                order = [dim % ndim for dim in args[1]]
            elif ndim > 1:
                first, second = (args[1], args[2]) if operator == "transpose" else (0, 1)
                order[first], order[second] = order[second], order[first]
            return replace(self, axes=tuple(axes[old] for old in order))
        if operator in _SAME or operator in _RESHAPES:
            fitted = _refitted(axes, self.shape, tuple(shape), tuple(out.shape))
            return computed if fitted is None else replace(self, axes=fitted)
        if operator == "expand":
            added: list[tuple[int, ...]] = [()] * (out.ndim - ndim)
            return replace(self, axes=tuple(added + axes))
        if operator in _CUTS:
            place = 1 if operator in {"select", "slice", "unbind"} else 2
            dim = int(args[place]) % ndim if len(args) > place else 0
            drops = operator in {"select", "unbind"}
            is_less = shape[dim] != (1 if drops else out.shape[dim])
            cut = self.cut | frozenset(axes[dim] if is_less else ())
            if drops:
                del axes[dim]
            return replace(self, axes=tuple(axes), cut=cut)
        return computed


_SAME = frozenset({"detach", "clone", "to_copy", "contiguous", "alias", "lift_fresh"})
_RESHAPES = frozenset({"view", "unsafe_view", "reshape", "reshape_alias", "squeeze", "unsqueeze"})
_CUTS = frozenset({"select", "unbind", "slice", "split", "split_with_sizes"})
EXACT = _SAME | _RESHAPES | {"permute", "transpose", "t", "movedim", "expand"}
"""Operators that move values and change none."""


def _refitted(
    axes: Sequence[tuple[int, ...]],
    parameter: tuple[int, ...],
    old: tuple[int, ...],
    new: tuple[int, ...],
) -> tuple[tuple[int, ...], ...] | None:
    """The axes after a reshape that splits none of the parameter; None if it does."""
    if old == new:
        return tuple(axes)
    waiting = [axis for each in axes for axis in each]
    if math.prod(parameter[axis] for axis in waiting) != math.prod(new):
        return None  # a slice, or expanded
    fitted = []
    for length in new:
        inside, have = [], 1
        while have < length and waiting:
            axis = waiting.pop(0)
            inside.append(axis)
            have *= parameter[axis]
        if have != length:
            return None
        fitted.append(tuple(inside))
    return tuple(fitted)


def product_with(
    weight: Weight,
    producer: str,
    unit: int | None = None,
    summed: Sequence[int] = (),
    convolution: Convolution | None = None,
) -> Product:
    """The product with a weight of which axis `unit` numbers outputs and `summed` are summed over.

    Both are axes of the weight as it was used.
    """
    product = Product(producer, weight.name, convolution=convolution)
    if weight.axes is None or unit is None:
        return product
    axes = [weight.axes[dim] for dim in summed]
    if convolution is not None:
        # Of a kernel every axis counts, also one of length 1; only the parameter as it is fits.
        if any(
            len(weight.shape) != len(weight.axes) or dim not in (axis or (dim,))
            for dim, axis in enumerate(weight.axes)
        ):
            return product
        return replace(product, units=(unit,), summed=tuple(summed), is_whole=not weight.cut)
    units, sums = weight.axes[unit], tuple(axis for each in axes for axis in each)
    ones = [axis for axis, length in enumerate(weight.shape) if length == 1]
    # An axis of length 1 may be either; which does not matter for its numbers.
    if not sums and ones:
        sums = (ones.pop(),)
    if not units and ones:
        units = (ones.pop(),)
    # Of axes that number independent products, one may be chosen.
    is_whole = not weight.cut & {*units, *sums}
    return replace(product, units=units, summed=sums, is_whole=is_whole)


def producer_name(parameter: str, modules: Mapping[str, nn.Module]) -> str:
    """The path of the layer that a parameter belongs to, or the parameter's name if it is no layer
    of PyTorch's.
    """
    owner, _, name = parameter.rpartition(".")
    parts = owner.split(".") if owner else []
    if PARAMETRIZATIONS in parts:
        place = parts.index(PARAMETRIZATIONS)
        owner, name = ".".join(parts[:place]), parts[place + 1]
    module = modules.get(owner)
    # The layers of an exported program are plain modules that only hold their parameters.
    is_exported = type(module) is nn.Module and name.endswith("weight")
    if module is not None and (is_exported or _is_layer(module)):
        return owner
    return f"{owner}.{name}" if owner else name


def _is_layer(module: nn.Module) -> bool:
    """Whether its kind is PyTorch's, or derived from one with weights of its own."""
    containers = (
        nn.Module,
        nn.Sequential,
        nn.ModuleList,
        nn.ModuleDict,
        nn.ParameterList,
        nn.ParameterDict,
    )
    for cls in type(module).__mro__:
        if cls in containers:
            return False
        if cls.__module__.startswith(("torch.nn.modules", "torch.ao.nn", "torch.nn.quantized")):
            return True
    return False

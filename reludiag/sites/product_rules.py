"""Products: what each tensor was made with, from the operators of a forward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from reludiag.sites.axes import UNKNOWN, Coordinate, Origin, summed
from reludiag.sites.followed_call import FollowedCall
from reludiag.sites.operation import SHAPES
from reludiag.sites.operator_call import BIASED, PRODUCTS
from reludiag.sites.products import Convolution, Product
from reludiag.sites.torch_internals import DisableTorchFunction, without_dispatch_modes
from reludiag.sites.weight_axes import EXACT, PARAMETRIZATIONS, Weight, producer_name, product_with

ProductObserver = Callable[["SeenProduct"], None]
"""Called with each product of an input with a weight."""


@dataclass(frozen=True)
class SeenProduct:
    """One product as it was computed. Its tensors are the model's own memory: read them at once."""

    product: Product
    """Without a bias that is added later."""
    input: Tensor
    weight: Tensor
    """As it was used: maybe a view, a copy, or computed."""
    units_first: bool
    """Whether the weight of a matrix product is `[..., unit, input]`, and not `[..., input, unit]`.
    """
    from_left: bool
    """Whether the weight is its left factor, and the input `[..., input, row]`."""
    sample: Coordinate | None
    """Of the input."""
    is_first: bool
    """Whether the input depends on no parameter."""
    is_exact: bool
    """Whether it has no bias but that of the product."""
    is_known: bool
    """False for a convolution of which it is not known how it is done."""

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Weight and input of a matrix product, `[product, unit, input]` and `[product, row,
        input]`: several products only if they are independent, as those of experts.
        """
        weight = self.weight if self.units_first else self.weight.transpose(-1, -2)
        rows = self.input.transpose(-1, -2) if self.from_left else self.input
        if weight.ndim > 2 and rows.ndim > 2 and len(weight) > 1 and weight.stride(0):
            return weight, rows
        weight = weight[0] if weight.ndim > 2 else weight
        return weight[None], rows.reshape(1, -1, rows.shape[-1])


class ProductRules:
    """Says of which products each tensor is made, and keeps the first with each weight.

    `origin_of` says where a tensor made of weights comes from: it may be an activation as well.
    """

    def __init__(
        self,
        model: nn.Module,
        origin_of: Callable[[Tensor], Origin],
        on_product: ProductObserver | None,
    ) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._origin_of, self._on_product = origin_of, on_product
        self.products: dict[str, Product] = {}
        """The first product with each weight, by the weight's name."""

    def with_products(
        self, call: FollowedCall, origin: Origin, out: Tensor, is_product: bool
    ) -> Origin:
        """The origin of an operator's output, with the products that it was made of."""
        parts = [each.origin for each in call.inputs if isinstance(each.origin, Origin)]
        if is_product:
            seen = self._seen(call)
            if seen is not None and self._on_product is not None:
                with DisableTorchFunction(), without_dispatch_modes():
                    self._on_product(seen)
            product = None if seen is None else seen.product
            if product is None:
                names = (weight.name for weight in call.weights)
                product = next(
                    (Product(producer_name(name, self._modules), name) for name in names), None
                )
            made = replace(origin, products=() if product is None else (product,), rectifier="")
            if product is not None and seen is not None:
                self.products.setdefault(product.weight, product)
            if product is None or call.name not in BIASED:
                return replace(made, is_exact=seen is not None and seen.is_exact)
            added = call.origin_or_weight(call.args[0])
            if isinstance(added, Weight):
                return self._biased(replace(made, is_exact=True), added, call, out)
            return _joined(made, [made, UNKNOWN if added is None else added])
        if SHAPES.fullmatch(call.name):  # of its input it has no value
            return origin
        # What is computed from weights and constants may also be a product: the first step of a
        # recurrence, from a state of zeros.
        parts += [
            self._origin_of(each.tensor)
            for each in call.inputs
            if isinstance(each.origin, Weight) and each.origin.axes is None
        ]
        if call.name == "add" and len(parts) == len(call.weights) == 1:
            made = replace(origin, is_exact=parts[0].is_exact)
            return self._biased(made, call.weights[0], call, out)
        if call.name in PRODUCTS:  # of two activations, as in attention: of those with its units
            left, right = call.factors
            factors = [
                summed(call.origin(left), left.ndim - 1),
                summed(call.origin(right), right.ndim - 2),
            ]
            kept = [factor for factor in factors if factor.unit is not None]
            return _joined(origin, kept or parts)
        is_relu = _is_relu(call)
        joined = _joined(origin, parts, is_exact=is_relu or call.name in EXACT)
        # A site of the capture says its path later.
        return replace(joined, rectifier=call.name) if is_relu and joined.products else joined

    def _biased(self, origin: Origin, bias: Weight, call: FollowedCall, out: Tensor) -> Origin:
        """After a parameter was added to a product, which may be its bias."""
        origin = _with_bias(origin, bias, call, out)
        for product in origin.products if origin.is_exact else ():
            if self.products.get(product.weight) == replace(product, bias=None):
                self.products[product.weight] = product
        return origin

    def _seen(self, call: FollowedCall) -> SeenProduct | None:
        """The product of an input with a weight that an operator computes; None of a norm."""
        name, args = call.name, call.args
        if call.is_quantized:
            return None  # its weight is packed
        if "convolution" in name or name.startswith("mkldnn_conv"):
            x, tensor, convolution = args[0], args[1], None
            if name == "convolution":
                convolution = Convolution(
                    stride=tuple(args[3]),
                    padding=tuple(args[4]),
                    dilation=tuple(args[5]),
                    transposed=bool(args[6]),
                    output_padding=tuple(args[7]),
                    groups=int(args[8]),
                )
            weight, unit = call.origin_or_weight(tensor), int(name == "convolution" and args[6])
            inputs = [dim for dim in range(tensor.ndim) if dim != unit]
            from_left = False
        elif name in PRODUCTS:
            convolution = None
            x, tensor = call.factors
            weight = call.origin_or_weight(tensor)
            unit, inputs, from_left = tensor.ndim - 1, [tensor.ndim - 2], False
            if name == "linear":
                unit, inputs = inputs[0], [unit]
            if not isinstance(weight, Weight):
                x, tensor, from_left = tensor, x, True
                weight = call.origin_or_weight(tensor)
                unit, inputs = tensor.ndim - 2, [tensor.ndim - 1]
        else:
            return None
        if not isinstance(weight, Weight):
            return None
        source = call.input(x)
        assert source is not None
        if source.is_inner and PARAMETRIZATIONS in weight.name.split("."):
            return None  # a step of the parametrization, not of the network
        if "conv" in name and convolution is None:
            weight = replace(weight, axes=None)
        product = product_with(
            weight, producer_name(weight.name, self._modules), unit, inputs, convolution
        )
        has_bias = ("conv" in name or name == "linear") and len(args) > 2 and args[2] is not None
        bias = call.origin_or_weight(args[2]) if has_bias else None
        if isinstance(bias, Weight) and bias.is_bias:
            product = replace(product, bias=bias.name)
        return SeenProduct(
            product,
            x,
            tensor,
            unit < inputs[0],
            from_left,
            call.origin(x).sample,
            source.is_raw,
            is_exact=not has_bias or product.bias is not None,
            is_known="conv" not in name or convolution is not None,
        )


# The other arguments of an operator with which it is max(x, 0).
_FROM_ZERO: dict[str, tuple[tuple[Any, ...], ...]] = {
    "relu": ((),),
    "clamp_min": ((0,),),
    "clamp": ((0,), (0, None)),
    "threshold": ((0, 0),),
}


def _is_relu(call: FollowedCall) -> bool:
    """Whether an operator is max(x, 0), as the site of a ReLU has it behind its pre-activation."""
    name, bounds = call.name, call.args[1:]
    if any(isinstance(bound, Tensor) for bound in bounds):
        return False
    return bounds in _FROM_ZERO.get(name, ())


def _with_bias(origin: Origin, bias: Weight, call: FollowedCall, out: Tensor) -> Origin:
    """After a parameter was added: it is a bias if it has one number for each unit."""
    plain = replace(origin, is_exact=False)
    scales = [call.kwargs.get(name, 1) for name in ("alpha", "beta")]
    if not origin.is_exact or origin.rectifier or scales != [1, 1]:
        return plain
    if len(origin.products) != 1 or origin.products[0].bias is not None:
        return plain
    if bias.axes is None or not bias.is_bias or origin.unit is None:
        return plain
    shift = out.ndim - len(bias.axes)
    if {shift + dim for dim, axis in enumerate(bias.axes) if axis} != {c.axis for c in origin.unit}:
        return plain
    return replace(origin, products=(replace(origin.products[0], bias=bias.name),))


def _joined(origin: Origin, parts: Sequence[Origin], is_exact: bool = False) -> Origin:
    """The origin of what was made of these parts, with all of their products.

    A part that came through a rectifier is named by that: what made it is the rectifier's affair.
    `is_exact` says whether the operator is one that leaves a single part exact.
    """
    made = [part for part in parts if part.products or part.rectifier]
    if len(made) <= 1:
        part = made[0] if made else UNKNOWN
        is_exact = is_exact and part.is_exact and len(parts) == 1
        if (part.products, part.rectifier, is_exact) == (
            origin.products,
            origin.rectifier,
            origin.is_exact,
        ):
            return origin
        return replace(origin, products=part.products, rectifier=part.rectifier, is_exact=is_exact)
    products: list[Product] = []
    for part in made:
        products += [Product(part.rectifier, "")] if part.rectifier else part.products
    norms = [part.norm for part in made if not part.rectifier]
    return replace(
        origin,
        products=tuple(dict.fromkeys(products)),
        rectifier="",
        is_exact=False,
        norm=None if None in norms else origin.norm,
    )

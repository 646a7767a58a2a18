"""Layers: the weights of a network that can be read and drawn, of modules or plain parameters.

A plain parameter is a layer only where it is multiplied, so the forward has to be followed once, on
a copy of the model. Without a batch, inputs are tried whose sizes fit the first weights: which axes
of a weight are summed over does not depend on the values.
"""

import copy
import inspect
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from reludiag.capture.model_state import preserve_state
from reludiag.errors import ReludiagError
from reludiag.measure.frozen_pass import Scanner
from reludiag.sites.products import Product
from reludiag.sites.torch_internals import parameters_of

WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Module types with a weight `[out, in, *kernel]` (transposed: `[in, out, *kernel]`) to draw."""
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

ROWS = 2
"""Samples of an input that is made up."""
SIDES = (32, 8, 28, 16, 64, 224, 96, 128)
"""Lengths of images that are tried, in pixels."""
FIRST = 4
"""Weights whose sizes are tried, from the first on."""


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer."""

    path: str
    """Of the module, or the name of the parameter."""
    module: nn.Module | None
    """None for a plain parameter."""
    product: Product | None
    """None for a module: its kind says which axes its weight has."""

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is `[input, unit, *kernel]`."""
        if self.product is None:
            return isinstance(self.module, TRANSPOSED)
        return self.product.convolution is not None and self.product.convolution.transposed

    @property
    def is_stored(self) -> bool:
        """Whether its weight and bias can be read without computing them."""
        if self.module is None:
            return True
        stored = {**vars(self.module), **parameters_of(self.module)}
        return {"weight", "bias"} <= stored.keys()

    def is_several(self, weight: Tensor) -> bool:
        """Whether a weight as `weight` returns it is of several independent products."""
        return self.product is not None and self.product.convolution is None and weight.ndim == 3

    def weight(self, model: nn.Module) -> Tensor:
        """The weight as `[unit, input, *kernel]`, in a transposed convolution `[input, unit,
        *kernel]`; of independent products, as of experts, `[product, unit, input]`.

        A weight that is computed is computed for this: do not ask for it of a model in training.
        """
        if self.product is None:
            weight: Tensor = getattr(self.module, "weight")  # noqa: B009
            return weight.detach()
        parameter = model.get_parameter(self.product.weight).detach()
        return (
            parameter
            if self.product.convolution is not None
            else _arranged(parameter, self.product)
        )

    def bias(self, model: nn.Module) -> Tensor | None:
        """`[unit]`; of independent products `[product * unit]`."""
        if self.product is None:
            bias: Tensor | None = getattr(self.module, "bias")  # noqa: B009
            return None if bias is None else bias.detach()
        if self.product.bias is None:
            return None
        return model.get_parameter(self.product.bias).detach().flatten()

    def restored(self, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """A weight as `weight` returns it, with the axes of the parameter, which has this shape."""
        product = self.product
        if product is None or product.convolution is not None:
            return weight
        order = _order(product, len(shape))
        inverse = [order.index(axis) for axis in range(len(shape))]
        return weight.reshape([shape[axis] for axis in order]).permute(inverse)


@dataclass(frozen=True)
class Structure:
    """What a followed forward says of a model's weights."""

    products: tuple[Product, ...]
    """The product with each weight."""
    ambiguous: frozenset[str]
    """Names of weights that feed sites in two ways, as one that is also used transposed."""
    feeding: frozenset[str]
    """Names of the parameters that the output of a site depends on."""


def layers_of(model: nn.Module, structure: Structure | None) -> dict[str, LayerWeights]:
    """Linear layers and convolutions by path, and the plain parameters that are one in `structure`,
    in the order of the model's parameters. A module with several paths has the first.
    """
    layers = {
        path: LayerWeights(path, module, None)
        for path, module in model.named_modules()
        if isinstance(module, WEIGHTED) and not has_no_shape(module)
    }
    if structure is None:
        return layers
    modules = dict(model.named_modules(remove_duplicate=False))
    raw = {
        product.producer: LayerWeights(product.producer, None, product)
        for product in structure.products
        if product.is_plain
        and product.weight not in structure.ambiguous
        and product.producer not in modules
    }
    order = {name: index for index, (name, _) in enumerate(model.named_parameters())}

    def place(layer: LayerWeights) -> int:
        if layer.product is not None:
            return order[layer.product.weight]
        prefix = f"{layer.path}." if layer.path else ""
        return min((n for name, n in order.items() if name.startswith(prefix)), default=-1)

    if not raw:
        return layers
    return {layer.path: layer for layer in sorted([*layers.values(), *raw.values()], key=place)}


def has_no_shape(module: nn.Module) -> bool:
    """Whether it is lazy, and its weight has no shape before the first batch. Computes nothing."""
    weight = parameters_of(module).get("weight")
    return weight is not None and is_lazy(weight)


def structure_of(model: nn.Module, batch: Any = None) -> Structure | None:
    """What a forward of `batch` says of the model's weights; it runs a copy of the model.

    Without a batch one is made up that fits the first weights. None if the model cannot be copied,
    takes no such input, or has no site.
    """
    with preserve_state(model):
        try:
            twin = copy.deepcopy(model)
        except Exception:  # a module may hold a lock, a file, a tensor of a graph
            return None
        batches = _made_up(twin) if batch is None else [batch]
        for each in batches:
            try:
                scanner = Scanner(twin)
                with warnings.catch_warnings():  # about an input that is not the user's
                    warnings.simplefilter("ignore" if batch is None else "default")
                    sites = [counts.site for counts in scanner.run([each]).sites]
            except (ReludiagError, RecursionError):
                continue
            return structure_from(scanner, [p for site in sites for p in site.products])
    return None


def structure_from(scanner: Scanner, feeding_sites: Iterable[Product]) -> Structure | None:
    """The structure that a scanner has seen; `feeding_sites` are the products of its sites."""
    products, ambiguous = {p.weight: p for p in scanner.products}, set()
    at_sites: dict[str, Product] = {}
    for product in feeding_sites:
        other = at_sites.setdefault(product.weight, product)
        if (other.units, other.summed) != (product.units, product.summed):
            ambiguous.add(product.weight)
    if not scanner.feeding:
        return None
    named = {**products, **{weight: product for weight, product in at_sites.items() if weight}}
    return Structure(tuple(named.values()), frozenset(ambiguous), scanner.feeding)


def _arranged(parameter: Tensor, product: Product) -> Tensor:
    """`[unit, input]`, or `[product, unit, input]` if there are several."""
    order = _order(product, parameter.ndim)
    counts = (
        order[: parameter.ndim - len(product.units) - len(product.summed)],
        product.units,
        product.summed,
    )
    shape = [math.prod(parameter.shape[axis] for axis in axes) for axes in counts]
    arranged = parameter.permute(order).reshape(shape)
    return arranged[0] if shape[0] == 1 else arranged


def _order(product: Product, ndim: int) -> list[int]:
    own = (*product.units, *product.summed)
    return [axis for axis in range(ndim) if axis not in own] + list(own)


def _made_up(model: nn.Module) -> Iterator[Tensor]:
    """Inputs that may fit a model with one input, the likeliest first."""
    required = [
        parameter
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 1:
        return
    first = next(model.parameters(), torch.zeros(0))
    shapes = dict.fromkeys(itertools.chain.from_iterable(_shapes_by_weight(model)))
    for shape, is_index in shapes:
        dtype = torch.long if is_index else first.dtype
        yield torch.zeros((ROWS, *shape), dtype=dtype, device=first.device)


def _shapes_by_weight(model: nn.Module) -> Iterator[list[tuple[tuple[int, ...], bool]]]:
    """For each of the first weights, the shapes of a sample that fit it, and whether it is of
    indices.
    """
    modules = dict(model.named_modules())
    seen = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or is_lazy(parameter):
            continue
        seen += 1
        if seen > FIRST:
            return
        module: Any = modules.get(name.rpartition(".")[0].partition(".parametrizations")[0])
        if isinstance(module, nn.Embedding):
            yield [((8,), True)]
        elif isinstance(module, nn.Linear):
            yield [((module.in_features,), False), ((5, module.in_features), False)]
        elif isinstance(module, WEIGHTED):
            dims, channels = parameter.ndim - 2, getattr(module, "in_channels", 1)
            yield [((int(channels), *[side] * dims), False) for side in SIDES]
        elif parameter.ndim >= 3:
            sizes = dict.fromkeys(parameter.shape[:2])
            dims = parameter.ndim - 2
            images = [((size, *[side] * dims), False) for side in SIDES[:2] for size in sizes]
            vectors = [((size,), False) for size in parameter.shape]
            yield [*images, *vectors]
        else:
            yield [((size,), False) for size in parameter.shape]
            yield [((5, size), False) for size in parameter.shape]

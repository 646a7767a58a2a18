"""Initialization schemes: their names, their variances, and how to draw a model's weights again.

A scheme is a row of `SCHEMES`. Drawing and recognizing weights (`identification`) use the same row,
so they cannot differ.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reludiag.errors import UsageError
from reludiag.initialization.layers import (
    WEIGHTED,
    LayerWeights,
    Structure,
    has_no_shape,
    layers_of,
    structure_of,
)
from reludiag.sites.torch_internals import parameters_of
from reludiag.sites.weight_axes import producer_name

Distribution = Literal["normal", "uniform", "truncated_normal", "orthogonal"]

DEFAULT = "default"
"""The name for the initialization by the model's own code."""

NO_RECTIFIER = "it feeds no rectifier"
NO_PRODUCT = "it is not multiplied with an input"
NOTHING_DRAWN = "nothing could be drawn anew: "
MOST_NAMED = 4
"""Of more weights that were left, only these many are named in a sentence."""

TRUNCATION = 2.0
"""Where a truncated normal ends, in standard deviations of the full normal."""
TRUNCATED_VARIANCE = 0.7737413
"""Variance of a standard normal cut at +-2: 1 - 4 phi(2) / (2 Phi(2) - 1)."""


class Fans(NamedTuple):
    """The sizes that determine a scheme's variance, counted as in `torch.nn.init`."""

    fan_in: int
    """`shape[1] * positions of the kernel`; for a transposed convolution this is the output side.
    """
    fan_out: int
    """`shape[0] * positions of the kernel`."""
    rows: int
    """`shape[0]`: an orthogonal weight is one matrix of `[rows, fan_in]`."""


@dataclass(frozen=True)
class Scheme:
    """One scheme to draw weights with mean 0."""

    name: str
    distribution: Distribution
    variance: Callable[[Fans], float]
    """Variance of a weight, after truncation."""
    of: str
    """The variance as a formula, for reading."""


# He et al. 2015 (1502.01852, section 2.2), Glorot & Bengio 2010 (equations 12 and 16), LeCun et
# al. 1998 (section 4.6), Saxe et al. 2013 (1312.6120); "pytorch" is `reset_parameters` of its
# Linear and Conv: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), a sixth of He's variance.
SCHEMES: tuple[Scheme, ...] = (
    Scheme("pytorch", "uniform", lambda f: 1 / (3 * f.fan_in), "1/(3 fan_in)"),
    Scheme("kaiming_normal", "normal", lambda f: 2 / f.fan_in, "2/fan_in"),
    Scheme("kaiming_uniform", "uniform", lambda f: 2 / f.fan_in, "2/fan_in"),
    Scheme("xavier_normal", "normal", lambda f: 2 / (f.fan_in + f.fan_out), "2/(fan_in+fan_out)"),
    Scheme("xavier_uniform", "uniform", lambda f: 2 / (f.fan_in + f.fan_out), "2/(fan_in+fan_out)"),
    Scheme("lecun_normal", "normal", lambda f: 1 / f.fan_in, "1/fan_in"),
    Scheme("lecun_uniform", "uniform", lambda f: 1 / f.fan_in, "1/fan_in"),
    Scheme("orthogonal", "orthogonal", lambda f: 1 / max(f.rows, f.fan_in), "1/max(rows, fan_in)"),
    Scheme(
        "truncated_normal",
        "truncated_normal",
        lambda _: 0.02**2 * TRUNCATED_VARIANCE,
        "0.02^2, cut at 0.04",
    ),
    Scheme("normal", "normal", lambda _: 1.0, "1"),
    # What the authors of well-known networks use: ResNet's convolutions, GPT-2 and BERT, the heads
    # of VGG; and the variance scaling of JAX and TensorFlow, which cuts its normals.
    Scheme("kaiming_normal_fan_out", "normal", lambda f: 2 / f.fan_out, "2/fan_out"),
    Scheme("normal_0.02", "normal", lambda _: 0.02**2, "0.02^2"),
    Scheme("normal_0.01", "normal", lambda _: 0.01**2, "0.01^2"),
    Scheme("kaiming_truncated", "truncated_normal", lambda f: 2 / f.fan_in, "2/fan_in"),
    Scheme("lecun_truncated", "truncated_normal", lambda f: 1 / f.fan_in, "1/fan_in"),
)
ALIASES = {
    "kaiming": "kaiming_normal",
    "he": "kaiming_normal",
    "xavier": "xavier_normal",
    "glorot": "xavier_normal",
    "lecun": "lecun_normal",
}

_BY_NAME = {scheme.name: scheme for scheme in SCHEMES}


@dataclass(frozen=True)
class Redraw:
    """What a new draw of a model's weights changed, and what it left."""

    drawn: tuple[str, ...] = ()
    """Paths of the modules, and names of the plain parameters, whose weights were drawn."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Of the other weights with two axes or more: why they were left."""

    def left_in_words(self) -> str:
        """The weights that were left although they may kill units, with the reason, in one line."""
        kept = {
            name: why for name, why in self.left.items() if why not in (NO_RECTIFIER, NO_PRODUCT)
        }
        parts = [f"{name} ({why})" for name, why in list(kept.items())[:MOST_NAMED]]
        if len(kept) > MOST_NAMED:
            parts.append(f"{len(kept) - MOST_NAMED} more")
        return ", ".join(parts)

    def notes(self) -> list[str]:
        """A sentence on these weights, if there are any."""
        names = self.left_in_words()
        return [f"Weights that a new draw leaves as they are: {names}."] if names else []


def scheme_named(name: str) -> Scheme | None:
    """The scheme with this name or alias, None for "default"; raises UsageError for others."""
    if name == DEFAULT:
        return None
    scheme = _BY_NAME.get(ALIASES.get(name, name))
    if scheme is None:
        raise UsageError(
            f"there is no initialization scheme {name!r}; expected one of "
            f"{', '.join([DEFAULT, *_BY_NAME])} "
            f"({', '.join(f'{short} is {long}' for short, long in ALIASES.items())})"
        )
    return scheme


def fans_of(shape: Sequence[int]) -> Fans:
    """Fans of a weight of `[out, in, *kernel]`."""
    kernel = math.prod(shape[2:])
    return Fans(shape[1] * kernel, shape[0] * kernel, shape[0])


def reinitialize(model: nn.Module, scheme: str, seed: int, batch: Any = None) -> Redraw:
    """Draw the weights of every layer that feeds a rectifier again, in place; biases become 0.

    Layers are the Linear and Conv modules (also transposed), and plain parameters that are used as
    one: `x @ self.W + self.b`. Which these are, and what feeds a rectifier, a forward of `batch`
    says, which runs on a copy of the model; without it one is made up that fits the first weights.
    If neither is possible, every such module is drawn, and no plain parameter.

    "pytorch" also draws the biases, as PyTorch does; "default" changes nothing. Norms, embeddings,
    weights tied to an embedding, and what feeds no rectifier, such as an output head, do not
    change. The same seed gives the same weights on every device; global random number streams are
    not used. Returns what was drawn and what was left. Raises UsageError for an unknown name, or
    for a weight that cannot be set.
    """
    named_scheme = scheme_named(scheme)
    if named_scheme is None:
        return Redraw()
    for path, module in model.named_modules():
        if isinstance(module, WEIGHTED) and has_no_shape(module):
            raise UsageError(
                f"{path} is lazy: its shape is unknown before the first batch. Call the model on "
                "one batch, then initialize it"
            )
    return redraw(model, named_scheme, seed, structure_of(model, batch))


def redraw(model: nn.Module, scheme: Scheme, seed: int, structure: Structure | None) -> Redraw:
    """The same, for a model of this structure; None if it is not known."""
    generator = torch.Generator().manual_seed(seed)
    tied, done = _tied_elsewhere(model), set[int]()
    drawn: list[str] = []
    left: dict[str, str] = {}
    for path, layer in layers_of(model, structure).items():
        tensors = _tensors_of(model, layer)
        if id(tensors.get("weight")) in tied:
            left[path] = "it is tied to another layer"
        elif structure is not None and not _feeds(layer, structure):
            left[path] = NO_RECTIFIER
        elif id(tensors.get("weight")) in done:
            drawn.append(path)
        else:
            _draw_layer(model, layer, scheme, generator, tied | done)
            drawn.append(path)
            done |= {id(tensor) for tensor in tensors.values()}
    return Redraw(tuple(drawn), {**left, **_not_layers(model, structure, {*drawn, *left})})


def _tensors_of(model: nn.Module, layer: LayerWeights) -> dict[str, nn.Parameter | None]:
    """The parameters of a layer; without those that are computed at each access."""
    if layer.module is not None:
        return parameters_of(layer.module)
    product = layer.product
    names = {} if product is None else {"weight": product.weight, "bias": product.bias}
    return {key: model.get_parameter(name) for key, name in names.items() if name is not None}


def _feeds(layer: LayerWeights, structure: Structure) -> bool:
    if layer.product is not None:
        return layer.product.weight in structure.feeding
    prefix = f"{layer.path}." if layer.path else ""
    return any(name.startswith(prefix) for name in structure.feeding)


def _draw_layer(
    model: nn.Module,
    layer: LayerWeights,
    scheme: Scheme,
    generator: torch.Generator,
    kept: Set[int],
) -> None:
    """Draw a layer's weight and bias, except those with these identities."""
    weight, bias = layer.weight(model), layer.bias(model)
    # Independent products, as of experts, are drawn one by one.
    one = weight[0] if layer.is_several(weight) else weight
    count = weight.numel() // max(1, one.numel())
    draws = [draw(scheme, tuple(one.shape), generator) for _ in range(count)] or [weight]
    values = torch.stack(draws) if count > 1 else draws[0]
    tensors = _tensors_of(model, layer)
    start = None if bias is None else torch.zeros(bias.shape)
    fan_in = fans_of(one.shape).fan_in
    if start is not None and scheme.name == "pytorch" and fan_in:
        bound = 1 / math.sqrt(fan_in)
        start.uniform_(-bound, bound, generator=generator)
    if layer.module is not None:
        _set(layer.module, "weight", values, layer.path)
        if start is not None and id(tensors.get("bias")) not in kept:
            _set(layer.module, "bias", start, layer.path)
        return
    with torch.no_grad():
        parameter = tensors["weight"]
        assert parameter is not None
        parameter.copy_(layer.restored(values, parameter.shape))
        own_bias = tensors.get("bias")
        if own_bias is not None and start is not None and id(own_bias) not in kept:
            own_bias.copy_(start.reshape(own_bias.shape))


def _not_layers(model: nn.Module, structure: Structure | None, named: Set[str]) -> dict[str, str]:
    """Why plain parameters with two axes or more are no layer that could be drawn."""
    used = {} if structure is None else {each.weight: each for each in structure.products}
    left = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        producer = producer_name(name, modules)
        if parameter.ndim < 2 or producer in named or producer in modules:
            continue
        product = used.get(name)
        if structure is not None and name not in structure.feeding:
            left[name] = NO_RECTIFIER
        elif structure is None:
            left[name] = "without a batch it is not known which of its axes are units"
        elif name in structure.ambiguous:
            left[name] = "it is used in two ways"
        elif product is None:
            left[name] = NO_PRODUCT
        elif not product.is_whole:
            left[name] = "it is used in parts"
        else:
            left[name] = "the weight is computed from it"
    return left


def draw(scheme: Scheme, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A weight of `[out, in, *kernel]` from the scheme, on the CPU."""
    weight = torch.empty(tuple(shape))
    if weight.numel() == 0:
        return weight
    std = math.sqrt(scheme.variance(fans_of(shape)))
    match scheme.distribution:
        case "normal":
            return nn.init.normal_(weight, 0, std, generator=generator)
        case "uniform":
            bound = math.sqrt(3) * std
            return nn.init.uniform_(weight, -bound, bound, generator=generator)
        case "truncated_normal":
            std /= math.sqrt(TRUNCATED_VARIANCE)
            cut = TRUNCATION * std
            return nn.init.trunc_normal_(weight, 0, std, -cut, cut, generator=generator)
        case "orthogonal":
            return nn.init.orthogonal_(weight, generator=generator)


def _tied_elsewhere(model: nn.Module) -> set[int]:
    """Parameters that a module of another kind also holds, such as an embedding tied to a language
    head.

    Compared by identity, as are weights already drawn: a weight of two layers is drawn once. A
    module of the user's own holds plain parameters, which are tied to nothing else.
    """
    return {
        id(parameter)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not isinstance(module, WEIGHTED)
        and producer_name(f"{path}.{name}" if path else name, {path: module}) == path
    }


def _set(module: nn.Module, name: str, values: Tensor, path: str) -> None:
    current = getattr(module, name)
    values = values.to(current.device, current.dtype)
    with torch.no_grad():
        if name in parameters_of(module):
            current.copy_(values)
            return
        refused: Exception | None = None
        if parametrize.is_parametrized(module, name):
            try:
                setattr(module, name, values)  # through the right inverse of its parametrization
                return
            except (NotImplementedError, RuntimeError, ValueError) as error:
                refused = error
        raise UsageError(
            f"the {name} of {path} is computed from other parameters and cannot be drawn again. "
            "Initialize the model before you wrap it (weight norm, spectral norm, ...)"
        ) from refused

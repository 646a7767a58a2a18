"""Initialization schemes: their names, their variances, and how to draw a model's weights again.

A scheme is a row of `SCHEMES`. Drawing and recognizing weights (`identification`) use the same row,
so they cannot differ.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from reludiag.errors import UsageError
from reludiag.sites.torch_internals import parameters_of

Distribution = Literal["normal", "uniform", "truncated_normal", "orthogonal"]

DEFAULT = "default"
"""The name for the initialization by the model's own code."""

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


def reinitialize(model: nn.Module, scheme: str, seed: int) -> None:
    """Draw the weights of every Linear and Conv (also transposed) again, in place; biases become 0.

    "pytorch" also draws the biases, as PyTorch does; "default" changes nothing. Norms, embeddings
    and weights tied to an embedding do not change. The same seed gives the same weights on every
    device; global random number streams are not used. Raises UsageError for an unknown name, or for
    a weight that cannot be set.
    """
    named_scheme = scheme_named(scheme)
    if named_scheme is None:
        return
    generator = torch.Generator().manual_seed(seed)
    done = _tied_elsewhere(model)
    for path, module in model.named_modules():
        if not isinstance(module, WEIGHTED) or _parameter_id(module, "weight") in done:
            continue
        if is_lazy(module.weight):
            raise UsageError(
                f"{path} is lazy: its shape is unknown before the first batch. Call the model on "
                "one batch, then initialize it"
            )
        fans = fans_of(module.weight.shape)
        _set(module, "weight", draw(named_scheme, tuple(module.weight.shape), generator), path)
        if module.bias is not None and _parameter_id(module, "bias") not in done:
            bias = torch.zeros(module.bias.shape)
            if named_scheme.name == "pytorch" and fans.fan_in:
                bound = 1 / math.sqrt(fans.fan_in)
                bias.uniform_(-bound, bound, generator=generator)
            _set(module, "bias", bias, path)
        done |= {id(parameter) for parameter in module.parameters(recurse=False)}


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

    Compared by identity, as are weights already drawn: a weight of two layers is drawn once.
    """
    return {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, WEIGHTED)
        for parameter in module.parameters(recurse=False)
    }


def _parameter_id(module: nn.Module, name: str) -> int | None:
    """Identity of the parameter; None if it is computed at each access."""
    parameter = parameters_of(module).get(name)
    return None if parameter is None else id(parameter)


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

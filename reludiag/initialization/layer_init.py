"""The initialization of one layer: its scheme, and what is wrong with it.

This is valid only for weights at step 0.

Trained weights say nothing about their initialization and may look like another scheme: do not pass
them. `identification` names the scheme; if no scheme fits, it is "unknown", with the distribution
and the standard deviation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from reludiag.errors import UsageError
from reludiag.initialization.chance_deaths import (
    NARROW,
    WIDE,
    layer_dies_single_direction,
    needed_width,
)
from reludiag.initialization.exchangeability import CHANCE, spread_by_chance
from reludiag.initialization.identification import MEAN_Z, identify
from reludiag.initialization.layers import LayerWeights
from reludiag.initialization.masks import masked_units, unmasked_weight
from reludiag.initialization.schemes import Fans, fans_of

Floats = np.ndarray[Any, np.dtype[np.float64]]

HE_VARIANCE = 2.0
"""Var(w) * fan_in that keeps the scale of the signal through a ReLU (He et al. 2015, 2.2)."""
VARIANCE_FACTOR = 3.0
"""A variance off by more than this factor is reported; LeCun and Xavier are off by about 2."""
DEEP_BIAS = 0.5
"""A mean bias this many standard deviations of w.x below 0 silences a unit on 69 % of inputs
instead of half.
"""
SILENT_BIAS = 3.0
"""A unit with a bias this far below 0 fires on 0.13 % of inputs."""
RECTIFIED_MEAN = 1 / math.sqrt(math.pi)
"""Mean over root mean square of a rectified standard normal: (1/sqrt(2 pi)) / (1/sqrt(2))."""
SHIFT = 0.5
"""A shift of w.x by this many of its standard deviations is reported, as for a bias."""
_PATTERNS = frozenset({"zero", "constant", "identity", "orthogonal"})  # not drawn one by one
_ROUNDED = 1 + 2**-8  # a bound as bfloat16 may have rounded it


@dataclass(frozen=True)
class InitProblem:
    """One thing that is wrong with an initialization, with its number."""

    kind: str
    """negative_bias, weight_mean, constant, variance, nonfinite, not_drawn; with data also norm,
    bias_outweighs; mask; for a network too_narrow, input_shift, and what the lints of
    `measure.structure` find.
    """
    value: float
    """Depth of the bias or number of deep biases; mean of the weights; their variance / He's;
    number of non-finite weights; of units with only weights of 0, masked, or silenced by a norm;
    probability of a dead layer.
    """
    sentence: str
    advice: str
    kills_at_birth: bool
    """Whether it kills units at step 0. A wrong variance alone never does."""


@dataclass(frozen=True)
class LayerInit:
    """The initialization of one layer; `dataclasses.asdict` gives JSON-compatible values."""

    module: str
    shape: tuple[int, ...]
    fan_in: int
    """Number of weights that feed one unit; for a transposed convolution as if its stride were 1.
    """
    fan_out: int
    distribution: str
    """normal, uniform, truncated_normal, orthogonal, identity, constant, zero, nonfinite, empty;
    other for anything else."""
    scheme: str
    """The likeliest scheme, or unknown."""
    alike: tuple[str, ...]
    """Schemes that cannot be distinguished from it."""
    mean: float | None
    std: float | None
    mean_z: float | None
    """Mean of the weights in standard errors; None if all weights are equal."""
    gain: float | None
    """std * sqrt(fan_in): He's for ReLU is sqrt(2)."""
    bias: str
    """none, zero, constant, pytorch (uniform to 1/sqrt(fan_in), or within it), or drawn."""
    bias_mean: float | None
    bias_std: float | None
    bias_min: float | None
    bias_depth: float | None
    """How far the mean bias is below 0, in standard deviations of w.x for inputs of mean square 1;
    negative if it is above 0."""
    problems: tuple[InitProblem, ...]
    is_drawn: bool = True
    """Whether the weights can be a fresh draw; False if rows or columns differ by more than chance
    (see `exchangeability`).
    """
    zero_units: int = 0
    """Number of units whose weights are all 0, if others are not."""

    @property
    def name(self) -> str:
        """The scheme in words, with the schemes that cannot be distinguished from it."""
        if self.scheme == "unknown":
            spread = "" if self.std is None else f", std {self.std:.3g}"
            return f"unknown ({self.distribution}{spread})"
        return " or ".join((self.scheme, *self.alike))


def describe_layer(
    module_path: str,
    weight: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any] | None,
    transposed: bool = False,
    products: int = 1,
) -> LayerInit:
    """Describe how a layer was initialized, from its weights at step 0.

    `weight` is `[unit, input, *kernel]`, or `[input, unit, *kernel]` if `transposed`; `bias` is
    `[unit]`. The units may be those of several independent `products`, as of experts. Raises
    UsageError for a weight with fewer than two axes.
    """
    if weight.ndim < 2:
        raise UsageError(
            f"the weight of {module_path} has shape {list(weight.shape)}; expected "
            "[unit, input, *kernel], the weight of a linear layer or a convolution"
        )
    counted = fans_of((weight.shape[0] // products, *weight.shape[1:]))
    fan_in, fan_out = counted.fan_in, counted.fan_out
    if transposed:  # torch.nn.init counts the fans of a transposed convolution the other way round
        fan_in, fan_out = fan_out, fan_in
    matrix = np.asarray(weight, dtype=np.float64).reshape(weight.shape[0], counted.fan_in)
    scheme = identify(matrix, counted)
    mean = std = mean_z = None
    spread = 0.0
    if scheme.distribution not in {"nonfinite", "empty"}:
        mean = float(matrix.mean())
        # NumPy's standard deviation of equal numbers is not exactly 0.
        std = 0.0 if scheme.distribution in {"zero", "constant"} else float(matrix.std())
        mean_z = mean / std * math.sqrt(matrix.size) if std > 0 else None
        spread = math.sqrt(fan_in * (std**2 + mean**2))
    start = _Bias.of(bias, counted, spread)
    layer = LayerInit(
        module=module_path,
        shape=tuple(int(length) for length in weight.shape),
        fan_in=fan_in,
        fan_out=fan_out,
        distribution=scheme.distribution,
        scheme=scheme.scheme,
        alike=scheme.alike,
        mean=mean,
        std=std,
        mean_z=mean_z,
        gain=None if std is None else std * math.sqrt(fan_in),
        bias=start.kind,
        bias_mean=start.mean,
        bias_std=start.std,
        bias_min=start.minimum,
        bias_depth=start.depth,
        problems=(),
        is_drawn=scheme.distribution in _PATTERNS or spread_by_chance(matrix) >= CHANCE,
        zero_units=_zero_units(weight, transposed),
    )
    if not layer.is_drawn:
        return replace(layer, problems=(_not_drawn(layer), *_nonfinite(layer, start)))
    weights = _degenerate(layer, matrix) if mean_z is None else _weight_problems(layer, mean_z)
    if transposed:  # how many weights feed a unit depends on the stride
        weights = [problem for problem in weights if problem.kind != "variance"]
    return replace(layer, problems=(*weights, *_bias_problems(layer, start)))


def described_layer(model: nn.Module, layer: LayerWeights) -> LayerInit:
    """Describe how a layer of an untrained model was initialized.

    Its weight is computed for this if it is computed from others: pass a copy.
    """
    weight, bias = layer.weight(model), layer.bias(model)
    masked = None
    if layer.module is not None:
        masked = masked_units(layer.module, weight, layer.is_transposed)
        drawn = unmasked_weight(layer.module)
        if drawn is not None and masked is not None and drawn.shape == weight.shape:
            weight = drawn
    products = 1
    if layer.is_several(weight):
        products, weight = len(weight), weight.flatten(0, 1)
    arrays = [
        None if tensor is None else tensor.cpu().double().numpy() for tensor in (weight, bias)
    ]
    assert arrays[0] is not None
    described = describe_layer(layer.path, arrays[0], arrays[1], layer.is_transposed, products)
    if masked is None:
        return described
    return replace(described, problems=(_mask_problem(layer.path, masked), *described.problems))


def narrowness(widths: Sequence[int]) -> InitProblem | None:
    """The problem of consecutive layers of these widths that are too narrow for their number.

    The probability that one of them is completely dead at step 0 is at most 1 - prod(1 - 2^-N), for
    any architecture of zero bias and symmetric weights without normalization; see `chance_deaths`.
    """
    chance = layer_dies_single_direction(widths)
    if chance <= NARROW:
        return None
    width = WIDE * needed_width(len(widths), NARROW)
    return InitProblem(
        "too_narrow",
        chance,
        f"{len(widths)} layers, the narrowest of {min(widths)} units: with a probability of up "
        f"to {percent(chance)} one of them is completely dead at step 0, and the output of the "
        "network is constant",
        f"make each layer at least {width} units wide, or the network shallower",
        kills_at_birth=True,
    )


def percent(share: float) -> str:
    """A share in words, never rounded to 0 or 100 %."""
    if 0 < share < 5e-4:
        return "less than 0.05 %"
    if 1 - 5e-4 < share < 1:
        return "more than 99.95 %"
    return f"{100 * share:.1f} %"


def _zero_units(weight: np.ndarray[Any, Any], transposed: bool) -> int:
    by_unit = weight.swapaxes(0, 1) if transposed else weight
    zero = ~by_unit.any(axis=tuple(range(1, by_unit.ndim)))
    return 0 if zero.all() else int(zero.sum())


def _mask_problem(path: str, masked: np.ndarray[Any, np.dtype[np.bool_]]) -> InitProblem:
    count = int(masked.sum())
    return InitProblem(
        "mask",
        float(count),
        f"the mask of {path} leaves {count} of {len(masked)} units no weight, so that their bias "
        "alone decides whether they fire",
        f"set the mask of {path} to 1, unless these units were pruned on purpose: then they are "
        "meant to be dead",
        kills_at_birth=True,
    )


def _not_drawn(layer: LayerInit) -> InitProblem:
    zero = ""
    if layer.zero_units:
        have = "has" if layer.zero_units == 1 else "have"
        zero = f" {layer.zero_units} of its units {have} only weights of 0, as after pruning."
    return InitProblem(
        "not_drawn",
        float(layer.zero_units),
        f"the weights of {layer.module} are not a fresh draw: their rows or columns differ by more "
        "than chance. They were trained, pruned or otherwise edited, or an initializer of your "
        f"own made units unlike each other.{zero}".removesuffix("."),
        "to examine how the model was initialized, pass it as it is built, before a checkpoint is "
        "loaded",
        kills_at_birth=False,
    )


def _weight_problems(layer: LayerInit, mean_z: float) -> list[InitProblem]:
    assert layer.mean is not None and layer.std is not None and layer.gain is not None
    problems: list[InitProblem] = []
    if layer.distribution == "identity":  # chosen to pass on the input, which works
        return problems
    # The mean of w.x over inputs that are rectified, in its standard deviations.
    shift = RECTIFIED_MEAN * math.sqrt(layer.fan_in) * layer.mean / layer.std
    if abs(mean_z) > MEAN_Z and abs(shift) > SHIFT:
        problems.append(
            InitProblem(
                "weight_mean",
                layer.mean,
                f"the weights of {layer.module} have mean {layer.mean:.3g}, {abs(mean_z):,.0f} "
                "standard errors from 0: positive inputs, such as the outputs of a ReLU, shift "
                f"w.x by {shift:+.1f} of its standard deviations, and units are "
                + ("born dead" if shift < 0 else "always on"),
                f"draw the weights of {layer.module} with mean 0 (keep std {layer.std:.3g})",
                kills_at_birth=shift < 0,
            )
        )
    ratio = layer.gain**2 / HE_VARIANCE
    chance = 1 + MEAN_Z * math.sqrt(2 / math.prod(layer.shape))  # few weights scatter widely
    if max(ratio, 1 / ratio) > VARIANCE_FACTOR * chance:
        factor = f"{max(ratio, 1 / ratio):.3g}"
        problems.append(
            InitProblem(
                "variance",
                ratio,
                f"the variance of the weights of {layer.module} is {factor} times too "
                f"{'small' if ratio < 1 else 'large'} for a ReLU, which needs 2/fan_in: the "
                f"signal {'shrinks' if ratio < 1 else 'grows'} by a factor of "
                f"{math.sqrt(max(ratio, 1 / ratio)):.3g}. With zero bias this kills no unit at "
                "step 0, but it changes how large a training step is relative to the weights",
                f"start {layer.module} with kaiming_normal, std {math.sqrt(2 / layer.fan_in):.3g}",
                kills_at_birth=False,
            )
        )
    return problems


def _degenerate(layer: LayerInit, matrix: Floats) -> list[InitProblem]:
    """Description of weights that are all equal, not finite, or empty."""
    if layer.distribution == "empty":
        return []
    if layer.mean is None:
        count = int((~np.isfinite(matrix)).sum())
        return [
            InitProblem(
                "nonfinite",
                float(count),
                f"{count:,} weights of {layer.module} are NaN or infinite before the first step",
                f"initialize {layer.module} again",
                kills_at_birth=False,
            )
        ]
    dies = layer.mean < 0 or (layer.mean == 0 and (layer.bias_min or 0.0) <= 0)
    return [
        InitProblem(
            "constant",
            layer.mean,
            f"all weights of {layer.module} are {layer.mean:.3g}: its units differ only in their "
            "biases, so they all learn the same",
            f"draw the weights of {layer.module} at random, as kaiming_normal does",
            kills_at_birth=dies,
        )
    ]


@dataclass(frozen=True)
class _Bias:
    """The initialization of a layer's biases."""

    kind: str
    mean: float | None = None
    std: float | None = None
    minimum: float | None = None
    depth: float | None = None
    units: int = 0
    deep: int = 0
    """Number of units that are almost silenced by their bias alone."""
    is_negative: bool = False
    """Whether their mean is below 0 by more than chance."""

    @classmethod
    def of(cls, bias: np.ndarray[Any, Any] | None, fans: Fans, spread: float) -> "_Bias":
        """`spread` is the standard deviation of w.x for inputs of mean square 1."""
        if bias is None or bias.size == 0:
            return cls("none")
        values = np.asarray(bias, dtype=np.float64)
        if not np.isfinite(values).all():
            return cls("nonfinite", units=values.size)
        mean, std, lowest = float(values.mean()), float(values.std()), float(values.min())
        if not values.any():
            kind = "zero"
        elif lowest == values.max() and values.size > 1:
            kind = "constant"
        elif fans.fan_in and np.abs(values).max() <= _ROUNDED / math.sqrt(fans.fan_in):
            kind = "pytorch"
        else:
            kind = "drawn"
        # Zero weights are reported as `constant`; PyTorch's biases are small, and below 0 by
        # chance.
        if spread == 0 or kind == "pytorch":
            depth = -mean / spread if spread else None
            return cls(kind, mean, std, lowest, depth, values.size)
        return cls(
            kind,
            mean,
            std,
            lowest,
            -mean / spread,
            values.size,
            int((values < -SILENT_BIAS * spread).sum()),
            -mean > MEAN_Z * std / math.sqrt(values.size),
        )


def _nonfinite(layer: LayerInit, bias: _Bias) -> list[InitProblem]:
    if bias.kind != "nonfinite":
        return []
    sentence = f"the bias of {layer.module} has NaN or infinite values before the first step"
    advice = f"start the bias of {layer.module} at 0"
    return [InitProblem("nonfinite", float(bias.units), sentence, advice, False)]


def _bias_problems(layer: LayerInit, bias: _Bias) -> list[InitProblem]:
    from scipy import special

    if bias.kind == "nonfinite":
        return _nonfinite(layer, bias)
    if bias.depth is None or bias.mean is None or bias.minimum is None:
        return []
    if bias.is_negative and bias.depth > DEEP_BIAS:
        starts = "starts at" if bias.kind == "constant" else "has mean"
        sentence = (
            f"the bias of {layer.module} {starts} {bias.mean:.3g}, {bias.depth:.1f} standard "
            "deviations of w.x below 0 (for inputs of mean square 1): a unit fires on "
            f"{percent(float(special.ndtr(-bias.depth)))} of inputs instead of half"
        )
        value, lowest = bias.depth, f"starts at {bias.mean:.3g}"
    elif bias.deep:
        sentence = (
            f"{bias.deep} of {bias.units} biases of {layer.module} are more than {SILENT_BIAS:g} "
            f"standard deviations of w.x below 0, down to {bias.minimum:.3g}: such a unit fires "
            "on less than 0.14 % of inputs"
        )
        value, lowest = float(bias.deep), f"starts as low as {bias.minimum:.3g}"
    else:
        return []
    advice = f"the bias of {layer.module} {lowest}: start it at 0"
    return [InitProblem("negative_bias", value, sentence, advice, kills_at_birth=True)]

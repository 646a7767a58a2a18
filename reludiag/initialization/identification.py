"""Identifies the scheme of weights by likelihood over `schemes.SCHEMES`.

Schemes with about the same likelihood cannot be told apart, and all are named: Xavier equals LeCun
if fan_in is fan_out. If no scheme explains the weights, it is "unknown". Orthogonal weights are
tested first, by W W^T, because their entries look normal.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from reludiag.initialization.schemes import SCHEMES, TRUNCATED_VARIANCE, TRUNCATION, Fans

Floats = np.ndarray[Any, np.dtype[np.float64]]

INDISTINGUISHABLE = 7.0
"""Two schemes whose log-likelihoods differ by less cannot be told apart. At 3, as is usual, the
true one of two neighbours would be ruled out in up to 0.7 % of layers; at 7 in 0.01 %: for two
normals the chance is at most Phi(-sqrt(2 * 7)), whatever their variances.
"""
MISFIT = 14.0
"""A scheme is rejected if its log-likelihood is lower by this than that of its family with a free
variance: the probability is 1e-6 for a uniform, 1e-7 for a normal.
"""
SHAPE_P = 1e-7
"""A scheme is also rejected below this p-value (Kolmogorov-Smirnov)."""
_SAMPLE = 50_000  # evenly spread weights: sorting all of a large layer would take seconds
_GRAM = 64  # rows of W W^T that are looked at
_GRAM_ERROR = 1e-4

MEAN_Z = 5.0
"""A mean of the weights this many standard errors from 0 is not chance (p = 6e-7)."""


@dataclass(frozen=True)
class Identified:
    """The result for a layer's weights; the fields are those of `LayerInit`."""

    distribution: str
    scheme: str = "unknown"
    alike: tuple[str, ...] = ()


def identify(matrix: Floats, fans: Fans) -> Identified:
    """Name the scheme of `[row, column]` weights at step 0, whose fans are these."""
    values = matrix.ravel()
    if values.size == 0:
        return Identified("empty")
    if not np.isfinite(values).all():
        return Identified("nonfinite")
    if values.min() == values.max():
        name = "zero" if values[0] == 0 else "constant"
        return Identified(name, name)
    blocks = np.split(matrix, max(1, len(matrix) // max(1, fans.rows)))  # independent products
    if all(_is_orthogonal(block) for block in blocks):
        name = (
            "identity"
            if np.count_nonzero(values) == min(blocks[0].shape) * len(blocks)
            else "orthogonal"
        )
        return Identified(name, name)
    sample = _Sample.of(values)
    family = max(("normal", "uniform", "truncated_normal"), key=sample.best)
    likelihoods = {
        scheme: sample.log_likelihood(scheme.distribution, math.sqrt(scheme.variance(fans)))
        for scheme in SCHEMES
        if scheme.distribution != "orthogonal"
    }
    best = max(likelihoods, key=lambda scheme: likelihoods[scheme])
    fits = likelihoods[best] >= sample.best(family) - MISFIT
    if not fits or not sample.has_shape(best.distribution, math.sqrt(best.variance(fans))):
        # Even the likeliest of three families may not fit the weights.
        named = sample.has_shape(family, sample.best_std(family))
        return Identified(family if named else "other")
    alike = tuple(
        scheme.name
        for scheme, value in likelihoods.items()
        if scheme is not best and likelihoods[best] - value < INDISTINGUISHABLE
    )
    return Identified(best.distribution, best.name, alike)


@dataclass(frozen=True)
class _Sample:
    """The statistics from which the likelihoods are computed.

    Weights are centred first: Kaiming's weights shifted by -0.3 are still Kaiming's, and the shift
    is reported separately.
    """

    n: int
    square: float
    """Mean square."""
    largest: float
    """Largest magnitude, without what centring may have added."""
    rounded: float
    """Factor by which rounding may have moved the largest weight beyond its bound."""
    spread: Floats
    """Some of the weights, sorted."""

    @classmethod
    def of(cls, values: Floats) -> "_Sample":
        n, rounded = values.size, 1 + _resolution(values)
        mean, error = values.mean(), values.std() / math.sqrt(n)
        slack = 0.0
        if abs(mean) > MEAN_Z * error:
            values, slack = values - mean, MEAN_Z * error
        step = max(1, n // _SAMPLE)
        largest = float(np.abs(values).max()) - slack
        square = float(np.square(values).mean())
        return cls(n, square, largest, rounded, np.sort(values[::step]))

    def log_likelihood(self, distribution: str, std: float) -> float:
        """Of the weights, drawn with this standard deviation."""
        if distribution == "uniform":
            bound = math.sqrt(3) * std
            if self.largest > bound * self.rounded:
                return -math.inf
            # Rounding allows a weight beyond the bound, but does not make a narrower bound
            # likelier.
            return -self.n * math.log(2 * max(bound, self.largest))
        normal = std
        log_inside = 0.0
        if distribution == "truncated_normal":
            normal = std / math.sqrt(TRUNCATED_VARIANCE)
            if self.largest > TRUNCATION * normal * self.rounded:
                return -math.inf
            log_inside = math.log(math.erf(TRUNCATION / math.sqrt(2)))
        squares = self.square / normal**2
        return -self.n * (0.5 * (math.log(2 * math.pi * normal**2) + squares) + log_inside)

    def best_std(self, distribution: str) -> float:
        """The standard deviation with the highest likelihood."""
        if distribution == "normal":
            return math.sqrt(self.square)
        if distribution == "uniform":
            return self.largest * self.rounded / math.sqrt(3)
        # Cut at 2: the support must reach the largest, and the likelihood falls beyond sqrt(square)
        return max(self.largest * self.rounded / TRUNCATION, math.sqrt(self.square)) * math.sqrt(
            TRUNCATED_VARIANCE
        )

    def best(self, distribution: str) -> float:
        """The largest log-likelihood of the family."""
        return self.log_likelihood(distribution, self.best_std(distribution))

    def has_shape(self, distribution: str, std: float) -> bool:
        """Whether the weights may be from this distribution (Kolmogorov-Smirnov)."""
        from scipy import special

        if distribution == "uniform":
            below = np.clip(0.5 + self.spread / (2 * math.sqrt(3) * std), 0, 1)
        elif distribution == "truncated_normal":
            cut, normal = special.ndtr(-TRUNCATION), std / math.sqrt(TRUNCATED_VARIANCE)
            below = np.clip((special.ndtr(self.spread / normal) - cut) / (1 - 2 * cut), 0, 1)
        else:
            below = special.ndtr(self.spread / std)
        count = len(self.spread)
        ranks = np.arange(count + 1) / count
        distance = max((ranks[1:] - below).max(), (below - ranks[:-1]).max())
        return bool(special.kolmogorov(math.sqrt(count) * distance) > SHAPE_P)


def _resolution(values: Floats) -> float:
    """Relative rounding error of the dtype of these numbers."""
    single = values[:_SAMPLE].astype(np.float32)
    if not (single.view(np.uint32) & 0xFFFF).any():
        return 2.0**-8  # bfloat16
    if (single.astype(np.float16) == single).all():
        return 2.0**-10
    return 2.0**-22


def _is_orthogonal(matrix: Floats) -> bool:
    """Whether the shorter side's vectors are orthogonal and equally long, to rounding."""
    vectors = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if len(vectors) < 2:
        return False
    vectors = vectors[:: max(1, len(vectors) // _GRAM)][:_GRAM]
    gram = vectors @ vectors.T
    scale = gram[0, 0]
    return bool(scale > 0 and np.abs(gram / scale - np.eye(len(gram))).max() < _GRAM_ERROR)

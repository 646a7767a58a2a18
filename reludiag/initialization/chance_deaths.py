"""How many units, and how many whole layers, are born dead by chance: exact formulae and bounds.

A healthy deep network has some dead units at step 0.

A measured share must be compared with the share by chance alone, which this file computes. Biases
are zero and weights independent and symmetric, unless stated otherwise. Then the scale of the
weights does not matter: the same units fire for any gain.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

NARROW = 0.01
"""A network is too narrow if the probability of a completely dead layer at step 0 is above this."""
WIDE = 3
"""Times the width at which that probability is low enough, few more units are born dead than in a
network of any width: of 60 draws each of 4, 8, 12 and 20 layers on digits 0.8, 4.0, 8.3 and 15.3 %
at about this width, and 0.7, 3.8, 7.1 and 13.3 % at 64 units.
"""
_BINS = 128  # of inputs and of biases, where there are more
_GRID = 801  # points over z, 0.02 apart


def layer_dies_single_direction(widths: Sequence[int]) -> float:
    """Probability that at least one layer is completely dead at step 0: 1 - prod(1 - 2^-N).

    Exact if all inputs lie on one ray; an upper bound for other inputs. Lu et al.
    2020 (arXiv 1903.06733); `widths` are those of the hidden layers, in order.
    """
    # The sum of logarithms keeps the small chances of wide layers, which 1 - 2^-N would round off.
    return -math.expm1(math.fsum(math.log1p(-(2.0**-width)) for width in widths))


def needed_width(depth: int, chance: float) -> int:
    """The smallest width at which a layer out of `depth` is born dead with at most this
    probability.

    About log2(depth / chance); from `layer_dies_single_direction`.
    """
    return next(
        width
        for width in itertools.count(1)
        if layer_dies_single_direction([width] * depth) <= chance
    )


def cosine_map(cosine: Any, layers: int = 1) -> Any:
    """Cosine of two inputs after this number of wide He-initialized ReLU layers.

    c' = (sin t + (pi - t) cos t) / pi with t = arccos c: the arc-cosine kernel of degree 1 (Cho &
    Saul 2009, equation 6). Inputs align with depth: from 0 to 0.3183, 0.4937, 0.6048, ...
    """
    cosine = np.asarray(cosine, dtype=np.float64)
    for _ in range(layers):
        angle = np.arccos(np.clip(cosine, -1, 1))
        cosine = (np.sin(angle) + (math.pi - angle) * np.cos(angle)) / math.pi
    return float(cosine) if cosine.ndim == 0 else cosine


def silent_on_all(cosine: float, samples: int) -> float:
    """Probability that a unit is silent on all of `samples` inputs with this mean cosine, p_dead(c,
    n).

    The pre-activations are modelled as equally correlated normals: the integral over z of
    phi(z) Phi(-sqrt(c / (1 - c)) z)^n. Accurate to 0.03 in 30 layers on 1,797 digits, and slightly
    low. A negative mean cosine is treated as 0: only two inputs can have one.
    """
    from scipy import special

    if samples <= 0:
        return 1.0
    cosine = min(1.0, max(0.0, cosine))
    if cosine == 0:
        return 2.0**-samples
    if cosine == 1:
        return 0.5
    from scipy import integrate  # imported here, as most runs do not need it

    ratio = math.sqrt(cosine / (1 - cosine))

    def integrand(z: float) -> float:
        log_silent = special.log_ndtr(-ratio * z)
        return math.exp(samples * log_silent - z * z / 2) / math.sqrt(2 * math.pi)

    # All are silent if the largest of n normals is negative, where the integrand changes.
    turn = max(-9.0, special.ndtri(0.5 / samples) / ratio)
    value, _ = integrate.quad(integrand, -10, 10, points=[turn], limit=200)
    return float(min(1.0, max(0.0, value)))


def silent_with_bias(cosine: float, spreads: Floats, biases: Floats) -> float:
    """The same for units that have these biases, on average over them.

    `spreads` are the standard deviations of w.x, one for each input: the weights' times the
    input's length. If they differ much, as for standardized pixels, a bias silences a unit on most
    inputs but not on the longest.
    """
    from scipy import special

    cosine = min(1 - 1e-9, max(0.0, cosine))
    lengths, count = _binned(spreads)
    units, alike = _binned(biases)
    z = np.linspace(-8, 8, _GRID)
    density = np.exp(-0.5 * z * z)
    density /= density.sum()
    silent = []
    for bias in units:
        with np.errstate(divide="ignore", invalid="ignore"):
            # For an input of length 0 only the bias counts; without a bias the unit is 0, so
            # silent.
            offsets = np.nan_to_num(bias / lengths, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        below = -(offsets[:, None] + math.sqrt(cosine) * z) / math.sqrt(1 - cosine)
        silent.append(float(density @ np.exp(count @ special.log_ndtr(below))))
    return float(np.average(silent, weights=alike)) if silent else math.nan


def _binned(values: Floats) -> tuple[Floats, Floats]:
    """At most `_BINS` representative values, and the number of values that each represents."""
    parts = np.array_split(np.sort(values), min(_BINS, max(1, values.size)))
    return (
        np.array([part.mean() for part in parts if part.size]),
        np.array([float(part.size) for part in parts if part.size]),
    )


def born_dead_by_depth(cosine: float, samples: int, depth: int) -> list[float]:
    """Expected share of born-dead units in each of `depth` layers; `cosine` is that of the data.

    `silent_on_all` along `cosine_map`. In a finite network cosines vary around the map, so measure
    them if possible.
    """
    cosines = [cosine_map(max(0.0, cosine), layer) for layer in range(depth)]
    return [silent_on_all(each, samples) for each in cosines]


def mean_cosine_of_sum(total: np.ndarray[Any, Any], samples: int) -> float:
    """Mean cosine over all pairs of inputs, from their sum `[feature]`, each scaled to length 1.

    No pair is looked at. NaN for fewer than two samples.
    """
    if samples < 2:
        return math.nan
    return float((np.square(total).sum() - samples) / (samples * (samples - 1)))

"""Binomial counts: Clopper and Pearson's upper bound on a rate, and an exact test.

`scipy.special` computes it for any number of samples, but importing it takes about a fifth of the
time of a report. For the usual number of samples of a probe, Newton's method takes a few
milliseconds.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_MOST_SAMPLES = 5_000  # beyond, the continued fraction needs hundreds of terms

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


def upper_bound(fired: Any, samples: int) -> Floats:
    """One-sided 95 % upper bound on a firing rate, for `fired` of `samples` independent samples.

    Clopper and Pearson's exact bound, the rate at which so few or fewer have a probability of 5 %;
    for a unit that never fired it is `1 - 0.05**(1/samples)`. NaN without samples.
    """
    fired = np.asarray(fired, dtype=np.int64)
    if samples == 0:
        return np.full(fired.shape, np.nan)
    # A million units have few distinct counts.
    counts, positions = np.unique(fired, return_inverse=True)
    bounds = np.ones(counts.shape)
    bounds[counts == 0] = -math.expm1(math.log(1 - CONFIDENCE) / samples)
    inner = (counts > 0) & (counts < samples)
    if samples > _MOST_SAMPLES:
        from scipy import special

        bounds[inner] = special.betaincinv(counts[inner] + 1, samples - counts[inner], CONFIDENCE)
    elif inner.any():
        bounds[inner] = _by_newton(counts[inner], samples)
    return bounds[positions].reshape(fired.shape)


def upper_bounds(fired: Sequence[Integers], samples: Sequence[int]) -> list[Floats]:
    """`upper_bound` of several sites. Those of as many samples are computed at once."""
    bounds: list[Floats] = [np.empty(0)] * len(fired)
    for each in set(samples):
        sites = [site for site, count in enumerate(samples) if count == each]
        ends = np.cumsum([len(fired[site]) for site in sites])
        together = upper_bound(np.concatenate([fired[site] for site in sites]), each)
        for site, part in zip(sites, np.split(together, ends[:-1]), strict=True):
            bounds[site] = part
    return bounds


def chance_of_more(count: int, trials: int, rate: float) -> float:
    """The probability of `count` or more of independent trials at this rate: the p-value of the
    exact one-sided test. 1 where there is nothing to test.
    """
    from scipy import special

    if not count or not 0 < rate < 1:
        return 1.0
    return float(special.betainc(count, trials - count + 1, rate))


def _by_newton(counts: Integers, samples: int) -> Floats:
    # In log(1 - rate), where the log of that probability is concave: it overshoots once at most.
    a: Floats = np.asarray(samples - counts, np.float64)
    b: Floats = np.asarray(counts + 1, np.float64)
    constant = math.lgamma(samples + 1) - _log_gamma(a) - _log_gamma(b) - np.log(a)
    log_miss = np.log1p(-_wilson_bound(counts, samples))
    for _ in range(100):
        miss = np.exp(log_miss)
        fraction = _beta_fraction(a, b, miss)
        log_tail = constant + a * log_miss + b * np.log1p(-miss) + np.log(fraction)
        step = (log_tail - math.log(1 - CONFIDENCE)) * (1 - miss) * fraction / a
        log_miss = log_miss - step
        if np.all(np.abs(step) <= 1e-13 * np.abs(log_miss)):
            break
    return np.asarray(-np.expm1(log_miss))


def _wilson_bound(counts: Integers, samples: int) -> Floats:
    """An approximation to begin with (Wilson 1927)."""
    z, rate = 1.6449, counts / samples
    spread = np.sqrt(rate * (1 - rate) / samples + (z / samples) ** 2 / 4)
    return np.asarray((rate + z**2 / samples / 2 + z * spread) / (1 + z**2 / samples))


def _log_gamma(x: Floats) -> Floats:
    return np.array([math.lgamma(value) for value in x])


def _beta_fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    numerator = np.ones_like(x)
    denominator = 1 / (1 - (a + b) * x / (a + 1))
    value = denominator
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominator = 1 / (1 + term * denominator)
            numerator = 1 + term / numerator
            factor = numerator * denominator
            value = value * factor
        if np.all(np.abs(factor - 1) < 1e-14):
            break
    return np.asarray(value)

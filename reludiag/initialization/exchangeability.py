"""Whether weights can be as an initializer drew them: an independent draw has no special rows.

Training changes some units, and some of their inputs, more than others. So do pruning, masks and
every other edit of units. Rows and columns of the weights then differ by more than chance, whatever
the distribution that they were drawn from. The reverse does not hold: weights that pass may have
been trained a little.
"""

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

CHANCE = 1e-9
"""Weights with a lower p-value are not a fresh draw. Of 183,000 draws of five distributions, sparse
and heavy-tailed ones among them, in ten shapes the lowest was 1.7e-7. Of layers that 80 trainings
had moved by more than 0.3 of their norm, 139 of 201 were below it; of those moved by 0.1 to 0.3, 7
of 71.
"""
_SHORTEST = 8  # entries of a row: of fewer, its mean square is far from normal


def spread_by_chance(matrix: Floats) -> float:
    """The p-value of how much the rows and the columns of `[row, column]` weights differ.

    For entries drawn independently from one distribution with variance v and kurtosis k, the mean
    squares of n of them have the variance (k - 1) v^2 / n, and their means v / n. Over the rows,
    and over the columns, each is compared by a chi-squared test of the variance (p-values of the
    four by Bonferroni). 1 where there is too little to compare.
    """
    from scipy import special

    least = 1.0
    if matrix.size == 0 or not np.isfinite(matrix).all():
        return least
    centred = matrix - matrix.mean()
    squares = np.square(centred)
    variance = float(squares.mean())
    if variance <= 0:
        return least
    excess = float(np.square(squares).mean()) / variance**2 - 1
    for axis in (0, 1):
        lines, length = matrix.shape[axis], matrix.shape[1 - axis]
        if lines < 2 or length < _SHORTEST:
            continue
        for values, expected in (
            (squares.mean(1 - axis), excess * variance**2 / length),
            (centred.mean(1 - axis), variance / length),
        ):
            if expected > 0:
                ratio = float(values.var(ddof=1)) / expected
                least = min(least, float(special.chdtrc(lines - 1, (lines - 1) * ratio)))
    return min(1.0, 4 * least)

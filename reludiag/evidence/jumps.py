"""Jumps: steps that moved the weights many times as far as the steps before them, at their rate.

The size of a step is the norm of the update over that of the weights. Divided by the learning rate
it is that of the gradient, as the optimizer used it: a higher rate is no jump. A jump is the median
over the matrices of a model, each beside its own last steps: one small or silent matrix decides
nothing, nor do biases, which may be near 0.
"""

from typing import Any

import numpy as np

from reludiag.evidence.step_samples import StepNorms
from reludiag.recording.observations import Jump

Floats = np.ndarray[Any, np.dtype[np.float64]]

USUAL = 32
"""What is usual is the median over this many steps before."""
LEAST = 16
"""Of a step with fewer steps before it nothing is said: the first are often large."""
SHORTLY = 8
"""Steps before a jump that show whether it came at once, or grew as a divergence does."""


class JumpMeter:
    """Finds the largest jump of each window, in the steps of one optimizer."""

    def __init__(self, is_matrix: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self._is_matrix = is_matrix
        self._sizes = np.zeros((0, int(is_matrix.sum())))
        """`[step, matrix]`: relative update over learning rate, of the last `USUAL` steps."""
        self._ratios = np.zeros(0)
        """Of the last `SHORTLY` steps."""

    def measure(self, norms: StepNorms) -> Jump | None:
        """Of these steps, the first sudden jump; if there is none, the one with the largest ratio.

        None if nothing can be said of any of them.
        """
        if not len(norms.steps) or not self._is_matrix.any():
            return None
        with np.errstate(all="ignore"):
            updates = norms.updates[:, self._is_matrix] / norms.weights[:, self._is_matrix]
            sizes = np.concatenate([self._sizes, updates / norms.rates[:, None]])
        ratios = _ratios(sizes, len(self._sizes))
        moved = _median_of_known(updates)
        all_ratios = np.concatenate([self._ratios, ratios])
        self._sizes, self._ratios = sizes[-USUAL:], all_ratios[-SHORTLY:]
        jumps = []
        for row in np.flatnonzero(~np.isnan(ratios) & ~np.isnan(moved)).tolist():
            at = len(all_ratios) - len(ratios) + row
            before = _largest(all_ratios[max(0, at - SHORTLY) : at])
            jumps.append(Jump(norms.steps[row], float(ratios[row]), before, float(moved[row])))
        sudden = next((jump for jump in jumps if jump.is_sudden), None)
        return sudden or max(jumps, key=lambda jump: jump.ratio, default=None)


def _ratios(sizes: Floats, first: int) -> Floats:
    """How many times as large as usual each step is, from row `first` on; NaN if not known."""
    usual = np.full((len(sizes) - first, sizes.shape[1]), np.nan)
    whole = max(first, USUAL)
    for row in range(max(first, LEAST), min(whole, len(sizes))):
        usual[row - first] = np.median(sizes[:row], axis=0)
    if whole < len(sizes):
        before = np.lib.stride_tricks.sliding_window_view(sizes[whole - USUAL : -1], USUAL, axis=0)
        usual[whole - first :] = np.median(before, axis=-1)
    with np.errstate(all="ignore"):
        is_moving = np.isfinite(usual) & (usual > 0)
        return _median_of_known(np.where(is_moving, sizes[first:] / usual, np.nan))


def _median_of_known(table: Floats) -> Floats:
    """Of each row; NaN where nothing in it is known."""
    known = ~np.isnan(table)
    medians = np.full(len(table), np.nan)
    whole = known.all(axis=1)
    if table.shape[1]:
        medians[whole] = np.median(table[whole], axis=1)
        for row in np.flatnonzero(~whole & known.any(axis=1)).tolist():
            medians[row] = np.median(table[row][known[row]])
    return medians


def _largest(ratios: Floats) -> float:
    known = ratios[~np.isnan(ratios)]
    return float(known.max()) if len(known) else 0.0

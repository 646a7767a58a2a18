"""Edits: changes of the weights between two steps, by something else than the optimizer."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from reludiag.evidence.step_samples import StepNorms
from reludiag.recording.observations import Edit

Floats = np.ndarray[Any, np.dtype[np.float64]]


class EditMeter:
    """Finds the edits between the steps of one optimizer."""

    def __init__(self, names: Sequence[str]) -> None:
        self._modules = [name.rpartition(".")[0] or name for name in names]
        self._weights: Floats = np.full(len(names), np.nan)
        """`[parameter]`: norm of the sample before the last step."""

    def measure(self, norms: StepNorms) -> Edit | None:
        """All edits between these steps as one, with the size of the largest; None if no sampled
        number changed.

        What was written to and is as before is not edited: weights may be put aside for a while.
        """
        if not len(norms.steps):
            return None
        earlier = np.concatenate([self._weights[None], norms.weights[:-1]])
        self._weights = norms.weights[-1]
        edits = np.nan_to_num(norms.edits, nan=0.0, posinf=np.inf)
        changed = edits > 0
        if not changed.any():
            return None
        with np.errstate(all="ignore"):
            # Beside the weights as they were, which an edit may have set to 0.
            was = np.where(earlier > 0, earlier, norms.weights)
            sizes = np.nan_to_num(np.where(changed, edits / was, 0.0), nan=0.0, posinf=np.inf)
            updates = norms.updates / norms.weights
        row, column = np.unravel_index(int(np.argmax(sizes)), sizes.shape)
        usual = updates[:, column][np.isfinite(updates[:, column])]
        columns = np.flatnonzero(changed.any(axis=0))
        return Edit(
            step=norms.steps[int(row)] - 1,
            times=int(changed.any(axis=1).sum()),
            size=float(sizes[row, column]),
            update=float(np.median(usual)) if len(usual) else math.nan,
            modules=tuple(dict.fromkeys(self._modules[i] for i in columns)),
        )

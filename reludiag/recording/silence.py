"""How long units have been silent, in samples."""

from typing import Any

import numpy as np

from reludiag.recording.records import RecordedRun, RecordedSite


def since_fired(run: RecordedRun, recorded: RecordedSite) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Samples that were watched at a site since each unit last fired, `[unit]`.

    It has the resolution of a snapshot: without a probe, the samples of all windows since the one
    in which the unit last fired, so it is at most the true number; with a probe, the samples of the
    probe at every snapshot since, which are the same ones again. 0 if it fired in the last
    window; the samples of the whole run if it never fired.
    NaN for a unit that is not finite, and where the site was never called or its units cannot die.
    """
    silent_samples = np.zeros(recorded.dead.shape[1])
    if not recorded.site.rectifier.can_die or not recorded.samples.any():
        return np.full_like(silent_samples, np.nan)
    silent = np.ones(len(silent_samples), dtype=bool)
    for index in _apart(run):
        fired = recorded.has_state[index] & ~recorded.dead[index]
        silent &= ~fired & ~recorded.nonfinite[index]
        silent_samples += silent * recorded.samples[index]
    return np.where(recorded.nonfinite[-1], np.nan, silent_samples)


def _apart(run: RecordedRun) -> list[int]:
    """The snapshots that have no samples in common, the latest first.

    Without a probe, the last window may take in the one before, and the first one takes in the
    initial state.
    """
    indices: list[int] = []
    end = np.inf
    for index in reversed(range(len(run.steps))):
        if run.steps[index] <= end:
            indices.append(index)
            end = run.first_steps[index] if run.first_steps else end
    if run.facts.get("probe_samples") is None and len(indices) > 1 and run.steps[0] == 0:
        indices.remove(0)
    return indices

"""Whether units died right after the user's own marks, such as a change of task."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from reludiag.causes.cause import Evidence
from reludiag.causes.site_lives import SiteLives
from reludiag.recording import RecordedRun

_MORE = 2.0
"""The first windows after marks are named from this many times the deaths that their share of the
steps would have."""


def mark_evidence(run: RecordedRun, sites: Sequence[SiteLives]) -> list[Evidence]:
    """The deaths in the first window after each mark, if they are more frequent there."""
    steps = np.asarray(run.steps)
    names: dict[int, list[str]] = defaultdict(list)
    for mark in run.marks:
        end = int(np.searchsorted(steps, mark.step, side="right"))
        if mark.step > 0 and 0 < end < len(steps):  # at step 0 nothing is switched
            names[end].append(mark.name)
    if not names or not sites:
        return []
    died = np.sum([site.died for site in sites], axis=0)
    after = {end: int(died[end - 1]) for end in names}
    deaths, total = sum(after.values()), int(died.sum())
    part = sum(int(steps[end] - steps[end - 1]) for end in names) / int(steps[-1] - steps[0])
    if not deaths or deaths < _MORE * part * total:
        return []
    most = max(after, key=lambda end: after[end])
    return [
        Evidence(
            "died right after a mark",
            f"{deaths} of {total}",
            f"deaths in the first window after a mark, {part:.0%} of the steps; most after "
            f"'{names[most][-1]}': {after[most]} in steps {steps[most - 1]}-{steps[most]}",
        )
    ]

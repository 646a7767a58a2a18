"""History: the Diagnosis of what was seen at several times, of a recording or of checkpoints."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reludiag.diagnosis import (
    TIMELINE_COLUMNS,
    Diagnosis,
    Head,
    SiteFindings,
    diagnose,
    table_of,
)
from reludiag.ledger import NEVER, Ledger, life_states, trace_lives
from reludiag.recording import RecordedRun, RecordedSite, read_recording
from reludiag.verdicts import Thresholds, is_dead


def load(path: str | Path, thresholds: Thresholds | None = None) -> Diagnosis:
    """The Diagnosis of a recording, also of one that is still being written.

    Raises RecordingError if the file is missing, damaged, or no recording.
    """
    return diagnose_run(read_recording(path), str(path), thresholds)


def diagnose_run(run: RecordedRun, subject: str, thresholds: Thresholds | None = None) -> Diagnosis:
    """The Diagnosis of a recording: the verdicts of its last snapshot, and the ledger."""
    findings, timelines, rates = [], [], _LearningRates(run)
    for recorded in run.sites:
        ledger = trace_lives(run.steps, recorded.dead, recorded.known)
        findings.append(
            SiteFindings(
                recorded.site,
                recorded.counts,
                ledger,
                rates.at_death(recorded, ledger),
                _states(recorded, ledger),
            )
        )
        by_window = rates.by_window(recorded, run.steps)
        timelines.append(_timeline_rows(run.steps, recorded, ledger, by_window))
    head = _run_head(run, findings, subject)
    return diagnose(head, findings, thresholds or Thresholds(), _timeline_table(timelines))


def checkpoint_timeline(
    steps: Sequence[int], scans: Sequence[Sequence[SiteFindings]]
) -> tuple[list[SiteFindings], pd.DataFrame]:
    """The last scan's findings with the ledger of all, and the timeline of the scans."""
    by_name = [{found.site.name: found for found in scan} for scan in scans]
    findings, timelines = [], []
    for found in scans[-1]:
        width = found.site.units or 0
        samples = np.zeros(len(steps), dtype=np.int64)
        dead, nonfinite, known = (np.zeros((len(steps), width), dtype=bool) for _ in range(3))
        for index, scan in enumerate(by_name):
            then = scan.get(found.site.name)
            if then is not None and then.site.units == width:
                dead[index] = is_dead(then.counts, then.site.rectifier)
                nonfinite[index] = then.counts.nonfinite
                samples[index] = then.counts.samples
                known[index] = then.counts.samples > 0
        recorded = RecordedSite(
            found.site, None, found.counts, samples, dead, known & ~nonfinite, nonfinite
        )
        ledger = trace_lives(steps, dead, recorded.known)
        states = _states(recorded, ledger)
        findings.append(SiteFindings(found.site, found.counts, ledger, states=states))
        timelines.append(_timeline_rows(steps, recorded, ledger, [np.nan] * len(steps)))
    return findings, _timeline_table(timelines)


def _states(recorded: RecordedSite, ledger: Ledger) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return life_states(ledger.born_known, recorded.dead, recorded.known, recorded.nonfinite)


def _timeline_table(rows: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The sites' rows as one timeline, in order of steps."""
    table = table_of(TIMELINE_COLUMNS, rows)
    return table.sort_values("step", kind="stable", ignore_index=True)


def _timeline_rows(
    steps: Sequence[int], recorded: RecordedSite, ledger: Ledger, rates: Sequence[float]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "step": list(steps),
            "site": recorded.site.name,
            "learning_rate": list(rates),
            "samples": recorded.samples,
            "units": recorded.site.units,
            "dead": (recorded.dead & recorded.known).sum(axis=1),
            "died": ledger.died.sum(axis=1),
            "revived": ledger.revived.sum(axis=1),
            "nonfinite": recorded.nonfinite.sum(axis=1),
        }
    )


class _LearningRates:
    """The learning rates of a run, by parameter group."""

    def __init__(self, run: RecordedRun) -> None:
        groups: dict[str, list[tuple[int, float]]] = {}
        for first_step, group, rate in run.learning_rates:
            groups.setdefault(group, []).append((first_step, rate))
        self._groups = {
            group: (np.array([step for step, _ in rows]), np.array([rate for _, rate in rows]))
            for group, rows in groups.items()
        }

    def largest(self, recorded: RecordedSite, before: int, step: int) -> float:
        """The largest used in steps `before + 1 .. step` for the weights that feed a site.

        NaN if no optimizer trains them; of all groups where it is not known what feeds the site.
        """
        if recorded.param_group is not None:
            names = [recorded.param_group]
        else:
            names = [] if recorded.site.producer is not None else list(self._groups)
        largest = []
        for steps, rates in (self._groups[name] for name in names if name in self._groups):
            start = max(0, int(np.searchsorted(steps, before + 1, side="right")) - 1)
            used = rates[start : int(np.searchsorted(steps, step, side="right"))]
            largest += [float(used.max())] if len(used) else []
        return max(largest, default=float("nan"))

    def by_window(self, recorded: RecordedSite, steps: Sequence[int]) -> list[float]:
        """The largest in the window that ends at each snapshot; none before the first."""
        windows = [self.largest(recorded, *window) for window in itertools.pairwise(steps)]
        return [float("nan"), *windows][: len(steps)]

    def at_death(self, recorded: RecordedSite, ledger: Ledger) -> np.ndarray[Any, Any]:
        """For each unit, the largest in the window in which it died; NaN where it did not."""
        rates = np.full(len(ledger.died_step), np.nan)
        died = (ledger.died_step != NEVER) & (ledger.previous_step != NEVER)
        for before, step in {*zip(ledger.previous_step[died], ledger.died_step[died], strict=True)}:
            inside = died & (ledger.died_step == step) & (ledger.previous_step == before)
            rates[inside] = self.largest(recorded, int(before), int(step))
        return rates


def _run_head(run: RecordedRun, findings: Sequence[SiteFindings], subject: str) -> Head:
    facts = run.facts
    samples = max((found.counts.samples for found in findings), default=0)
    last = run.steps[-1] if run.steps else 0
    snapshots = f"{len(run.steps):,} snapshot{'s' * (len(run.steps) != 1)}"
    every = "every step" if facts["every"] == 1 else f"every {facts['every']:,} steps"
    many = f"{snapshots}, {every}"
    notes = []
    frozen = facts.get("probe_samples") is not None
    steps = f"steps 0-{last:,}" if last else "step 0"
    if frozen:
        evidence = f"{steps}, {many}, each on a fixed probe of {samples:,} samples in eval mode"
    else:
        evidence = f"{steps}, {many}, the last on {samples:,} training samples"
        notes.append(
            "Without a probe, dead means silent in all training batches of a window. The weights "
            "moved meanwhile, so there is no bound on a firing rate."
        )
    if facts.get("status") == "running":
        notes.append(
            "The run has not ended, or was killed: this is its state at the last snapshot."
        )
    if str(facts.get("status", "")).startswith("interrupted"):
        notes.append(f"The run was {facts['status']}.")
    evaluated = facts.get("evaluation_calls", 0)
    if evaluated:
        calls = "1 rectifier call" if evaluated == 1 else f"{evaluated:,} rectifier calls"
        notes.append(f"Left out: {calls} in evaluation mode.")
    notes += facts.get("notes", [])
    return Head(
        source="recording",
        model=facts.get("model", "?"),
        subject=subject,
        evidence=evidence,
        frozen=frozen,
        samples=samples,
        notes=tuple(notes),
        status=str(facts.get("status", "running")),
    )

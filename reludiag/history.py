"""History: the Diagnosis of what was seen at several times, of a recording or of checkpoints."""

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
from reludiag.ledger import NEVER, Ledger, trace_lives
from reludiag.recording import RecordedRun, RecordedSite, read_recording
from reludiag.verdicts import Thresholds, is_dead


def load(path: str | Path, thresholds: Thresholds | None = None) -> Diagnosis:
    """The Diagnosis of a recording, also of one that is still being written.

    Raises RecordingError if the file is missing, damaged, or no recording.
    """
    return diagnose_run(read_recording(path), str(path), thresholds)


def diagnose_run(run: RecordedRun, subject: str, thresholds: Thresholds | None = None) -> Diagnosis:
    """The Diagnosis of a recording: the verdicts of its last snapshot, and the ledger."""
    findings, timelines = [], []
    for recorded in run.sites:
        ledger = trace_lives(run.steps, recorded.dead, recorded.known)
        rates = _rates_by_window(run, recorded.param_group)
        findings.append(
            SiteFindings(
                recorded.site,
                recorded.counts,
                ledger,
                _lr_at_death(ledger, run, recorded.param_group),
            )
        )
        timelines.append(_timeline_rows(run.steps, recorded, ledger, rates))
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
        dead, nonfinite, known = (np.zeros((len(steps), width), dtype=bool) for _ in range(3))
        for index, scan in enumerate(by_name):
            then = scan.get(found.site.name)
            if then is not None and then.site.units == width:
                dead[index] = is_dead(then.counts, then.site.rectifier)
                nonfinite[index] = then.counts.nonfinite > 0
                known[index] = then.counts.samples > 0
        recorded = RecordedSite(found.site, None, found.counts, dead, known & ~nonfinite, nonfinite)
        ledger = trace_lives(steps, dead, recorded.known)
        findings.append(SiteFindings(found.site, found.counts, ledger))
        timelines.append(_timeline_rows(steps, recorded, ledger, [np.nan] * len(steps)))
    return findings, _timeline_table(timelines)


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
            "units": recorded.site.units,
            "dead": (recorded.dead & recorded.known).sum(axis=1),
            "died": ledger.died.sum(axis=1),
            "revived": ledger.revived.sum(axis=1),
            "nonfinite": recorded.nonfinite.sum(axis=1),
        }
    )


def _rates_by_window(run: RecordedRun, param_group: str | None) -> list[float]:
    """For each snapshot, the largest learning rate of the steps since the one before."""
    steps = run.steps
    return [
        _largest_rate(run, param_group, before, step)
        for before, step in zip((None, *steps[:-1]), steps, strict=True)
    ]


def _largest_rate(
    run: RecordedRun, param_group: str | None, before: int | None, step: int
) -> float:
    """The largest learning rate of steps `before + 1 .. step`, of one group or else of all."""
    if before is None:
        return float("nan")
    largest = float("nan")
    in_force: dict[str, float] = {}
    for first, group, rate in run.learning_rates:
        if param_group is not None and group != param_group:
            continue
        if first > step:
            break
        if first <= before + 1:
            in_force[group] = rate
        else:
            largest = np.nanmax([largest, rate])
    known = [rate for rate in (*in_force.values(), largest) if not np.isnan(rate)]
    return float(max(known, default=float("nan")))


def _lr_at_death(ledger: Ledger, run: RecordedRun, param_group: str | None) -> np.ndarray[Any, Any]:
    rates = np.full(len(ledger.died_step), np.nan)
    died = ledger.died_step != NEVER
    windows = {*zip(ledger.previous_step[died], ledger.died_step[died], strict=True)}
    for before, step in windows:
        if before != NEVER:
            inside = died & (ledger.died_step == step) & (ledger.previous_step == before)
            rates[inside] = _largest_rate(run, param_group, int(before), int(step))
    return rates


def _run_head(run: RecordedRun, findings: Sequence[SiteFindings], subject: str) -> Head:
    facts = run.facts
    samples = max((found.counts.samples for found in findings), default=0)
    last = run.steps[-1] if run.steps else 0
    many = f"{len(run.steps)} snapshot{'s' * (len(run.steps) != 1)}, every {facts['every']} steps"
    notes = []
    frozen = facts.get("probe_samples") is not None
    steps = f"steps 0-{last}" if last else "step 0"
    if frozen:
        evidence = f"{steps}, {many}, each on a fixed probe of {samples:,} samples"
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
        notes.append(f"{evaluated:,} rectifier calls in evaluation mode were left out.")
    if any((found.counts.nonfinite > 0).any() for found in findings):
        notes.append(
            "The run diverged: units became NaN or infinite. They are counted as nonfinite, "
            "never as dead."
        )
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

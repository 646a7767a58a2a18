"""The timeline: the state of the sites at each snapshot, or in each of several checkpoints."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from reludiag.diagnosis.build import SiteFindings
from reludiag.diagnosis.columns import MARK_COLUMNS, METRIC_COLUMNS, TIMELINE_COLUMNS
from reludiag.measure.unit_counts import SiteCounts
from reludiag.recording import Mark, Metric, RecordedSite, SiteState
from reludiag.recording.ledger import Ledger, Life, life_states, trace_lives
from reludiag.tables import table_of


def checkpoint_timeline(
    steps: Sequence[int], scans: Sequence[Sequence[SiteCounts]]
) -> tuple[list[SiteFindings], pd.DataFrame]:
    """The results of the last scan with the ledger of all scans, and their timeline."""
    by_key = [{finding.site.key: finding for finding in scan} for scan in scans]
    findings, timelines = [], []
    for finding in scans[-1]:
        width = finding.site.units or 0
        samples = np.zeros(len(steps), dtype=np.int64)
        dead, nonfinite, was_called = (np.zeros((len(steps), width), dtype=bool) for _ in range(3))
        rare, dormant = (np.full(len(steps), np.nan) for _ in range(2))
        for index, scan in enumerate(by_key):
            then = scan.get(finding.site.key)
            if then is not None and then.site.units == width:
                state = SiteState.of(then)
                dead[index] = state.dead
                if state.rare is not None and state.dormant is not None:
                    rare[index], dormant[index] = state.rare.sum(), state.dormant.sum()
                nonfinite[index] = then.counts.nonfinite
                samples[index] = then.counts.samples
                was_called[index] = then.counts.samples > 0
        has_state = was_called & ~nonfinite
        recorded = RecordedSite(
            *(finding.site, None, finding.counts, samples, dead, has_state, nonfinite),
            rare=rare,
            dormant=dormant,
        )
        ledger = trace_lives(steps, dead, recorded.has_state)
        states = states_of(recorded, ledger)
        findings.append(SiteFindings(finding.site, finding.counts, ledger, states=states))
        timelines.append(
            timeline_rows(steps, recorded, ledger, [np.nan] * len(steps), [*steps[:1], *steps[:-1]])
        )
    return findings, timeline_table(timelines)


def states_of(recorded: RecordedSite, ledger: Ledger) -> np.ndarray[Any, np.dtype[np.uint8]]:
    states = life_states(
        ledger.born_known, recorded.dead_in_training, recorded.has_state, recorded.nonfinite
    )
    states[recorded.only_in_eval & recorded.has_state] = Life.DEAD
    return states


def timeline_table(rows: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The sites' rows as one timeline, in order of steps."""
    table = table_of(TIMELINE_COLUMNS, rows)
    return table.sort_values("step", kind="stable", ignore_index=True)


def metric_table(metrics: Sequence[Metric]) -> pd.DataFrame:
    """What the user logged, in order of windows."""
    columns: dict[str, list[Any]] = {
        "step": [metric.step for metric in metrics],
        "window": [metric.window for metric in metrics],
        "metric": [metric.name for metric in metrics],
        "last": [metric.last for metric in metrics],
        "mean": [metric.mean for metric in metrics],
        "count": [metric.count for metric in metrics],
    }
    return table_of(METRIC_COLUMNS, [columns])


def mark_table(marks: Sequence[Mark], timeline: pd.DataFrame) -> pd.DataFrame:
    """The stretches from mark to mark; the first row is of what comes before the first mark."""
    if not marks or timeline.empty:
        return table_of(MARK_COLUMNS, [])
    snapshots = timeline.groupby("step")[["dead", "died", "revived"]].sum()
    steps = snapshots.index.to_numpy(dtype=np.int64)
    dead, died, revived = (snapshots[name].to_numpy(dtype=np.int64) for name in snapshots)
    starts = [*([] if marks[0].step == 0 else [0]), *(mark.step for mark in marks)]
    ends = [*starts[1:], max(int(steps[-1]), starts[-1])]
    rows = []
    for start, end in zip(starts, ends, strict=True):
        first, after = np.searchsorted(steps, [start, end], side="right")
        rows.append((dead[max(after - 1, 0)], died[first:after].sum(), revived[first:after].sum()))
    names: list[str | None] = [mark.name for mark in marks]
    columns: dict[str, list[Any]] = {
        "step": starts,
        "mark": [None] * (len(starts) - len(names)) + names,
        "until": ends,
        **dict(zip(("dead", "died", "revived"), map(list, zip(*rows, strict=True)), strict=True)),
    }
    return table_of(MARK_COLUMNS, [columns])


def timeline_rows(
    steps: Sequence[int],
    recorded: RecordedSite,
    ledger: Ledger,
    rates: Sequence[float],
    starts: Sequence[int],
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "step": list(steps),
            "window_start": list(starts),
            "site": recorded.site.name,
            "learning_rate": list(rates),
            "samples": recorded.samples,
            "units": recorded.site.units,
            "dead": (recorded.dead & recorded.has_state).sum(axis=1),
            "rare": np.nan if recorded.rare is None else recorded.rare,
            "dormant": np.nan if recorded.dormant is None else recorded.dormant,
            "died": ledger.died.sum(axis=1),
            "revived": ledger.revived.sum(axis=1),
            "nonfinite": recorded.nonfinite.sum(axis=1),
        }
    )

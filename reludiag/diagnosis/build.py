"""diagnose(): makes the tables of a Diagnosis from the counts of each site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from reludiag.causes.cause import Cause
from reludiag.diagnosis.columns import (
    LEDGER_COLUMNS,
    SITE_COLUMNS,
    SITE_LEDGER_COLUMNS,
    UNIT_COLUMNS,
)
from reludiag.diagnosis.diagnosis import Diagnosis, Head
from reludiag.measure.binomial import upper_bound
from reludiag.measure.structure import StructureNote
from reludiag.measure.unit_counts import UnitCounts
from reludiag.measure.verdicts import VERDICTS, Thresholds, judge, tau_score
from reludiag.recording.ledger import NEVER, Ledger, Lives
from reludiag.sites.site import Site
from reludiag.tables import table_of


@dataclass(frozen=True)
class SiteFindings:
    """One site with its counts."""

    site: Site
    counts: UnitCounts
    ledger: Ledger | None = None
    at_death: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    """Columns of `LEDGER_COLUMNS` that a recording adds to the ledger, `[unit]`."""
    states: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    """`[snapshot, unit]`, as in `Lives`."""


def diagnose(
    head: Head,
    findings: Sequence[SiteFindings],
    thresholds: Thresholds,
    timeline: pd.DataFrame | None = None,
    causes: Sequence[Cause] = (),
    structure: Sequence[StructureNote] = (),
) -> Diagnosis:
    """Make the tables from the counts."""
    units = [_unit_rows(head, finding, thresholds) for finding in findings]
    ledger = timeline is not None
    unit_columns = UNIT_COLUMNS + (LEDGER_COLUMNS if ledger else ())
    sites = [
        _site_row(finding, table, ledger) for finding, table in zip(findings, units, strict=True)
    ]
    return Diagnosis(
        head=head,
        units=table_of(unit_columns, units),
        sites=table_of(SITE_COLUMNS + (SITE_LEDGER_COLUMNS if ledger else ()), sites),
        timeline=timeline,
        thresholds=thresholds,
        causes=tuple(causes),
        structure=tuple(structure),
        lives=None if timeline is None else _lives(timeline, findings),
    )


def _lives(timeline: pd.DataFrame, findings: Sequence[SiteFindings]) -> Lives:
    return Lives(
        tuple(int(step) for step in timeline["step"].unique()),
        {finding.site.name: finding.states for finding in findings if finding.states is not None},
    )


def _unit_rows(head: Head, finding: SiteFindings, thresholds: Thresholds) -> dict[str, Any]:
    site, counts, ledger = finding.site, finding.counts, finding.ledger
    if site.units is None:
        return {
            "site": site.name,
            "verdict": "unobserved",
            "samples": 0,
            "activation": site.rectifier.activation,
        }
    n, positions = counts.counted, counts.positions
    observed = n > 0

    def share(part: Any, whole: int) -> Any:
        return part / whole if observed else np.nan

    table = {
        "site": site.name,
        "unit": np.arange(site.units),
        "verdict": judge(counts, site.rectifier, thresholds),
        "samples": counts.samples,
        "counted": n,
        "fired": counts.fired,
        "firing_rate": share(counts.fired, n),
        "firing_rate_upper": np.where(counts.nonfinite, np.nan, upper_bound(counts.fired, n))
        if head.frozen
        else np.nan,
        "active_fraction": share(counts.active, positions),
        "mean_activation": share(counts.total, positions),
        "max_activation": counts.maximum if observed else np.nan,
        "tau_score": tau_score(counts) if observed else np.nan,
        "unit_axis": site.unit_axis,
        "activation": site.rectifier.activation,
        "producer": site.producer,
        "norm": site.norm,
        "rms_activation": np.sqrt(share(counts.total_square, positions)),
        "max_preactivation": np.where(
            np.isneginf(counts.before_maximum), np.nan, counts.before_maximum
        ),
    }
    if ledger is not None:
        table["born_dead"] = ledger.born_dead if ledger.born_known else None
        table["died_step"] = _step_column(ledger.died_step)
        table["revived_step"] = _step_column(ledger.revived_step)
        table |= finding.at_death
    return table


def _step_column(steps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.where(steps == NEVER, np.nan, steps)


def _site_row(finding: SiteFindings, units: Mapping[str, Any], ledger: bool) -> dict[str, Any]:
    site = finding.site
    verdicts, counts = np.unique(units["verdict"], return_counts=True)
    tally = dict(zip(verdicts.tolist(), counts.tolist(), strict=True))
    row: dict[str, Any] = {
        "site": site.name,
        "activation": site.rectifier.activation,
        "unit_axis": site.unit_axis or None,
        "producer": site.producer,
        "norm": site.norm,
        "samples": finding.counts.samples,
        "units": site.units,
        **{verdict: tally.get(verdict, 0) for verdict in VERDICTS},
        "key": site.key,
        "alias": site.alias or None,
    }
    if site.units is None:
        row["unobserved"] = 0  # the site is known, its units are not
    row["dead_fraction"] = row["dead"] / site.units if site.units else np.nan
    if finding.counts.counted:
        row["mean_firing_rate"] = np.mean(units["firing_rate"])
    if ledger and finding.ledger is not None:
        lives = finding.ledger
        row["born_dead"] = int(lives.born_dead.sum()) if lives.born_known else None
        row["died"] = int(lives.died.any(axis=0).sum())
        row["revived"] = int(lives.revived.any(axis=0).sum())
    return row

"""Diagnosis: the tables that every report is made from.

The columns of each table are defined here and nowhere else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from reludiag.errors import UsageError
from reludiag.ledger import NEVER, Ledger, trace_lives
from reludiag.recording import RecordedRun, RecordedSite, read_recording
from reludiag.sites import Site
from reludiag.stats import UnitCounts
from reludiag.verdicts import VERDICTS, Thresholds, is_dead, judge, tau_score, upper_bound


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, its pandas dtype, and what it means."""

    name: str
    dtype: str
    meaning: str


UNIT_COLUMNS = (
    Column("site", "str", "where the rectifier runs: module path, and #k for its k-th repeat"),
    Column("unit", "Int64", "index along the unit axis; empty if the site was never called"),
    Column("verdict", "str", "the first that holds of: " + ", ".join(VERDICTS)),
    Column("samples", "Int64", "samples seen"),
    Column("fired", "Int64", "samples in which it was > 0 at one position or more"),
    Column("firing_rate", "float64", "fired / samples"),
    Column("firing_rate_upper", "float64", "one-sided 95 % upper bound, frozen weights only"),
    Column("active_fraction", "float64", "share of positions at which it was > 0"),
    Column("mean_activation", "float64", "mean over samples and positions"),
    Column("max_activation", "float64", "maximum over samples and positions"),
    Column("tau_score", "float64", "mean absolute activation over the site's mean"),
    Column("unit_axis", "str", "axis of the units; 1//49: blocks of 49 of it; unknown: last axis"),
    Column("activation", "str", "class of the rectifier"),
    Column("producer", "str", "module whose weights feed the site"),
)
LEDGER_COLUMNS = (
    Column("born_dead", "boolean", "dead at step 0; empty if step 0 was not seen"),
    Column("died_step", "Int64", "snapshot at which it was last found newly dead"),
    Column("revived_step", "Int64", "snapshot at which it was last found alive again"),
    Column("lr_at_death", "float64", "largest learning rate of its group in the window it died in"),
)
SITE_COLUMNS = (
    Column("site", "str", "as in the unit table; sites in forward order"),
    Column("activation", "str", "class of the rectifier"),
    Column("unit_axis", "str", "as in the unit table; empty if never called"),
    Column("producer", "str", "module whose weights feed the site"),
    Column("samples", "Int64", "samples seen"),
    Column("units", "Int64", "number of units; empty if never called"),
    *(Column(verdict, "Int64", f"units whose verdict is {verdict}") for verdict in VERDICTS),
    Column("dead_fraction", "float64", "dead / units"),
    Column("mean_firing_rate", "float64", "mean of the units' firing rates"),
)
SITE_LEDGER_COLUMNS = (
    Column("born_dead", "Int64", "units dead at step 0; empty if step 0 was not seen"),
    Column("died", "Int64", "units that died at some step (and may have revived)"),
    Column("revived", "Int64", "units that came back at some step"),
)
TIMELINE_COLUMNS = (
    Column("step", "Int64", "optimizer steps taken, or the step that a checkpoint names"),
    Column("site", "str", "as in the unit table"),
    Column("learning_rate", "float64", "largest of the site's group in the window that ends here"),
    Column("units", "Int64", "units of the site"),
    Column("dead", "Int64", "dead at this snapshot"),
    Column("died", "Int64", "died in the window that ends here"),
    Column("revived", "Int64", "revived in the window that ends here"),
    Column("nonfinite", "Int64", "with a NaN or an infinity"),
)


@dataclass(frozen=True)
class Head:
    """What was looked at, and on what evidence."""

    source: str
    """`scan` or `recording`."""
    model: str
    subject: str
    """The checkpoint or recording, or the model's class."""
    evidence: str
    """One sentence: on how many samples of what."""
    frozen: bool
    """From a pass with frozen weights: only that gives bounds on firing rates."""
    samples: int
    notes: tuple[str, ...] = ()
    """What the reader must know before believing the tables."""
    status: str = "complete"
    """Of a recording: `running` (or killed), `complete`, `interrupted`."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found, as tables; every report is made from it."""

    head: Head
    units: pd.DataFrame
    """A row per unit, sites in forward order: `UNIT_COLUMNS`, then with a ledger
    `LEDGER_COLUMNS`."""
    sites: pd.DataFrame
    """A row per site: `SITE_COLUMNS`, then with a ledger `SITE_LEDGER_COLUMNS`."""
    timeline: pd.DataFrame | None = None
    """A row per snapshot and site: `TIMELINE_COLUMNS`. None after a single scan."""
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def dead(self) -> int:
        """How many units are dead."""
        return int(self.sites["dead"].sum())

    @property
    def dead_fraction(self) -> float:
        """Dead units over all units; 0.0 where there are none."""
        units = int(self.sites["units"].sum())
        return self.dead / units if units else 0.0

    @property
    def diverged(self) -> bool:
        """Whether any unit was not finite: then silence proves nothing."""
        return bool(self.sites["nonfinite"].sum() > 0)

    def to_csv(self, path: str | Path | IO[str], all_units: bool = False) -> None:
        """Write the units that are not alive, or all of them; `-` is the standard output."""
        from reludiag.reports import write_csv

        write_csv(self, path, all_units)

    def to_json(self, path: str | Path | IO[str], all_units: bool = False) -> None:
        """Write one JSON document with a `schema_version`; `-` is the standard output."""
        from reludiag.reports import write_json

        write_json(self, path, all_units)

    def __str__(self) -> str:
        """The terminal report as plain text, 80 columns wide."""
        from reludiag.reports import terminal_text

        return terminal_text(self)


@dataclass(frozen=True)
class Limit:
    """How much may be dead (or not finite): a share of all units, or a number of them."""

    text: str
    value: float
    is_share: bool

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """From `5%` or `12`; raises UsageError for anything else."""
        number = text.removesuffix("%").strip()
        is_share = text.endswith("%")
        valid = re.fullmatch(r"\d+(\.\d+)?" if is_share else r"\d+", number)
        if not valid or (is_share and float(number) > 100):
            raise UsageError(
                f"--fail-over {text!r} was given; expected a share from 0% to 100%, such as 5%, "
                "or a number of units, such as 12"
            )
        return cls(text, float(number), is_share)

    def exceeded_by(self, diagnosis: Diagnosis) -> bool:
        """Whether more units than that are dead or not finite."""
        lost = diagnosis.dead + int(diagnosis.sites["nonfinite"].sum())
        units = int(diagnosis.sites["units"].sum())
        return lost * 100 > self.value * units if self.is_share else lost > self.value


@dataclass(frozen=True)
class SiteFindings:
    """One site with what was counted there."""

    site: Site
    counts: UnitCounts
    ledger: Ledger | None = None
    lr_at_death: np.ndarray[Any, Any] | None = None


def diagnose(
    head: Head,
    findings: Sequence[SiteFindings],
    thresholds: Thresholds,
    timeline: pd.DataFrame | None = None,
) -> Diagnosis:
    """Make the tables from what was counted."""
    units = [_unit_rows(head, found, thresholds) for found in findings]
    ledger = timeline is not None
    unit_columns = UNIT_COLUMNS + (LEDGER_COLUMNS if ledger else ())
    sites = [_site_row(found, table, ledger) for found, table in zip(findings, units, strict=True)]
    return Diagnosis(
        head=head,
        units=_table(unit_columns, units),
        sites=_table(SITE_COLUMNS + (SITE_LEDGER_COLUMNS if ledger else ()), sites),
        timeline=timeline,
        thresholds=thresholds,
    )


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
    return diagnose(head, findings, thresholds or Thresholds(), timeline_table(timelines))


def load(path: str | Path, thresholds: Thresholds | None = None) -> Diagnosis:
    """The Diagnosis of a recording, also of one that is still being written.

    Raises RecordingError if the file is missing, damaged, or no recording.
    """
    return diagnose_run(read_recording(path), str(path), thresholds)


def timeline_table(rows: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The sites' rows as one timeline, in order of steps."""
    table = _table(TIMELINE_COLUMNS, rows)
    return table.sort_values("step", kind="stable", ignore_index=True)


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
    return findings, timeline_table(timelines)


def _table(columns: Sequence[Column], rows: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows under the declared columns and dtypes, also where there are none."""
    names = [column.name for column in columns]
    table = (
        pd.concat([frame.reindex(columns=names) for frame in rows], ignore_index=True)
        if rows
        else pd.DataFrame(columns=names)
    )
    return table.astype({column.name: column.dtype for column in columns})


def _unit_rows(head: Head, found: SiteFindings, thresholds: Thresholds) -> pd.DataFrame:
    site, counts, ledger = found.site, found.counts, found.ledger
    if site.units is None:
        return pd.DataFrame(
            {
                "site": [site.name],
                "unit": pd.array([pd.NA], dtype="Int64"),
                "verdict": ["unobserved"],
                "samples": [0],
                "activation": [site.rectifier.activation],
            }
        )
    n, positions = counts.samples, counts.positions
    observed = n > 0

    def share(part: Any, whole: int) -> Any:
        return part / whole if observed else np.nan

    table = pd.DataFrame(
        {
            "site": site.name,
            "unit": np.arange(site.units),
            "verdict": judge(counts, site.rectifier, thresholds),
            "samples": n,
            "fired": counts.fired,
            "firing_rate": share(counts.fired, n),
            "firing_rate_upper": np.where(
                counts.nonfinite == 0, upper_bound(counts.fired, n), np.nan
            )
            if head.frozen
            else np.nan,
            "active_fraction": share(counts.active, positions),
            "mean_activation": share(counts.total, positions),
            "max_activation": counts.maximum if observed else np.nan,
            "tau_score": tau_score(counts) if observed else np.nan,
            "unit_axis": site.unit_axis,
            "activation": site.rectifier.activation,
            "producer": site.producer,
        }
    )
    if ledger is not None:
        table["born_dead"] = pd.array(
            ledger.born_dead if ledger.born_known else [pd.NA] * site.units, dtype="boolean"
        )
        table["died_step"] = _step_column(ledger.died_step)
        table["revived_step"] = _step_column(ledger.revived_step)
        table["lr_at_death"] = found.lr_at_death if found.lr_at_death is not None else np.nan
    return table


def _step_column(steps: np.ndarray[Any, Any]) -> pd.Series:
    return pd.Series(pd.array(steps, dtype="Int64")).mask(steps == NEVER)


def _site_row(found: SiteFindings, units: pd.DataFrame, ledger: bool) -> pd.DataFrame:
    site = found.site
    tally = units["verdict"].value_counts()
    row: dict[str, Any] = {
        "site": site.name,
        "activation": site.rectifier.activation,
        "unit_axis": site.unit_axis or None,
        "producer": site.producer,
        "samples": found.counts.samples,
        "units": pd.NA if site.units is None else site.units,
        **{verdict: int(tally.get(verdict, 0)) for verdict in VERDICTS},
    }
    if site.units is None:
        row["unobserved"] = 0  # the site is, its units are not known
    row["dead_fraction"] = row["dead"] / site.units if site.units else np.nan
    if found.counts.samples:
        row["mean_firing_rate"] = float(units["firing_rate"].mean())
    if ledger and found.ledger is not None:
        lives = found.ledger
        row["born_dead"] = int(lives.born_dead.sum()) if lives.born_known else pd.NA
        row["died"] = int(lives.died.any(axis=0).sum())
        row["revived"] = int(lives.revived.any(axis=0).sum())
    return pd.DataFrame([row])


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

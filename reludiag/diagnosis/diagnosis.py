"""Diagnosis: the tables that every report is made from.

The columns of each table are defined here and nowhere else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from reludiag.causes.cause import Cause
from reludiag.errors import UsageError
from reludiag.measure.unit_stats import UnitCounts
from reludiag.measure.verdicts import VERDICTS, Thresholds, judge, tau_score, upper_bound
from reludiag.recording.ledger import NEVER, Ledger, Lives
from reludiag.sites.site import Site


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, its pandas dtype, and what it means."""

    name: str
    dtype: str
    meaning: str


UNIT_COLUMNS = (
    Column(
        "site", "str", "path of the rectifier, #k for its k-th repeat; of a function, path:name"
    ),
    Column("unit", "Int64", "index along the unit axis; empty if the site was never called"),
    Column("verdict", "str", "the first that holds of: " + ", ".join(VERDICTS)),
    Column("samples", "Int64", "samples of which it is known whether it fired in one of them"),
    Column("counted", "Int64", "of these, the samples that all columns that follow are of"),
    Column("fired", "Int64", "samples in which it was > 0 at one position or more"),
    Column("firing_rate", "float64", "fired / counted"),
    Column("firing_rate_upper", "float64", "one-sided 95 % upper bound, frozen weights only"),
    Column("active_fraction", "float64", "share of positions at which it was > 0"),
    Column("mean_activation", "float64", "mean over samples and positions"),
    Column("max_activation", "float64", "maximum over samples and positions"),
    Column("tau_score", "float64", "mean absolute activation over the site's mean"),
    Column("unit_axis", "str", "axis of the units; 1//49: blocks of 49 of it; unknown: last axis"),
    Column("activation", "str", "class of the rectifier, or name of the function"),
    Column("producer", "str", "module whose weights feed the site"),
    Column("norm", "str", "BatchNorm between the two"),
    Column("rms_activation", "float64", "root of the mean square over samples and positions"),
    Column("max_preactivation", "float64", "how far from firing, where it was read"),
)
LEDGER_COLUMNS = (
    Column("born_dead", "boolean", "dead at step 0; empty if step 0 was not seen"),
    Column("died_step", "Int64", "snapshot at which it was last found newly dead"),
    Column("revived_step", "Int64", "snapshot at which it was last found alive again"),
    Column("lr_at_death", "float64", "largest learning rate of its group in the window it died in"),
    Column("cause", "str", "kind of cause that explains best why it is dead"),
    Column(
        "critical_lr", "float64", "learning rate it would have survived its window at, estimated"
    ),
    Column(
        "drift_weights",
        "float64",
        "share of the change of its mean pre-activation, as it died, through its weights",
    ),
    Column("drift_input", "float64", "the same through its input"),
    Column("drift_bias", "float64", "the same through its bias"),
)
SITE_COLUMNS = (
    Column("site", "str", "as in the unit table; sites in forward order"),
    Column("activation", "str", "class of the rectifier, or name of the function"),
    Column("unit_axis", "str", "as in the unit table; empty if never called"),
    Column("producer", "str", "module whose weights feed the site"),
    Column("norm", "str", "BatchNorm between the two"),
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
    Column("samples", "Int64", "samples seen in that window, or on the probe"),
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
    causes: tuple[Cause, ...] = ()
    """Why units died, of a recording: the run's own cause first (site None), then one for each
    site with deaths."""
    lives: Lives | None = None
    """What every unit was at every snapshot. None after a single scan."""

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
        from reludiag.reports import chosen_units, write_csv

        write_csv(chosen_units(self, all_units), path)

    def to_parquet(self, path: str | Path, all_units: bool = False) -> None:
        """Write the units that are not alive, or all of them, as a Parquet file.

        Raises MissingLibraryError without pyarrow: it is the extra `parquet`.
        """
        from reludiag.reports import write_parquet

        write_parquet(self, path, all_units)

    def to_json(self, path: str | Path | IO[str], all_units: bool = False) -> None:
        """Write one JSON document with a `schema_version`; `-` is the standard output."""
        from reludiag.reports import document, write

        write(path, document(self, all_units))

    def to_html(self, path: str | Path | IO[str], effects: Any = None) -> None:
        """Write the whole report as one page that needs nothing else; `-` is the standard output.

        `effects`, an `Effects` of a sweep or of several runs, adds their heat maps.
        """
        from reludiag.reports import page, write

        write(path, page(self, effects))

    def figure(self, kind: str) -> Any:
        """A matplotlib figure, to be saved or changed: `lifelines`, `sites` or `rates`."""
        from reludiag.reports import figure

        return figure(self, kind)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from reludiag.reports import fragment

        return fragment(self)

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
    def parse(cls, text: str, option: str = "--fail-over") -> "Limit":
        """From `5%` or `12`; raises UsageError for anything else."""
        number = text.removesuffix("%").strip()
        is_share = text.endswith("%")
        valid = re.fullmatch(r"\d+(\.\d+)?" if is_share else r"\d+", number)
        if not valid or (is_share and float(number) > 100):
            raise UsageError(
                f"{option} {text!r} was given; expected a share from 0% to 100%, such as 5%, "
                "or a number of units, such as 12"
            )
        return cls(text, float(number), is_share)

    def exceeded_by(self, diagnosis: Diagnosis) -> bool:
        """Whether more units than that are dead or not finite."""
        lost = diagnosis.dead + int(diagnosis.sites["nonfinite"].sum())
        return self.less_than(lost, int(diagnosis.sites["units"].sum()))

    def less_than(self, lost: int, units: int) -> bool:
        """Whether `lost` of `units` are more than that."""
        return lost * 100 > self.value * units if self.is_share else lost > self.value


@dataclass(frozen=True)
class SiteFindings:
    """One site with what was counted there."""

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
) -> Diagnosis:
    """Make the tables from what was counted."""
    units = [_unit_rows(head, found, thresholds) for found in findings]
    ledger = timeline is not None
    unit_columns = UNIT_COLUMNS + (LEDGER_COLUMNS if ledger else ())
    sites = [_site_row(found, table, ledger) for found, table in zip(findings, units, strict=True)]
    return Diagnosis(
        head=head,
        units=table_of(unit_columns, units),
        sites=table_of(SITE_COLUMNS + (SITE_LEDGER_COLUMNS if ledger else ()), sites),
        timeline=timeline,
        thresholds=thresholds,
        causes=tuple(causes),
        lives=None if timeline is None else _lives(timeline, findings),
    )


def _lives(timeline: pd.DataFrame, findings: Sequence[SiteFindings]) -> Lives:
    return Lives(
        tuple(int(step) for step in timeline["step"].unique()),
        {found.site.name: found.states for found in findings if found.states is not None},
    )


def table_of(
    columns: Sequence[Column], parts: Sequence[Mapping[str, Any] | pd.DataFrame]
) -> pd.DataFrame:
    """The parts, one below the other, under the declared columns and dtypes, also if there is none.

    A part gives by name of column an array or list `[row]`, or one value for all its rows; a part
    with no array is one row. What it does not give, and None, is missing.
    """
    heights = [_height(part) for part in parts]
    return pd.DataFrame(
        {
            column.name: _joined([part.get(column.name) for part in parts], heights, column.dtype)
            for column in columns
        },
        copy=False,
    )


def _height(part: Mapping[str, Any] | pd.DataFrame) -> int:
    if isinstance(part, pd.DataFrame):
        return len(part)
    return next((len(values) for values in part.values() if pd.api.types.is_list_like(values)), 1)


def _joined(pieces: Sequence[Any], heights: Sequence[int], dtype: Any) -> Any:
    """One column. Column by column, and not frame by frame: a large model has hundreds of sites."""
    is_number = dtype in {"Int64", "float64"}
    arrays = []
    for values, height in zip(pieces, heights, strict=True):
        if isinstance(values, np.ndarray):
            array = values
        elif pd.api.types.is_list_like(values):
            series = pd.Series(values)
            array = series.astype(object).where(series.notna(), None).to_numpy()
        elif values is None or values is pd.NA:
            array = np.full(height, np.nan) if is_number else np.full(height, None)
        else:
            array = np.full(height, values, dtype=None if is_number else object)
        arrays.append(array if is_number else array.astype(object))
    joined = np.concatenate(arrays) if arrays else np.empty(0, dtype=object)
    return joined.astype(dtype) if dtype == "float64" else pd.array(joined, dtype=dtype)


def _unit_rows(head: Head, found: SiteFindings, thresholds: Thresholds) -> dict[str, Any]:
    site, counts, ledger = found.site, found.counts, found.ledger
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
        table |= found.at_death
    return table


def _step_column(steps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.where(steps == NEVER, np.nan, steps)


def _site_row(found: SiteFindings, units: Mapping[str, Any], ledger: bool) -> dict[str, Any]:
    site = found.site
    verdicts, counts = np.unique(units["verdict"], return_counts=True)
    tally = dict(zip(verdicts.tolist(), counts.tolist(), strict=True))
    row: dict[str, Any] = {
        "site": site.name,
        "activation": site.rectifier.activation,
        "unit_axis": site.unit_axis or None,
        "producer": site.producer,
        "norm": site.norm,
        "samples": found.counts.samples,
        "units": site.units,
        **{verdict: tally.get(verdict, 0) for verdict in VERDICTS},
    }
    if site.units is None:
        row["unobserved"] = 0  # the site is, its units are not known
    row["dead_fraction"] = row["dead"] / site.units if site.units else np.nan
    if found.counts.counted:
        row["mean_firing_rate"] = np.mean(units["firing_rate"])
    if ledger and found.ledger is not None:
        lives = found.ledger
        row["born_dead"] = int(lives.born_dead.sum()) if lives.born_known else None
        row["died"] = int(lives.died.any(axis=0).sum())
        row["revived"] = int(lives.revived.any(axis=0).sum())
    return row

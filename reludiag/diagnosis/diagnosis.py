"""Diagnosis: the tables that every report is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pandas as pd

from reludiag.causes.cause import Cause
from reludiag.diagnosis.columns import MARK_COLUMNS, METRIC_COLUMNS
from reludiag.measure.structure import StructureNote
from reludiag.measure.unjudged import Unjudged, is_partial, is_whole
from reludiag.measure.verdicts import LOST, Thresholds
from reludiag.recording.ledger import Lives
from reludiag.tables import table_of

RANDOM_INPUT = (
    "RANDOM INPUT: this was seeded noise, not data. A unit that is silent on noise may fire on "
    "data, so this is not evidence of death."
)
"""The note of a Diagnosis whose input was noise."""


@dataclass(frozen=True)
class Head:
    """What was examined, and on what evidence."""

    source: str
    """`scan` or `recording`."""
    model: str
    subject: str
    """The checkpoint or recording, or the model's class."""
    evidence: str
    """One sentence: how many samples, and of what."""
    frozen: bool
    """Whether the weights were frozen: only then are there bounds on firing rates."""
    samples: int
    notes: tuple[str, ...] = ()
    """What the reader must know to judge the tables."""
    status: str = "complete"
    """Status of a recording: `running` (or killed), `complete`, `interrupted`."""
    if_independent: str = ""
    """What the bounds take to be independent, where it may not be: `rows` or `positions`."""
    per_pass: tuple[str, ...] = ()
    """Sites at which each forward pass of a training counts as one sample, though it has several.
    """
    models: tuple[str, ...] = ()
    """Names of the models, where several were watched: each site's name begins with one."""


@dataclass(frozen=True)
class Diagnosis:
    """The results as tables; every report is made from them."""

    head: Head
    units: pd.DataFrame
    """A row per unit, sites in forward order: `UNIT_COLUMNS`; from a recording also
    `LEDGER_COLUMNS`.
    """
    sites: pd.DataFrame
    """A row per site: `SITE_COLUMNS`; from a recording also `SITE_LEDGER_COLUMNS`."""
    timeline: pd.DataFrame | None = None
    """A row per snapshot and site: `TIMELINE_COLUMNS`. None after a single scan."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    causes: tuple[Cause, ...] = ()
    """Why units died, from a recording: the cause of the run first (site None), then one for each
    site with deaths.
    """
    structure: tuple[StructureNote, ...] = ()
    """What in the build of the network, or in the scale of its input, keeps units from training."""
    lives: Lives | None = None
    """The state of every unit at every snapshot. None after a single scan."""
    unjudged: tuple[Unjudged, ...] = ()
    """The places of the model whose units got no verdict, or one that may hide deaths, and why.
    Of these, nothing may be said to be alive.
    """
    metrics: pd.DataFrame = field(default_factory=lambda: table_of(METRIC_COLUMNS, []))
    """What was logged with `Monitor.log`, a row per window and name: `METRIC_COLUMNS`."""
    marks: pd.DataFrame = field(default_factory=lambda: table_of(MARK_COLUMNS, []))
    """What was marked with `Monitor.mark`, and what died from mark to mark: `MARK_COLUMNS`."""
    only_in_eval: Mapping[str, int] = field(default_factory=dict)
    """By site, the dead units that fire where BatchNorm uses the statistics of the batch, as in
    training, and not its running ones.
    """
    only_in_training: Mapping[str, int] = field(default_factory=dict)
    """Of a recording, the other way round: units that fire, and not on the statistics of the batch.
    """

    @property
    def dead(self) -> int:
        """Number of dead units."""
        return int(self.sites["dead"].sum())

    @property
    def dead_fraction(self) -> float:
        """Dead units / all units; 0.0 if there are no units."""
        return self.dead / self.unit_count if self.unit_count else 0.0

    @property
    def lost(self) -> int:
        """Number of units that are dead or not finite."""
        return int(self.sites[LOST].sum().sum())

    @property
    def unit_count(self) -> int:
        """Number of all units."""
        return int(self.sites["units"].sum())

    @property
    def judged_units(self) -> int:
        """Number of units of the sites that were judged."""
        if not self.watched:
            return 0
        places = {place.where for place in self.unjudged if not is_partial(place.reason)}
        return int(self.sites.loc[~self.sites["site"].isin(places), "units"].sum())

    @property
    def watched(self) -> bool:
        """Whether any training was watched. If not, the numbers say nothing of the trained model;
        `unjudged` has the reason.
        """
        return not any(is_whole(place.reason) for place in self.unjudged)

    @property
    def diverged(self) -> bool:
        """Whether any unit was not finite; silent units prove nothing then."""
        return bool(self.sites["nonfinite"].sum() > 0)

    def write(
        self,
        path: str | Path | IO[Any],
        format: str | None = None,  # noqa: A002 (what others that write files call it)
        *,
        all_units: bool = False,
        all_sites: bool = False,
        fail_over: str | Sequence[str] = (),
        allow_unobserved: bool = False,
        effects: Any = None,
    ) -> None:
        """Write the report in any format: `json`, `text`, or what `reludiag report` has an option
        for, such as `csv` or `markdown`.

        Without `format`, the end of the file's name says which, such as `.json`, `.csv` or `.md`.
        `-` is the standard output; an open stream is written to as it is. A file is written whole
        or not at all.

        `all_units` lists every unit, not only those that are not alive; `all_sites` every site,
        where a table would group them. `fail_over` is a limit, or several, as `--fail-over` has
        them, for JUnit and Markdown to judge by; places that were not judged fail it too, unless
        `allow_unobserved`. `effects`, an `Effects` of a sweep or of several
        runs, adds their heat maps to a page.

        Raises UsageError where the format or a limit is not known or the file cannot be written,
        and MissingLibraryError where the format needs a library that is not there.
        """
        from reludiag.diagnosis.gate import Gate
        from reludiag.reports.run.formats import ReportOptions, format_of

        limits = [fail_over] if isinstance(fail_over, str) else fail_over
        gate = Gate.parse(limits, allow_unobserved)
        gate.require_matches(self.sites, self.unjudged)
        choices = ReportOptions(
            all_units, all_sites, gate.judge(self.sites, self.unjudged), effects
        )
        format_of(path, format).write(self, path, choices)

    def to_csv(self, path: str | Path | IO[str], all_units: bool = False) -> None:
        """Write the units that are not alive, or all units; `-` is stdout."""
        self.write(path, "csv", all_units=all_units)

    def to_parquet(self, path: str | Path | IO[bytes], all_units: bool = False) -> None:
        """Write the units that are not alive, or all units, as a Parquet file.

        Raises MissingLibraryError without pyarrow (extra `parquet`).
        """
        self.write(path, "parquet", all_units=all_units)

    def to_json(self, path: str | Path | IO[str], all_units: bool = False) -> None:
        """Write one JSON document with a `schema_version`; `-` is stdout."""
        self.write(path, "json", all_units=all_units)

    def to_html(self, path: str | Path | IO[str], effects: Any = None) -> None:
        """Write the whole report as one self-contained page; `-` is stdout.

        `effects`, an `Effects` of a sweep or of several runs, adds their heat maps.
        """
        self.write(path, "html", effects=effects)

    def figure(self, kind: str) -> Any:
        """A matplotlib figure: `lifelines`, `sites` or `rates`."""
        from reludiag.reports.run.figures import figure

        return figure(self, kind)

    def _repr_html_(self) -> str:
        """The HTML that a notebook displays."""
        from reludiag.reports.html.page import fragment

        return fragment(self)

    def __str__(self) -> str:
        """The terminal report as plain text, 80 columns wide."""
        from reludiag.reports.run.terminal import terminal_text

        return terminal_text(self)

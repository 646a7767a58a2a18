"""Loads the Diagnosis of a file: a recording or a JSON report."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reludiag.causes.cause import Cause, Change, Evidence
from reludiag.diagnosis.columns import (
    LEDGER_COLUMNS,
    MARK_COLUMNS,
    METRIC_COLUMNS,
    SCHEMA_VERSION,
    SITE_COLUMNS,
    SITE_LEDGER_COLUMNS,
    TIMELINE_COLUMNS,
    UNIT_COLUMNS,
)
from reludiag.diagnosis.diagnosis import Diagnosis, Head
from reludiag.diagnosis.from_recording import load
from reludiag.errors import ReportError
from reludiag.measure.structure import StructureNote
from reludiag.measure.unjudged import Unjudged, site_unjudged
from reludiag.measure.verdicts import VERDICTS, Thresholds
from reludiag.tables import table_of


def open_diagnosis(path: str | Path) -> Diagnosis:
    """The Diagnosis of a recording, or of a JSON report of a scan or a recording.

    Units that a report does not list are alive; nothing else is known about them. Raises
    RecordingError or ReportError if the file is missing, damaged, or neither of the two.
    """
    path = Path(path)
    if not path.is_file():
        raise ReportError(
            f"{path} does not exist; expected a recording, or a report written by --json"
        )
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    return _read_report(path) if start.startswith(b"{") else load(path)


def _read_report(path: Path) -> Diagnosis:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ReportError(
            f"{path} is not a JSON document: {error}. Is the file truncated?"
        ) from None
    version = content.get("schema_version")
    if not isinstance(version, int) or not {"sites", "units", "thresholds"} <= content.keys():
        raise ReportError(
            f"{path} is JSON, but not a report of units; expected the output of `reludiag scan "
            "--json` or `reludiag report --json`"
        )
    if version > SCHEMA_VERSION:
        raise ReportError(
            f"{path} has schema version {version}; this reludiag reads up to {SCHEMA_VERSION}. "
            "Upgrade it: pip install -U reludiag"
        )
    try:
        return _diagnosis(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(
            f"{path} is not a report as reludiag writes it: {error}. Was it edited?"
        ) from error


def _diagnosis(content: dict[str, Any]) -> Diagnosis:
    recorded = content["timeline"] is not None
    sites = table_of(
        SITE_COLUMNS + (SITE_LEDGER_COLUMNS if recorded else ()), [pd.DataFrame(content["sites"])]
    )
    # A document of an older version has no column for a verdict that came later.
    sites = sites.fillna(dict.fromkeys(VERDICTS, 0))
    columns = UNIT_COLUMNS + (LEDGER_COLUMNS if recorded else ())
    rows = table_of(columns, [pd.DataFrame(content["units"])])
    by_site = dict(list(rows.groupby("site", sort=False)))
    units = [_with_the_rest(by_site.get(row["site"]), row) for row in sites.to_dict("records")]
    names = ("source", "model", "subject", "evidence", "frozen", "samples", "status")
    return Diagnosis(
        head=Head(
            **{name: content[name] for name in names},
            notes=tuple(content["notes"]),
            if_independent=content.get("if_independent", ""),  # as the next, not in older documents
            per_pass=tuple(content.get("per_pass", ())),
            models=tuple(content.get("models", ())),
        ),
        units=table_of(columns, units),
        sites=sites,
        timeline=table_of(TIMELINE_COLUMNS, [pd.DataFrame(content["timeline"])])
        if recorded
        else None,
        thresholds=Thresholds(**content["thresholds"]),
        causes=tuple(_cause(cause) for cause in content["causes"]),
        structure=tuple(_structure_note(note) for note in content.get("structure", ())),
        unjudged=tuple(Unjudged(**place) for place in content["unjudged"])
        if "unjudged" in content
        else _unjudged(sites),
        metrics=table_of(METRIC_COLUMNS, [pd.DataFrame(content.get("metrics", []))]),
        marks=table_of(MARK_COLUMNS, [pd.DataFrame(content.get("marks", []))]),
        only_in_eval=content.get("only_in_eval", {}),
        only_in_training=content.get("only_in_training", {}),
    )


def _unjudged(sites: pd.DataFrame) -> tuple[Unjudged, ...]:
    """What the sites of an older document tell of themselves."""
    places = (
        site_unjudged(
            str(row["site"]),
            None if pd.isna(row["units"]) else int(row["units"]),
            row["unit_axis"],
            int(row["samples"]),
        )
        for row in sites.to_dict("records")
    )
    return tuple(place for place in places if place is not None)


def _cause(content: dict[str, Any]) -> Cause:
    evidence = tuple(Evidence(**item) for item in content["evidence"])
    changes = tuple(_change(item) for item in content.get("changes", ()))  # not in older documents
    return Cause(**{**content, "evidence": evidence, "changes": changes})


def _change(content: dict[str, Any]) -> Change:
    steps = content["steps"]
    where = tuple(content["where"])
    return Change(**{**content, "where": where, "steps": steps and (steps[0], steps[1])})


def _structure_note(content: dict[str, Any]) -> StructureNote:
    value = content["value"]
    return StructureNote(**{**content, "value": math.nan if value is None else value})


def _with_the_rest(rows: pd.DataFrame | None, site: dict[Any, Any]) -> pd.DataFrame:
    """All units of a site: the listed ones and the others, which are alive."""
    rows = pd.DataFrame({"unit": [], "verdict": []}) if rows is None else rows
    count = 0 if pd.isna(site["units"]) else int(site["units"])
    numbers = rows["unit"].dropna().to_numpy(dtype=np.int64)
    rest = np.setdiff1d(np.arange(count), numbers)
    tally = Counter(rows.loc[rows["unit"].notna(), "verdict"])
    tally["alive"] += len(rest)
    if tally != Counter({verdict: int(site[verdict]) for verdict in VERDICTS}):
        raise ValueError(f"the units listed for site '{site['site']}' do not match its counts")
    alive = pd.DataFrame(
        {"site": site["site"], "unit": rest, "verdict": "alive", "samples": site["samples"]}
    )
    if not len(rest):
        return rows
    whole = alive if rows.empty else pd.concat([rows, alive])
    return whole.sort_values("unit", kind="stable")

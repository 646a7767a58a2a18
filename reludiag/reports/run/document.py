"""JSON: a whole Diagnosis, or the effects of a sweep, as one document."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from reludiag.diagnosis.columns import SCHEMA_VERSION
from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.experiments.analysis.effects import Effects
from reludiag.measure.verdicts import VERDICTS
from reludiag.reports.csv_file import chosen_units
from reludiag.reports.sweep.summary import caveats, findings, headline


def document(diagnosis: Diagnosis, all_units: bool = False) -> str:
    """The JSON text; numbers that are unknown or not finite are null."""
    sites = diagnosis.sites
    content = {
        "schema_version": SCHEMA_VERSION,
        **asdict(diagnosis.head),
        "thresholds": asdict(diagnosis.thresholds),
        "diverged": diagnosis.diverged,
        "totals": {
            "sites": len(sites),
            "units": int(sites["units"].sum()),
            **{verdict: int(sites[verdict].sum()) for verdict in VERDICTS},
            "dead_fraction": diagnosis.dead_fraction,
        },
        "causes": [finite(asdict(cause)) for cause in diagnosis.causes],
        "sites": records(sites),
        "units": records(chosen_units(diagnosis, all_units)),
        "timeline": None if diagnosis.timeline is None else records(diagnosis.timeline),
    }
    return json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"


def effects_document(effects: Effects) -> str:
    """The JSON text of what a sweep says, and of its trials; what is not known is null."""
    counts = ("runs", "counted", "diverged", "crashed", "unplaced", "repeated")
    content = {
        "schema_version": SCHEMA_VERSION,
        "sentence": headline(effects),
        "findings": findings(effects),
        "notes": caveats(effects),
        "totals": {name: getattr(effects, name) for name in counts},
        "cells": records(effects.cells),
        "trend": asdict(effects.trend),
        "trends": [asdict(trend) for trend in effects.trends],
        "variance": [asdict(item) for item in effects.variance],
        "odds": asdict(effects.odds),
        "safe_new": effects.safe_new,
        "safe": [asdict(item) for item in effects.safe],
        "trials": records(effects.trials),
    }
    return json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON objects; what is unknown or not finite is None."""
    finite = table.replace([np.inf, -np.inf], np.nan).astype(object)
    rows = finite.where(finite.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def finite(value: Any) -> Any:
    """The same of dicts, lists and numbers, with None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""JSON: the whole Diagnosis as one document."""

import json
import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from reludiag.diagnosis import Diagnosis
from reludiag.reports.table import chosen_units
from reludiag.verdicts import VERDICTS

SCHEMA_VERSION = 1


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
        "sites": _records(sites),
        "units": _records(chosen_units(diagnosis, all_units)),
        "timeline": None if diagnosis.timeline is None else _records(diagnosis.timeline),
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {str(name): [_plain(value) for value in table[name]] for name in table.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    if value is pd.NA or value is None:
        return None
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value

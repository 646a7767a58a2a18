"""JSON: the whole Diagnosis as one document."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
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
        "causes": [finite(asdict(cause)) for cause in diagnosis.causes],
        "sites": records(sites),
        "units": records(chosen_units(diagnosis, all_units)),
        "timeline": None if diagnosis.timeline is None else records(diagnosis.timeline),
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

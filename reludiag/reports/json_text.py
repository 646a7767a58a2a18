"""JSON: tables and numbers as a document has them, and its text."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


def text_of(content: Mapping[str, Any], indent: int | None = None) -> str:
    """The document's text; raises ValueError for a number that is not finite."""
    return json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON objects; unknown and non-finite values are None."""
    values = table.replace([np.inf, -np.inf], np.nan).astype(object)
    rows = values.where(values.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def finite(value: Any) -> Any:
    """The same dicts, lists and numbers, with None for non-finite values."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""CSV: one row per unit, or per run of a sweep."""

from typing import IO

import pandas as pd

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.reports.output import Target, opened

# A spreadsheet runs a cell that begins with one of these.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_csv(table: pd.DataFrame, target: Target) -> None:
    """Write any table to a file, a stream, or `-`."""
    with opened(target) as stream:
        write_frame(table, stream)


def write_frame(table: pd.DataFrame, stream: IO[str]) -> None:
    """Write any table; text that a spreadsheet would run is made harmless."""
    table = table.copy()
    for name in table.columns[table.dtypes == "str"]:
        table[name] = table[name].map(_harmless, na_action="ignore")
    table.to_csv(stream, index=False, lineterminator="\n")


def chosen_units(diagnosis: Diagnosis, all_units: bool) -> pd.DataFrame:
    """All units, or those whose verdict is not `alive`."""
    units = diagnosis.units
    return units if all_units else units[units["verdict"] != "alive"]


def _harmless(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA_STARTS) else text

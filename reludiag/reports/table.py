"""CSV: one row per unit, or per run of a sweep."""

from typing import IO

import pandas as pd

from reludiag.diagnosis import Diagnosis

# A spreadsheet runs a cell that begins with one of these.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_table(diagnosis: Diagnosis, stream: IO[str], all_units: bool) -> None:
    """Write the unit table: those that are not alive, or all."""
    write_frame(chosen_units(diagnosis, all_units), stream)


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

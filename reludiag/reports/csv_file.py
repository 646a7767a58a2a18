"""CSV: any table, as a spreadsheet may open it."""

from typing import IO

import pandas as pd

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


def _harmless(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA_STARTS) else text

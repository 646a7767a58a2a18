"""CSV: any table, as a spreadsheet may open it."""

from typing import IO, Any

import pandas as pd

from reludiag.reports.output import Target, opened

# A spreadsheet executes a cell that begins with one of these.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_csv(table: pd.DataFrame, target: Target) -> None:
    """Write any table to a file, a stream, or `-`."""
    with opened(target) as stream:
        write_frame(table, stream)


def write_frame(table: pd.DataFrame, stream: IO[str]) -> None:
    """Write any table; text that a spreadsheet would execute is escaped."""
    table = table.copy()
    for name in table.select_dtypes(exclude="number"):  # text is of dtype object before pandas 3
        table[name] = table[name].map(_harmless)
    table.to_csv(stream, index=False, lineterminator="\n")


def _harmless(cell: Any) -> Any:
    return "'" + cell if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell

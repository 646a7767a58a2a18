"""Tables: columns, and how to build a table from parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionDtype


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, its pandas dtype, and what it means."""

    name: str
    dtype: str
    meaning: str


def table_of(
    columns: Sequence[Column], parts: Sequence[Mapping[str, Any] | pd.DataFrame]
) -> pd.DataFrame:
    """The parts below each other, with the declared columns and dtypes, also without parts.

    A part maps column names to an array or list `[row]`, or to one value for all its rows; a part
    without arrays is one row. Absent columns and None are missing values.
    """
    heights = [_height(part) for part in parts]
    return pd.DataFrame(
        {
            column.name: _joined([part.get(column.name) for part in parts], heights, column.dtype)
            for column in columns
        },
        copy=False,
    )


def _height(part: Mapping[str, Any] | pd.DataFrame) -> int:
    if isinstance(part, pd.DataFrame):
        return len(part)
    return next((len(values) for values in part.values() if pd.api.types.is_list_like(values)), 1)


def _joined(pieces: Sequence[Any], heights: Sequence[int], dtype: Any) -> Any:
    """One column.

    Built column by column, not frame by frame, because a large model has hundreds of sites.
    """
    is_number = dtype in {"Int64", "float64"}
    arrays = []
    for values, height in zip(pieces, heights, strict=True):
        if isinstance(values, np.ndarray):
            array = values
        elif pd.api.types.is_list_like(values):
            series = pd.Series(values)
            array = series.astype(object).where(series.notna(), None).to_numpy()
        elif values is None or values is pd.NA:
            array = np.full(height, np.nan) if is_number else np.full(height, None)
        else:
            array = np.full(height, values, dtype=None if is_number else object)
        arrays.append(array if is_number else array.astype(object))
    joined = np.concatenate(arrays) if arrays else np.empty(0, dtype=object)
    if dtype == "float64":
        return joined.astype(dtype)
    kind = pd.api.types.pandas_dtype(dtype)
    if isinstance(kind, ExtensionDtype):  # a Series of it takes ten times as long
        array_type: Any = kind.construct_array_type()
        return array_type._from_sequence(joined, dtype=kind)
    # pd.array writes out None, as "None", before pandas 3. A frame need not align arrays.
    return pd.Series(joined, dtype=dtype).array

"""Parquet: the unit table with its types, for tools that read tables (extra `parquet`)."""

import io
from typing import IO

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.reports.run.formats import ReportOptions
from reludiag.reports.run.summary import chosen_units


def write_parquet(diagnosis: Diagnosis, stream: IO[bytes], choices: ReportOptions) -> None:
    """The units that are not alive, or all of them.

    Text is not escaped: a spreadsheet does not execute a typed file, and names remain keys.
    """
    content = io.BytesIO()  # pandas closes what it writes to
    units = chosen_units(diagnosis, choices.all_units)
    units.to_parquet(content, engine="pyarrow", index=False)
    stream.write(content.getvalue())

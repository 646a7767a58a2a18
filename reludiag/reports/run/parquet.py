"""Parquet: the unit table with its types, for tools that read tables (extra `parquet`)."""

import io
from pathlib import Path

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.errors import MissingLibraryError, UsageError
from reludiag.reports.output import STDOUT, check_writable, write_bytes
from reludiag.reports.run.summary import chosen_units


def check_parquet(target: str | Path) -> None:
    """Raise now rather than after a long pass, if no Parquet file can be written to `target`.

    MissingLibraryError without pyarrow, UsageError for the standard output or a place that cannot
    be written.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingLibraryError("pyarrow", "parquet") from error
    if str(target) == STDOUT:
        raise UsageError("Parquet was to go to the standard output; expected the name of a file")
    check_writable(target)


def write_parquet(diagnosis: Diagnosis, target: str | Path, all_units: bool = False) -> None:
    """The unit table as Parquet: the units that are not alive, or all of them.

    Text stands as it is: a typed file is not run by a spreadsheet, and names remain keys.
    """
    check_parquet(target)
    content = io.BytesIO()
    chosen_units(diagnosis, all_units).to_parquet(content, engine="pyarrow", index=False)
    write_bytes(content.getvalue(), target)

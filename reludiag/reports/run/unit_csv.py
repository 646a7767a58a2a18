"""CSV: the unit table, a row per unit."""

from typing import IO

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.reports.csv_file import write_frame
from reludiag.reports.run.formats import ReportOptions
from reludiag.reports.run.summary import chosen_units


def write_csv(diagnosis: Diagnosis, stream: IO[str], choices: ReportOptions) -> None:
    """The units that are not alive, or all of them."""
    write_frame(chosen_units(diagnosis, choices.all_units), stream)

"""Reports: each takes a Diagnosis and writes it in one format. `output` alone owns files."""

from pathlib import Path
from typing import IO

from reludiag.diagnosis import Diagnosis
from reludiag.reports.document import document
from reludiag.reports.init_report import init_document, init_text, print_init
from reludiag.reports.output import check_writable, opened
from reludiag.reports.table import write_table
from reludiag.reports.terminal import print_report, terminal_svg, terminal_text

__all__ = [
    "check_writable",
    "document",
    "init_document",
    "init_text",
    "print_init",
    "print_report",
    "terminal_svg",
    "terminal_text",
    "write_csv",
    "write_json",
    "write_svg",
    "write_text",
]

Target = str | Path | IO[str]


def write_csv(diagnosis: Diagnosis, target: Target, all_units: bool = False) -> None:
    """The unit table as CSV: the units that are not alive, or all of them."""
    with opened(target) as stream:
        write_table(diagnosis, stream, all_units)


def write_json(diagnosis: Diagnosis, target: Target, all_units: bool = False) -> None:
    """The whole Diagnosis as one JSON document."""
    with opened(target) as stream:
        stream.write(document(diagnosis, all_units))


def write_text(diagnosis: Diagnosis, target: Target, all_sites: bool = False) -> None:
    """The terminal report as plain text."""
    with opened(target) as stream:
        stream.write(
            terminal_text(diagnosis, all_sites, getattr(stream, "encoding", None) or "utf-8")
        )


def write_svg(diagnosis: Diagnosis, target: Target, all_sites: bool = False) -> None:
    """The terminal report as a picture."""
    with opened(target) as stream:
        stream.write(terminal_svg(diagnosis, all_sites))

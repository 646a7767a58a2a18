"""The formats of the report on a run, one row each.

The options of `reludiag scan` and `reludiag report`, `Diagnosis.write`, the settings that a
configuration may not have, and the reference all follow from this table. A new format is a file
with a function like those that are named here, and a row.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from reludiag.errors import MissingLibraryError, UsageError
from reludiag.reports.output import STDOUT, check_writable, opened, opened_binary

if TYPE_CHECKING:  # importing these loads pandas, which a list of options can do without
    from reludiag.diagnosis.diagnosis import Diagnosis
    from reludiag.diagnosis.gate import Check
    from reludiag.experiments.analysis.effects import Effects


@dataclass(frozen=True)
class ReportOptions:
    """What a caller can choose of a report; a format uses what concerns it."""

    all_units: bool = False
    """Every unit where units are listed, not only those that are not alive."""
    all_sites: bool = False
    """Every site where the terminal report would group them."""
    checks: "Sequence[Check]" = ()
    """What a gate says of the sites."""
    effects: "Effects | None" = None
    """What several runs say together, for a page to add."""


Writer = Callable[["Diagnosis", IO[Any], ReportOptions], None]
"""Writes the report to an open stream, of text, or of bytes where the format is binary."""


@dataclass(frozen=True)
class Format:
    """A row of the table."""

    name: str
    """Of its option, `--csv FILE`, and for `Diagnosis.write`."""
    ending: str
    """Of a file name: where no format is named, this one is meant."""
    help: str
    """Of its option. Empty where it has none: what goes to `--output` is text, or with `--json`
    JSON."""
    path: str
    """`module:function` of the Writer, imported when it is used."""
    is_binary: bool = False
    """Bytes: these cannot go to the standard output."""
    library: str = ""
    """What it needs that is not always there, and an extra of the name of the format brings."""

    def writer(self) -> Writer:
        """The function that writes it."""
        module, _, function = self.path.partition(":")
        writer: Writer = getattr(importlib.import_module(module), function)
        return writer

    def check(self, target: str | Path) -> None:
        """Raise now rather than after a long pass, if it cannot be written to `target`.

        MissingLibraryError without its library, UsageError where nothing can be written.
        """
        self._check_library()
        if self.is_binary and str(target) == STDOUT:
            raise UsageError(
                f"{self.name} is a binary format and cannot go to the standard output; expected "
                f"the name of a file, such as units{self.ending}"
            )
        check_writable(target)

    def write(
        self, diagnosis: "Diagnosis", target: str | Path | IO[Any], choices: ReportOptions
    ) -> None:
        """Write the report to a file, to `-`, or to an open stream; a file whole or not at all."""
        if isinstance(target, str | Path):
            self.check(target)
        else:
            self._check_library()
        with opened_binary(target) if self.is_binary else opened(target) as stream:
            self.writer()(diagnosis, stream, choices)

    def _check_library(self) -> None:
        if self.library:
            try:
                importlib.import_module(self.library)
            except ImportError as error:
                raise MissingLibraryError(self.library, self.name) from error


FORMATS = (
    Format(
        "csv",
        ".csv",
        "Write the units that are not alive; - is stdout.",
        "reludiag.reports.run.unit_csv:write_csv",
    ),
    Format(
        "parquet",
        ".parquet",
        "Write the same table with its types (extra parquet).",
        "reludiag.reports.run.parquet:write_parquet",
        is_binary=True,
        library="pyarrow",
    ),
    Format(
        "html",
        ".html",
        "Write the whole report as one page, with charts.",
        "reludiag.reports.html.page:write_page",
    ),
    Format(
        "svg",
        ".svg",
        "Write the report as an SVG picture.",
        "reludiag.reports.run.terminal:write_svg",
    ),
    Format(
        "junit",
        ".xml",
        "Write JUnit XML, one test case per site; - is stdout.",
        "reludiag.reports.run.junit:write_junit",
    ),
    Format(
        "markdown",
        ".md",
        "Write a summary as Markdown; - is stdout.",
        "reludiag.reports.run.markdown:write_markdown",
    ),
    Format("json", ".json", "", "reludiag.reports.run.document:write_document"),
    Format("text", ".txt", "", "reludiag.reports.run.terminal:write_text"),
)
OPTIONS = tuple(each for each in FORMATS if each.help)
"""Those with an option of their own."""


def format_of(target: str | Path | IO[Any], name: str | None = None) -> Format:
    """The format of this name; without one, the one that the end of the file's name means.

    Raises UsageError where there is none.
    """
    names = {each.name: each for each in FORMATS}
    if name is not None:
        if name not in names:
            raise UsageError(f"format {name!r} was given; expected one of {', '.join(names)}")
        return names[name]
    ending = Path(target).suffix.lower() if isinstance(target, str | Path) else ""
    for each in FORMATS:
        if ending == each.ending:
            return each
    raise UsageError(
        f"{target} does not say in which format to write; expected one of {', '.join(names)} as "
        f"format, or a file name that ends in one of {', '.join(each.ending for each in FORMATS)}"
    )

"""Reports: each takes a Diagnosis, or the effects of a sweep, and makes one format of it.

`output` alone owns files: `write` gives it a text, `write_csv` a table.
"""

from reludiag.reports.csv_file import write_csv
from reludiag.reports.difference_report import (
    changed_units,
    difference_document,
    difference_text,
    print_difference,
)
from reludiag.reports.figure_style import write_figure
from reludiag.reports.html.page import fragment, page
from reludiag.reports.html.sweep_page import effects_fragment, effects_page
from reludiag.reports.init_report import init_document, init_text, print_init
from reludiag.reports.output import append, check_writable, write
from reludiag.reports.replay_report import print_replay, replay_document, replay_text
from reludiag.reports.run.document import document
from reludiag.reports.run.figures import figure
from reludiag.reports.run.junit import junit
from reludiag.reports.run.markdown import markdown
from reludiag.reports.run.parquet import check_parquet, write_parquet
from reludiag.reports.run.summary import chosen_units
from reludiag.reports.run.terminal import print_report, terminal_svg, terminal_text
from reludiag.reports.sweep.document import effects_document
from reludiag.reports.sweep.terminal import effects_text, print_effects

__all__ = [
    "append",
    "changed_units",
    "check_parquet",
    "check_writable",
    "chosen_units",
    "difference_document",
    "difference_text",
    "document",
    "effects_document",
    "effects_fragment",
    "effects_page",
    "effects_text",
    "figure",
    "fragment",
    "init_document",
    "init_text",
    "junit",
    "markdown",
    "page",
    "print_difference",
    "print_effects",
    "print_init",
    "print_replay",
    "print_report",
    "replay_document",
    "replay_text",
    "terminal_svg",
    "terminal_text",
    "write",
    "write_csv",
    "write_figure",
    "write_parquet",
]

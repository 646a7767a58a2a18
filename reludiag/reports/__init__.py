"""Reports: each takes a Diagnosis, or the effects of a sweep, and writes it in one format.

`output` alone owns files.
"""

from pathlib import Path
from typing import IO

import pandas as pd

from reludiag.diagnosis import Diagnosis
from reludiag.experiments.effects import Effects
from reludiag.experiments.replay import Replay
from reludiag.reports.document import document, effects_document
from reludiag.reports.figures import figure, write_figure
from reludiag.reports.heat_map import effects_text, print_effects
from reludiag.reports.html import fragment, page
from reludiag.reports.init_report import init_document, init_text, print_init
from reludiag.reports.output import check_writable, opened
from reludiag.reports.replay_report import print_replay, replay_document, replay_text
from reludiag.reports.table import write_frame, write_table
from reludiag.reports.terminal import print_report, terminal_svg, terminal_text

__all__ = [
    "check_writable",
    "document",
    "effects_document",
    "effects_text",
    "figure",
    "fragment",
    "init_document",
    "init_text",
    "print_effects",
    "print_init",
    "print_replay",
    "print_report",
    "replay_document",
    "replay_text",
    "terminal_svg",
    "terminal_text",
    "write_csv",
    "write_effects_json",
    "write_effects_text",
    "write_figure",
    "write_html",
    "write_json",
    "write_replay_json",
    "write_replay_text",
    "write_svg",
    "write_text",
    "write_trials",
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


def write_html(diagnosis: Diagnosis, target: Target, effects: Effects | None = None) -> None:
    """The whole report as one page, with the heat maps of a sweep where one is given."""
    text = page(diagnosis, effects)
    with opened(target) as stream:
        stream.write(text)


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


def write_effects_text(effects: Effects, target: Target) -> None:
    """The terminal report of a sweep as plain text."""
    with opened(target) as stream:
        stream.write(effects_text(effects, getattr(stream, "encoding", None) or "utf-8"))


def write_effects_json(effects: Effects, target: Target) -> None:
    """What a sweep says, and its trials, as one JSON document."""
    with opened(target) as stream:
        stream.write(effects_document(effects))


def write_replay_text(replay: Replay, target: Target) -> None:
    """The terminal report of a replay as plain text."""
    with opened(target) as stream:
        stream.write(replay_text(replay, getattr(stream, "encoding", None) or "utf-8"))


def write_replay_json(replay: Replay, target: Target) -> None:
    """The answer of a replay, and its trials, as one JSON document."""
    with opened(target) as stream:
        stream.write(replay_document(replay))


def write_trials(trials: pd.DataFrame, target: Target) -> None:
    """The table of trials as CSV."""
    with opened(target) as stream:
        write_frame(trials, stream)

"""Results: writes the result of a command to its output files and to the terminal."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:  # importing these loads torch; --help must not
    import pandas as pd
    from rich.console import Console

    from reludiag.diagnosis.diagnosis import Diagnosis
    from reludiag.diagnosis.difference import Difference
    from reludiag.diagnosis.gate import Gate
    from reludiag.experiments.analysis.effects import Effects
    from reludiag.experiments.replay import Replay

STDOUT = "-"
LISTED_LIMITS = 5  # exceeded limits that a gate names one by one

File = tuple[str | None, Callable[[str], None]]
"""The target that an option names, or None; and the function that writes there."""


def check_outputs(
    output: str, as_json: bool, *files: str | None, parquet: str | None = None
) -> None:
    """Raise before a long pass, not after it, if a file cannot be written."""
    from reludiag.errors import UsageError
    from reludiag.reports import check_parquet, check_writable

    if parquet is not None:
        check_parquet(parquet)
    for target in (output, *files):
        if target is not None:
            check_writable(target)
    if files.count(STDOUT) > 1 or (as_json and output == STDOUT and STDOUT in files):
        raise UsageError("only one of --json and the output files can go to stdout")


def write_reports(
    diagnosis: "Diagnosis",
    gate: "Gate",
    *,
    output: str,
    as_json: bool,
    csv: str | None,
    svg: str | None,
    parquet: str | None,
    html: str | None,
    junit: str | None,
    markdown: str | None,
    github_summary: bool,
    all_units: bool,
    all_sites: bool,
) -> None:
    """Write every report that an option names; exit 1 if the gate fails."""
    from reludiag import reports
    from reludiag.diagnosis.gate import exceeded
    from reludiag.printable import printable

    checks = gate.judge(diagnosis)
    if github_summary and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
        reports.append(summary, reports.markdown(diagnosis, checks))
    _write(
        output,
        [
            (csv, lambda to: reports.write_csv(reports.chosen_units(diagnosis, all_units), to)),
            (parquet, lambda to: reports.write_parquet(diagnosis, to, all_units)),
            (svg, lambda to: reports.write(to, reports.terminal_svg(diagnosis, all_sites))),
            (html, lambda to: reports.write(to, reports.page(diagnosis))),
            (junit, lambda to: reports.write(to, reports.junit(diagnosis, checks))),
            (markdown, lambda to: reports.write(to, reports.markdown(diagnosis, checks))),
        ],
        document=(lambda: reports.document(diagnosis, all_units)) if as_json else None,
        text=lambda encoding: reports.terminal_text(diagnosis, all_sites, encoding),
        show=lambda console: reports.print_report(diagnosis, console, all_sites),
    )
    gate.require_matches(diagnosis)
    failed = exceeded(checks)
    for check in failed[:LISTED_LIMITS]:
        typer.echo(printable(f"--fail-over: {check.sentence}"), err=True)
    if len(failed) > LISTED_LIMITS:
        typer.echo(f"--fail-over: {len(failed) - LISTED_LIMITS:,} more sites", err=True)
    if failed:
        raise typer.Exit(1)


def write_effects(
    effects: "Effects", *, output: str, as_json: bool, csv: str | None, html: str | None
) -> None:
    """Write the comparison of several runs, and their table if an option names it."""
    from reludiag import reports

    _write(
        output,
        [
            (csv, lambda to: reports.write_csv(effects.trials, to)),
            (html, lambda to: reports.write(to, reports.effects_page(effects))),
        ],
        document=(lambda: reports.effects_document(effects)) if as_json else None,
        text=lambda encoding: reports.effects_text(effects, encoding),
        show=lambda console: reports.print_effects(effects, console),
    )


def write_replay(replay: "Replay", *, output: str, as_json: bool, csv: str | None) -> None:
    """Write the answer of a replay, and the table of its runs if an option names it."""
    from reludiag import reports

    _write(
        output,
        [(csv, lambda to: reports.write_csv(replay.trials, to))],
        document=(lambda: reports.replay_document(replay)) if as_json else None,
        text=lambda encoding: reports.replay_text(replay, encoding),
        show=lambda console: reports.print_replay(replay, console),
    )


def fail_if_all_crashed(trials: "pd.DataFrame") -> None:
    """Exit 1 if every run crashed: there is no result then."""
    if len(trials) and (trials["status"] == "crashed").all():
        raise typer.Exit(1)


def write_difference(
    difference: "Difference", *, output: str, as_json: bool, csv: str | None, all_units: bool
) -> None:
    """Write a difference, and the table of its units if an option names it."""
    from reludiag import reports

    _write(
        output,
        [(csv, lambda to: reports.write_csv(reports.changed_units(difference, all_units), to))],
        document=(lambda: reports.difference_document(difference, all_units)) if as_json else None,
        text=lambda encoding: reports.difference_text(difference, encoding),
        show=lambda console: reports.print_difference(difference, console),
    )


def _write(
    output: str,
    files: Sequence[File],
    *,
    document: Callable[[], str] | None,
    text: Callable[[str], str],
    show: Callable[["Console"], None],
) -> None:
    """Write the files, then the report: as `document` if there is one, in colour on a terminal.

    If a file goes to stdout, nothing else is written there.
    """
    from rich.console import Console

    from reludiag import reports

    for target, write in files:
        if target is not None:
            write(target)
            say_written(target)
    if output == STDOUT and any(target == STDOUT for target, _ in files):
        return
    if document is None and output == STDOUT and (console := Console()).is_terminal:
        show(console)
        return
    reports.write(output, text if document is None else document())
    say_written(output)


def say_written(target: str) -> None:
    """Say on stderr that a file was written."""
    from reludiag.printable import printable

    if target != STDOUT:
        typer.echo(printable(f"wrote {target}"), err=True)

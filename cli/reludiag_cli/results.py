"""Results: writes the result of a command to its output files and to the terminal."""

import functools
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
    from reludiag.measure.unjudged import Unjudged
    from reludiag_cli.report_options import ReportRequest

STDOUT = "-"
NOT_JUDGED = 3
"""The exit code where nothing exceeds a limit, but something under one was not judged."""
LISTED_LIMITS = 5  # exceeded limits that a gate names one by one

File = tuple[str | None, Callable[[str], None]]
"""The target that an option names, or None; and the function that writes there."""


def check_outputs(output: str, as_json: bool, *files: str | None) -> None:
    """Raise before a long pass, not after it, if a file cannot be written."""
    from reludiag.errors import UsageError
    from reludiag.reports.output import check_writable

    for target in (output, *files):
        if target is not None:
            check_writable(target)
    if files.count(STDOUT) > 1 or (as_json and output == STDOUT and STDOUT in files):
        raise UsageError("only one of --json and the output files can go to stdout")


def check_report(request: "ReportRequest") -> None:
    """The same for a report on a run."""
    from reludiag.reports.run.formats import format_of

    for name, target in request.files.items():
        format_of(target, name).check(target)
    check_outputs(request.output, request.as_json, *request.files.values())


def write_report(diagnosis: "Diagnosis", gate: "Gate", request: "ReportRequest") -> None:
    """Write every report that an option names; exit 1 or 3 if the gate fails."""
    from reludiag.diagnosis.gate import exceeded, not_judged
    from reludiag.printable import printable
    from reludiag.reports.output import append
    from reludiag.reports.run.formats import ReportOptions, format_of
    from reludiag.reports.run.markdown import markdown
    from reludiag.reports.run.terminal import print_report

    checks = gate.judge(diagnosis.sites, diagnosis.unjudged)
    choices = ReportOptions(request.all_units, request.all_sites, checks)
    if request.github_summary and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
        append(summary, markdown(diagnosis, checks))

    def write(name: str, target: str) -> None:
        format_of(target, name).write(diagnosis, target, choices)

    _write(
        request.output,
        [(target, functools.partial(write, name)) for name, target in request.files.items()],
        report=functools.partial(write, "json" if request.as_json else "text"),
        show=None
        if request.as_json
        else lambda console: print_report(diagnosis, console, request.all_sites),
    )
    gate.require_matches(diagnosis.sites, diagnosis.unjudged)
    failed = exceeded(checks)
    for check in failed[:LISTED_LIMITS]:
        typer.echo(printable(f"--fail-over: {check.sentence}"), err=True)
    if len(failed) > LISTED_LIMITS:
        typer.echo(f"--fail-over: {len(failed) - LISTED_LIMITS:,} more sites", err=True)
    unknown = not_judged(checks)
    say_not_judged("--fail-over", unknown)
    if failed:
        raise typer.Exit(1)
    if unknown:
        raise typer.Exit(NOT_JUDGED)


def say_not_judged(option: str, places: "Sequence[Unjudged]") -> None:
    """Say on stderr what a gate could not judge, and how to let it pass."""
    from reludiag.diagnosis.gate import TO_ALLOW
    from reludiag.measure.unjudged import sentences
    from reludiag.printable import printable

    for sentence in [*sentences(places), TO_ALLOW] if places else []:
        typer.echo(printable(f"{option}: {sentence}"), err=True)


def write_effects(
    effects: "Effects", *, output: str, as_json: bool, csv: str | None, html: str | None
) -> None:
    """Write the comparison of several runs, and their table if an option names it."""
    from reludiag.reports.output import write
    from reludiag.reports.sweep.terminal import effects_text, print_effects

    _write(
        output,
        [(csv, effects.to_csv), (html, effects.to_html)],
        report=effects.to_json
        if as_json
        else lambda to: write(to, lambda encoding: effects_text(effects, encoding)),
        show=None if as_json else lambda console: print_effects(effects, console),
    )


def write_replay(replay: "Replay", *, output: str, as_json: bool, csv: str | None) -> None:
    """Write the answer of a replay, and the table of its runs if an option names it."""
    from reludiag.reports.csv_file import write_csv
    from reludiag.reports.output import write
    from reludiag.reports.replay_report import print_replay, replay_text

    _write(
        output,
        [(csv, lambda to: write_csv(replay.trials, to))],
        report=replay.to_json
        if as_json
        else lambda to: write(to, lambda encoding: replay_text(replay, encoding)),
        show=None if as_json else lambda console: print_replay(replay, console),
    )


def fail_if_all_crashed(trials: "pd.DataFrame") -> None:
    """Exit 1 if every run crashed: there is no result then."""
    if len(trials) and (trials["status"] == "crashed").all():
        raise typer.Exit(1)


def write_difference(
    difference: "Difference", *, output: str, as_json: bool, csv: str | None, all_units: bool
) -> None:
    """Write a difference, and the table of its units if an option names it."""
    from reludiag.reports.difference_report import difference_text, print_difference
    from reludiag.reports.output import write

    _write(
        output,
        [(csv, lambda to: difference.to_csv(to, all_units))],
        report=(lambda to: difference.to_json(to, all_units))
        if as_json
        else lambda to: write(to, lambda encoding: difference_text(difference, encoding)),
        show=None if as_json else lambda console: print_difference(difference, console),
    )


def _write(
    output: str,
    files: Sequence[File],
    *,
    report: Callable[[str], None],
    show: Callable[["Console"], None] | None,
) -> None:
    """Write the files, then the report; in colour on a terminal, where `show` does that.

    If a file goes to stdout, nothing else is written there.
    """
    from rich.console import Console

    for target, write in files:
        if target is not None:
            write(target)
            say_written(target)
    if output == STDOUT and any(target == STDOUT for target, _ in files):
        return
    if show is not None and output == STDOUT and (console := Console()).is_terminal:
        show(console)
        return
    report(output)
    say_written(output)


def say_written(target: str) -> None:
    """Say on stderr that a file was written."""
    from reludiag.printable import printable

    if target != STDOUT:
        typer.echo(printable(f"wrote {target}"), err=True)

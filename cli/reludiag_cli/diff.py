"""`reludiag diff`: which units died and which came back between two recordings or reports."""

from typing import Annotated

import typer

from reludiag_cli import options, results


def diff(
    before: Annotated[
        str,
        typer.Argument(metavar="A", help="A recording, or a JSON report of a scan or a recording."),
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="A later one, of the same model.")],
    csv: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="Write the units that changed; - is stdout."),
    ] = None,
    all_units: Annotated[
        bool,
        typer.Option(
            "--all", help="Write every unit to the CSV and the JSON, not only those that changed."
        ),
    ] = False,
    as_json: options.AsJson = False,
    output: options.Output = "-",
    fail_on_new_deaths: Annotated[
        bool,
        typer.Option(
            "--fail-on-new-deaths",
            help="Exit 1 if a unit died or is no longer finite, 3 if B has sites that were not "
            "judged.",
        ),
    ] = False,
    allow_unobserved: Annotated[
        bool,
        typer.Option(
            "--allow-unobserved",
            help="Let --fail-on-new-deaths pass although something in B was not judged.",
        ),
    ] = False,
) -> None:
    """Show which units died and which came back from A to B.

    \b
    reludiag diff last_week.json today.json --fail-on-new-deaths
    """
    from reludiag.diagnosis.difference import diff as compare_two

    results.check_outputs(output, as_json, csv)
    difference = compare_two(before, after)
    results.write_difference(
        difference, output=output, as_json=as_json, csv=csv, all_units=all_units
    )
    if fail_on_new_deaths:
        if difference.new_deaths:
            typer.echo(f"new deaths: {difference.new_deaths:,}", err=True)
        unknown = () if allow_unobserved else difference.unjudged
        results.say_not_judged("--fail-on-new-deaths", unknown)
        if difference.new_deaths or unknown:
            raise typer.Exit(1 if difference.new_deaths else results.NOT_JUDGED)

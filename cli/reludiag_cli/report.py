"""`reludiag report`: the reports of a recording."""

from typing import Annotated

import typer

from reludiag_cli import options, results


def report(
    recording: Annotated[
        str,
        typer.Argument(
            metavar="RECORDING", help="The file that a Monitor wrote, or is still writing."
        ),
    ],
    rare: options.Rare = options.RARE,
    dormant: options.Dormant = options.DORMANT,
    csv: options.Csv = None,
    parquet: options.Parquet = None,
    all_units: options.AllUnits = False,
    as_json: options.AsJson = False,
    output: options.Output = "-",
    svg: options.Svg = None,
    html: options.Html = None,
    junit: options.Junit = None,
    markdown: options.Markdown = None,
    github_summary: options.GithubSummary = False,
    all_sites: options.AllSites = False,
    fail_over: options.FailOver = None,
) -> None:
    """Report on a training run from its recording."""
    from reludiag.diagnosis.from_recording import load
    from reludiag.diagnosis.gate import Gate
    from reludiag.measure.verdicts import Thresholds

    gate = Gate.parse(fail_over or [])
    results.check_outputs(output, as_json, csv, svg, html, junit, markdown, parquet=parquet)
    results.write_reports(
        load(recording, Thresholds(rare, dormant)),
        gate,
        output=output,
        as_json=as_json,
        csv=csv,
        parquet=parquet,
        svg=svg,
        html=html,
        junit=junit,
        markdown=markdown,
        github_summary=github_summary,
        all_units=all_units,
        all_sites=all_sites,
    )

"""`reludiag report`: the reports of a recording."""

from typing import Annotated

import typer

from reludiag_cli import options


def report(
    recording: Annotated[
        str, typer.Argument(metavar="RECORDING", help="The file that a Monitor wrote.")
    ],
    rare: options.Rare = options.RARE,
    dormant: options.Dormant = options.DORMANT,
    csv: options.Csv = None,
    all_units: options.AllUnits = False,
    as_json: options.AsJson = False,
    output: options.Output = "-",
    svg: options.Svg = None,
    html: options.Html = None,
    all_sites: options.AllSites = False,
    fail_over: options.FailOver = None,
) -> None:
    """Report on a training run from its recording, also while it is being written."""
    from reludiag.diagnosis import Limit
    from reludiag.history import load
    from reludiag.verdicts import Thresholds

    if fail_over is not None:
        Limit.parse(fail_over)
    options.check_outputs(output, as_json, csv, svg, html)
    options.write_reports(
        load(recording, Thresholds(rare, dormant)),
        output=output,
        as_json=as_json,
        csv=csv,
        svg=svg,
        html=html,
        all_units=all_units,
        all_sites=all_sites,
        fail_over=fail_over,
    )

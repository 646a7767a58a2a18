"""`reludiag report`: the reports of a recording."""

from typing import Annotated

import typer

from reludiag_cli import options, results
from reludiag_cli.report_options import ReportRequest, with_report_options


@with_report_options
def report(
    recording: Annotated[
        str,
        typer.Argument(
            metavar="RECORDING", help="The file that a Monitor wrote, or is still writing."
        ),
    ],
    rare: options.Rare = options.RARE,
    dormant: options.Dormant = options.DORMANT,
    *,
    request: ReportRequest,
) -> None:
    """Report on a training run from its recording."""
    from reludiag.diagnosis.from_recording import load
    from reludiag.diagnosis.gate import Gate
    from reludiag.measure.verdicts import Thresholds

    gate = Gate.parse(request.fail_over, request.allow_unobserved)
    results.check_report(request)
    results.write_report(load(recording, Thresholds(rare, dormant)), gate, request)

"""`reludiag compare`: what recordings of several runs say together."""

from typing import Annotated

import typer

from reludiag_cli import options, results


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Files that Monitors wrote, one a run.")
    ],
    safe: options.SafeNew = options.SAFE_NEW,
    csv: options.Trials = None,
    html: options.SweepHtml = None,
    as_json: options.AsJson = False,
    output: options.Output = "-",
) -> None:
    """Say from several recordings what rate and initialization did.

    \b
    reludiag compare runs/*.reludiag --html runs.html
    """
    from reludiag.experiments.analysis.effects import effects
    from reludiag.experiments.compare import compare as put_together

    results.check_outputs(output, as_json, csv, html)
    found = effects(put_together(runs), safe_new=safe)
    results.write_effects(found, output=output, as_json=as_json, csv=csv, html=html)

"""`reludiag compare`: the recordings of several runs, compared."""

from typing import Annotated

import typer

from reludiag_cli import options, results


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Recordings, one per run.")],
    safe: options.SafeNew = options.SAFE_NEW,
    csv: options.Trials = None,
    html: options.SweepHtml = None,
    as_json: options.AsJson = False,
    output: options.Output = "-",
) -> None:
    """Compare runs: how learning rate and initialization affect deaths.

    \b
    reludiag compare runs/*.reludiag --html runs.html
    """
    from reludiag.experiments.analysis.effects import effects
    from reludiag.experiments.compare import compare as compare_runs

    results.check_outputs(output, as_json, csv, html)
    comparison = effects(compare_runs(runs), safe_new=safe)
    results.write_effects(comparison, output=output, as_json=as_json, csv=csv, html=html)

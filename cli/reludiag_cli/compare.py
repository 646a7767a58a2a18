"""`reludiag compare`: what recordings of several runs say together."""

from typing import Annotated

import typer

from reludiag_cli import options


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Files that Monitors wrote, one a run.")
    ],
    safe: options.SafeNew = options.SAFE_NEW,
    csv: options.Trials = None,
    as_json: options.AsJson = False,
    output: options.Output = "-",
) -> None:
    """Tell, from recordings of several runs, what learning rate and initialization did."""
    from reludiag.experiments.compare import compare as put_together
    from reludiag.experiments.effects import effects

    options.check_outputs(output, as_json, csv)
    found = effects(put_together(runs), safe_new=safe)
    options.write_effects(found, output=output, as_json=as_json, csv=csv)

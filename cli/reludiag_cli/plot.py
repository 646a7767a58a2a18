"""`reludiag plot`: a figure for a paper or a slide."""

from enum import StrEnum
from typing import Annotated

import typer


class Kind(StrEnum):
    """What a figure shows."""

    LIFELINES = "lifelines"
    SITES = "sites"
    RATES = "rates"
    SWEEP = "sweep"


def plot(
    recordings: Annotated[
        list[str],
        typer.Argument(metavar="RECORDING", help="A recording; for a sweep, one per run."),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A file name that ends in .svg, .pdf or .png."
        ),
    ],
    kind: Annotated[
        Kind,
        typer.Option(
            metavar="KIND",
            help="lifelines: each unit over the steps; sites: units by verdict; rates: how often "
            "units fire; sweep: deaths by learning rate and initialization.",
        ),
    ] = Kind.LIFELINES,
) -> None:
    """Draw a figure of a recording, or of the runs of a sweep.

    \b
    reludiag plot run.reludiag --kind lifelines -o lifelines.svg
    """
    from reludiag.errors import UsageError
    from reludiag.reports.figure_style import check_figure_path, write_figure
    from reludiag.reports.output import check_writable
    from reludiag_cli.results import say_written

    check_figure_path(output)
    check_writable(output)
    if kind is Kind.SWEEP:
        from reludiag.experiments.analysis.effects import effects
        from reludiag.experiments.compare import compare

        write_figure(effects(compare(recordings)).figure(), output)
        say_written(output)
        return
    if len(recordings) > 1:
        raise UsageError(
            f"{len(recordings)} recordings were given; expected one, or --kind sweep for several"
        )
    from reludiag.diagnosis.from_recording import load

    write_figure(load(recordings[0]).figure(kind), output)
    say_written(output)

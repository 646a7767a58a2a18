"""`reludiag sweep`: one training over a grid of learning rates and initializations."""

from typing import Annotated

import typer

from reludiag_cli import options, results


def sweep(
    train: options.Train,
    lr: Annotated[
        str | None,
        typer.Option(metavar="1e-4,1e-3", help="Learning rates. By default TRAIN's own."),
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="A,B", help=f"Initializations: {options.INIT_HELP}")
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Runs of each, with seeds 0 to N-1.")
    ] = 3,
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Folder for the trials; an unfinished sweep there continues."
        ),
    ] = "sweep",
    workers: options.Workers = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run only the I-th of N parts of the grid.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Optuna storage (or journal file) shared by several machines."
        ),
    ] = None,
    safe: options.SafeNew = options.SAFE_NEW,
    csv: options.Trials = None,
    html: options.SweepHtml = None,
    as_json: options.AsJson = False,
    output: options.Output = "-",
) -> None:
    """Run TRAIN over a grid of learning rates and initializations.

    It reports how each of the two affects deaths, and which learning rates are safe.

    \b
    reludiag sweep sample_models/digits.py:train \\
        --lr 1e-3,1e-2,1e-1 --init default,kaiming
    """
    from reludiag.experiments.sweep import sweep as run_sweep
    from reludiag_cli.progress import trial_progress

    results.check_outputs(output, as_json, csv, html)
    rates = options.numbers("--lr", lr)
    with trial_progress() as progress:
        trials = run_sweep(
            train,
            lr=rates,
            init=None if init is None else [name.strip() for name in init.split(",")],
            seeds=seeds,
            path=out,
            workers=workers,
            shard=shard,
            storage=storage,
            progress=progress,
        )
    from reludiag.experiments.analysis.effects import (
        effects,  # after the runs, as it is slow to import
    )

    summary = effects(trials, safe_new=safe)
    results.write_effects(summary, output=output, as_json=as_json, csv=csv, html=html)
    results.fail_if_all_crashed(trials)

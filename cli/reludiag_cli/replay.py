"""`reludiag replay`: rerun a training with one thing changed, to find out why units died."""

from typing import Annotated

import typer

from reludiag_cli import options, results


def replay(
    train: options.Train,
    lr_scale: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            help="Multiply TRAIN's learning rate by this. Without --lr-scale and --init: 0.1.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME",
            help=f"The changed initialization: {options.INIT_HELP} Without --lr-scale and --init: "
            "kaiming.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Runs of each kind, with seeds 0 to N-1.")
    ] = 3,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder in which trials and recordings are kept."),
    ] = None,
    workers: options.Workers = None,
    csv: options.Trials = None,
    as_json: options.AsJson = False,
    output: options.Output = "-",
) -> None:
    """Find out why units died: rerun TRAIN with one thing changed.

    It runs TRAIN unchanged, with the other learning rate, with the other initialization, and
    with both, always with the same seeds. With only one of the two options, only that is changed.

    \b
    reludiag replay sample_models/digits.py:train --lr-scale 0.1 --init kaiming
    """
    from reludiag.experiments.replay import replay as run_replay
    from reludiag_cli.progress import trial_progress

    results.check_outputs(output, as_json, csv)
    with trial_progress() as progress:
        answer = run_replay(
            train,
            lr_scale=lr_scale,
            init=init,
            seeds=seeds,
            path=out,
            workers=workers,
            progress=progress,
        )
    results.write_replay(answer, output=output, as_json=as_json, csv=csv)
    results.fail_if_all_crashed(answer.trials)

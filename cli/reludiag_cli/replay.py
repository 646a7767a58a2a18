"""`reludiag replay`: the same training made otherwise, to find out why its units died."""

from typing import Annotated

import typer

from reludiag_cli import options, results


def replay(
    train: options.Train,
    lr_scale: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            help="The other learning rate is this times TRAIN's. If --init is not given either: "
            "0.1.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME",
            help=f"The other one: {options.INIT_HELP} If --lr-scale is not given either: kaiming.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Runs of each kind, with seeds from 0.")
    ] = 3,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Keep trials and recordings there.")
    ] = None,
    workers: options.Workers = None,
    csv: options.Trials = None,
    as_json: options.AsJson = False,
    output: options.Output = "-",
) -> None:
    """Find out why units died, by running TRAIN otherwise.

    One thing at a time is changed, then both, with the same seeds.
    Only what is given is changed; without --lr-scale and --init, both are.

    \b
    reludiag replay sample_models/digits.py:train --lr-scale 0.1 --init kaiming
    """
    from reludiag.experiments.replay import replay as run_replay
    from reludiag_cli.progress import trial_progress

    results.check_outputs(output, as_json, csv)
    with trial_progress() as progress:
        found = run_replay(
            train,
            lr_scale=lr_scale,
            init=init,
            seeds=seeds,
            path=out,
            workers=workers,
            progress=progress,
        )
    results.write_replay(found, output=output, as_json=as_json, csv=csv)
    results.fail_if_all_crashed(found.trials)

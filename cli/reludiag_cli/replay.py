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
            help="Multiply TRAIN's learning rate by this.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME",
            help=f"The changed initialization: {options.INIT_HELP}",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of the optimizer, such as weight_decay=0 or betas=[0.5,0.9], or "
            "a value that TRAIN asks for by trial.value(NAME, default). Repeatable.",
        ),
    ] = None,
    center_input: Annotated[
        bool,
        typer.Option(
            "--center-input", help="Subtract the mean of the probe from the model's input."
        ),
    ] = False,
    equal_travel: Annotated[
        bool,
        typer.Option(
            "--equal-travel",
            help="Also try the changed rate with as many more steps, if TRAIN uses trial.steps(n).",
        ),
    ] = False,
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

    It runs TRAIN unchanged, with each of the changes alone, and with all of them, always with the
    same seeds. Without any, TRAIN runs once, and what its own report suspects is changed.

    \b
    reludiag replay sample_models/digits.py:train --lr-scale 0.1 --init kaiming
    reludiag replay sample_models/digits.py:train --set weight_decay=0
    """
    from reludiag.experiments.replay import replay as run_replay
    from reludiag.loading import parse_arguments
    from reludiag_cli.progress import trial_progress

    results.check_outputs(output, as_json, csv)
    with trial_progress() as progress:
        answer = run_replay(
            train,
            lr_scale=lr_scale,
            init=init,
            settings=parse_arguments(set_ or [], "--set"),
            center_input=center_input,
            equal_travel=equal_travel,
            seeds=seeds,
            path=out,
            workers=workers,
            progress=progress,
        )
    results.write_replay(answer, output=output, as_json=as_json, csv=csv)
    results.fail_if_all_crashed(answer.trials)

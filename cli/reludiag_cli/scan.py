"""`reludiag scan`: the dead units of a checkpoint, from one pass over data."""

from typing import Annotated

import typer

from reludiag_cli import options, results
from reludiag_cli.report_options import ReportRequest, with_report_options


@with_report_options
def scan(
    model: options.Model,
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Weights, read as data: no code in them is run. Several give a timeline; "
            "without one, the model is scanned as built.",
        ),
    ] = None,
    data: options.Data = None,
    data_arg: options.DataArg = None,
    input_shape: options.InputShape = None,
    batch_size: options.BatchSize = 64,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Use at most N batches.")
    ] = None,
    unit_axis: options.UnitAxis = None,
    watch: options.Watch = None,
    merge_calls: options.MergeCalls = True,
    group_by: options.GroupBy = None,
    samples: options.Samples = "rows",
    model_arg: options.ModelArg = None,
    ema: Annotated[bool, typer.Option("--ema", help="Use the averaged (EMA) weights.")] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict/--no-strict",
            help="Whether the checkpoint must hold exactly the weights of the model.",
        ),
    ] = True,
    train_mode: Annotated[
        bool,
        typer.Option(
            "--train-mode", help="Run in training mode, with batch statistics and dropout."
        ),
    ] = False,
    device: options.Device = None,
    dtype: options.DType = None,
    rare: options.Rare = options.RARE,
    dormant: options.Dormant = options.DORMANT,
    *,
    request: ReportRequest,
) -> None:
    """Find the dead units of a checkpoint.

    \b
    reludiag scan sample_models/digits.py:build digits.pt \\
        --data sample_models/digits.py:batches
    """
    from reludiag.diagnosis.gate import Gate
    from reludiag.errors import UsageError
    from reludiag.loading import read_checkpoint
    from reludiag.measure.verdicts import Thresholds
    from reludiag.scanning import scan as scan_model
    from reludiag.scanning import scan_checkpoints
    from reludiag_cli.progress import batch_progress

    gate = Gate.parse(request.fail_over, request.allow_unobserved)
    results.check_report(request)
    axes, watched = options.unit_axes(unit_axis), options.watched(watch)
    network = options.build_model(model, model_arg, device, dtype)
    batches, notes = options.build_batches(data, data_arg, input_shape, batch_size)
    if batches is None:
        raise UsageError(
            "no data was given; expected --data SPEC, or --input-shape 3,224,224 to scan with noise"
        )
    loaded = [read_checkpoint(path, ema) for path in checkpoints or []]
    cast, thresholds = options.input_dtype(dtype), Thresholds(rare, dormant)
    with batch_progress() as progress:
        if loaded:
            diagnosis = scan_checkpoints(
                network,
                loaded,
                batches,
                strict=strict,
                notes=notes,
                thresholds=thresholds,
                train_mode=train_mode,
                limit=limit,
                dtype=cast,
                unit_axes=axes,
                merge_calls=merge_calls,
                watch=watched,
                groups=group_by,
                samples=samples,
                progress=progress,
            )
        else:
            diagnosis = scan_model(
                network,
                batches(),
                notes=[*notes, "No checkpoint was given: these are the weights as built."],
                thresholds=thresholds,
                train_mode=train_mode,
                limit=limit,
                dtype=cast,
                unit_axes=axes,
                merge_calls=merge_calls,
                watch=watched,
                groups=group_by,
                samples=samples,
                progress=progress,
            )
    results.write_report(diagnosis, gate, request)

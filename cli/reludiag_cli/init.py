"""`reludiag init`: how an untrained model was initialized, and which units are born dead."""

from typing import Annotated

import typer

from reludiag_cli import options


def init(
    model: options.Model,
    data: options.Data = None,
    data_arg: options.DataArg = None,
    input_shape: options.InputShape = None,
    batch_size: options.BatchSize = 64,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Use at most N batches.")] = 32,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Models drawn from each other scheme.")
    ] = 3,
    model_arg: options.ModelArg = None,
    device: options.Device = None,
    dtype: options.DType = None,
    as_json: options.AsJson = False,
) -> None:
    """Show how an untrained model was initialized, and its faults.

    With data, also how many units are born dead, and how many would be with other schemes.
    """
    from rich.console import Console

    from reludiag.initialization.examination import examine_initialization
    from reludiag.reports.init_report import init_document, print_init
    from reludiag_cli.progress import batch_progress

    network = options.build_model(model, model_arg, device, dtype)
    batches, notes = options.build_batches(data, data_arg, input_shape, batch_size)
    with batch_progress() as progress:
        examination = examine_initialization(
            network,
            None if batches is None else batches(),
            limit=limit,
            seeds=seeds,
            dtype=options.input_dtype(dtype),
            notes=notes,
            progress=progress,
        )
    if as_json:
        print(init_document(examination), end="")
    else:
        print_init(examination, Console())

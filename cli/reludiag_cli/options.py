"""Options that several commands share, and what is done with them."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # importing these loads torch; --help must not
    import torch
    from torch import nn

    from reludiag.diagnosis import Diagnosis
    from reludiag.experiments.effects import Effects
    from reludiag.experiments.replay import Replay

Train = Annotated[
    str,
    typer.Argument(
        metavar="TRAIN",
        help="package.module:function or path/file.py:function, which takes a trial and trains. "
        "This is code, and it is run.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; as many as there are cores.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:attribute or path/file.py:attribute, a model or what makes one, or a "
        "torch.export program, file.pt2. This is code, and it is run.",
    ),
]
ModelArg = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="KEY=VALUE", help="Argument of MODEL; a JSON value."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="Batches: a spec like MODEL's, or a .npy, .npz, .pt or .safetensors file of inputs.",
    ),
]
DataArg = Annotated[
    list[str] | None,
    typer.Option("--data-arg", metavar="KEY=VALUE", help="Argument of the data; a JSON value."),
]
InputShape = Annotated[
    str | None,
    typer.Option(metavar="3,224,224", help="Seeded noise of this shape instead of data."),
]
UnitAxis = Annotated[
    list[str] | None,
    typer.Option(
        "--unit-axis", metavar="SITE=AXIS", help="Axis of a site's units, if not the one found."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="For a file of inputs, and for noise.")]
Device = Annotated[str | None, typer.Option(help="Where the model runs, such as cuda.")]
DType = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16, float64.")]
Csv = Annotated[
    str | None, typer.Option("--csv", metavar="FILE", help="Units that are not alive; - is stdout.")
]
AllUnits = Annotated[bool, typer.Option("--all", help="Every unit in the CSV and the JSON.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of the table.")]
Output = Annotated[
    str,
    typer.Option("--output", "-o", metavar="FILE", help="Where the report goes; - is stdout."),
]
Svg = Annotated[str | None, typer.Option("--svg", metavar="FILE", help="The table as a picture.")]
Html = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="The whole report as one page, with its charts."),
]
AllSites = Annotated[bool, typer.Option("--all-sites", help="List each site, however many.")]
FailOver = Annotated[
    str | None,
    typer.Option(metavar="5%|N", help="Exit 1 if more units than that are dead (or not finite)."),
]
Rare = Annotated[
    float, typer.Option("--rare", min=0, max=1, help="Rare: fired in a smaller share of samples.")
]
Dormant = Annotated[
    float, typer.Option("--dormant", min=0, help="Dormant: a tau-score of at most this.")
]
Trials = Annotated[
    str | None, typer.Option("--csv", metavar="FILE", help="The table of runs; - is stdout.")
]
SafeNew = Annotated[
    float,
    typer.Option("--safe", min=0, max=1, help="Safe: at most this share of new deaths in a run."),
]

INIT_HELP = (
    "default (as built), pytorch, kaiming, xavier, lecun, orthogonal, normal, ... (see init)."
)

DTYPES = ("float32", "bfloat16", "float16", "float64")
RARE, DORMANT = 0.001, 0.025
SAFE_NEW = 0.05


def build_model(
    spec: str, arguments: list[str] | None, device: str | None, dtype: str | None
) -> "nn.Module":
    """The model, on the device and of the dtype that were asked for."""
    import torch

    from reludiag.errors import UsageError
    from reludiag.loading import load_model, parse_arguments

    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} was given; expected one of {', '.join(DTYPES)}")
    model = load_model(spec, parse_arguments(arguments or [], "--model-arg"))
    try:
        return model.to(device=device, dtype=getattr(torch, dtype) if dtype else None)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {device} cannot be used: {reason}") from error


def input_dtype(model: "nn.Module") -> "torch.dtype | None":
    """What floating-point inputs are cast to: the dtype of the model's weights."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def build_batches(
    data: str | None, arguments: list[str] | None, input_shape: str | None, batch_size: int
) -> tuple[Callable[[], Iterable[Any]] | None, list[str]]:
    """What gives the batches, None if neither data nor a shape was given; and notes on them."""
    from reludiag.errors import UsageError
    from reludiag.loading import load_batches, noise_batches, parse_arguments
    from reludiag.scanning import RANDOM_INPUT

    if data is not None and input_shape is not None:
        raise UsageError("--data and --input-shape were both given; expected one of them")
    if data is not None:
        return load_batches(data, parse_arguments(arguments or [], "--data-arg"), batch_size), []
    if input_shape is None:
        return None, []
    try:
        shape = tuple(int(length) for length in input_shape.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(
            f"--input-shape {input_shape!r} was given; expected the shape of one sample, such "
            "as 3,224,224"
        )
    return noise_batches(shape, batch_size), [RANDOM_INPUT]


def unit_axes(given: list[str] | None) -> dict[str, int]:
    """Site -> axis, from SITE=AXIS."""
    from reludiag.errors import UsageError

    axes = {}
    for item in given or []:
        site, _, axis = item.rpartition("=")
        if not site or not axis.removeprefix("-").isdecimal():
            raise UsageError(f"--unit-axis {item!r} was given; expected SITE=AXIS, such as relu=1")
        axes[site] = int(axis)
    return axes


def check_outputs(
    output: str, as_json: bool, csv: str | None, svg: str | None = None, html: str | None = None
) -> None:
    """Raise now rather than after a long pass."""
    from reludiag.errors import UsageError
    from reludiag.reports import check_writable

    files = (csv, svg, html)
    for target in (output, *files):
        if target is not None:
            check_writable(target)
    if files.count("-") > 1 or (as_json and output == "-" and "-" in files):
        raise UsageError(
            "only one of --csv -, --svg -, --html - and --json can go to the standard output"
        )


def write_reports(
    diagnosis: "Diagnosis",
    *,
    output: str,
    as_json: bool,
    csv: str | None,
    svg: str | None,
    html: str | None,
    all_units: bool,
    all_sites: bool,
    fail_over: str | None,
) -> None:
    """Write all that was asked for; exit 1 if more is dead than allowed."""
    from rich.console import Console

    from reludiag import reports
    from reludiag.diagnosis import Limit

    if csv is not None:
        reports.write_csv(diagnosis, csv, all_units)
    if svg is not None:
        reports.write_svg(diagnosis, svg, all_sites)
    if html is not None:
        reports.write_html(diagnosis, html)
    if "-" in (csv, svg, html) and output == "-":
        pass  # the standard output is taken: nothing else may stand in it
    elif as_json:
        reports.write_json(diagnosis, output, all_units)
    elif output == "-" and (console := Console()).is_terminal:
        reports.print_report(diagnosis, console, all_sites)
    else:
        reports.write_text(diagnosis, output, all_sites)
    if fail_over is not None and Limit.parse(fail_over).exceeded_by(diagnosis):
        typer.echo(f"{diagnosis.dead} units are dead: more than --fail-over {fail_over}", err=True)
        raise typer.Exit(1)


def write_effects(effects: "Effects", *, output: str, as_json: bool, csv: str | None) -> None:
    """Write what several runs say together, and their table, where each was asked for."""
    from rich.console import Console

    from reludiag import reports

    if csv is not None:
        reports.write_trials(effects.trials, csv)
    if csv == "-" and output == "-":
        pass  # the standard output is taken: nothing else may stand in it
    elif as_json:
        reports.write_effects_json(effects, output)
    elif output == "-" and (console := Console()).is_terminal:
        reports.print_effects(effects, console)
    else:
        reports.write_effects_text(effects, output)


def write_replay(replay: "Replay", *, output: str, as_json: bool, csv: str | None) -> None:
    """Write the answer of a replay, and the table of its runs, where each was asked for."""
    from rich.console import Console

    from reludiag import reports

    if csv is not None:
        reports.write_trials(replay.trials, csv)
    if csv == "-" and output == "-":
        pass  # the standard output is taken: nothing else may stand in it
    elif as_json:
        reports.write_replay_json(replay, output)
    elif output == "-" and (console := Console()).is_terminal:
        reports.print_replay(replay, console)
    else:
        reports.write_replay_text(replay, output)


def numbers(option: str, text: str | None) -> list[float] | None:
    """Numbers with commas between them."""
    from reludiag.errors import UsageError

    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} {text!r} was given; expected numbers with commas between them, such as "
            f"{option} 1e-4,1e-3,1e-2"
        ) from None

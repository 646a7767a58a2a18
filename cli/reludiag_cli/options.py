"""Options that several commands share, and what is made of them."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # importing these loads torch; --help must not
    import torch
    from torch import nn

Train = Annotated[
    str,
    typer.Argument(
        metavar="TRAIN",
        help="package.module:function or path/file.py:function, which takes a trial and trains. "
        "This is code, and it is run.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Processes; without it, as many as there are cores."),
]
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
    typer.Option(
        "--model-arg", metavar="KEY=VALUE", help="Argument of MODEL, a JSON value. Repeatable."
    ),
]


def _unless_noise(context: typer.Context, data: str | None) -> str | None:
    """Data from the settings give way to a shape on the command line."""
    source = context.get_parameter_source("data")
    is_setting = source is not None and source.name == "DEFAULT_MAP"
    return None if is_setting and context.params.get("input_shape") is not None else data


Data = Annotated[
    str | None,
    typer.Option(
        callback=_unless_noise,
        metavar="SPEC",
        help="Batches: a spec like MODEL's, or a .npy, .npz, .pt or .safetensors file of inputs.",
    ),
]
DataArg = Annotated[
    list[str] | None,
    typer.Option(
        "--data-arg", metavar="KEY=VALUE", help="Argument of the data, a JSON value. Repeatable."
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="3,224,224", help="Seeded noise of this shape, of one sample, instead of data."
    ),
]
UnitAxis = Annotated[
    list[str] | None,
    typer.Option(
        "--unit-axis",
        metavar="SITE=AXIS",
        help="Axis of a site's units, where the one found is wrong. Repeatable.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(metavar="N", min=1, help="Of batches from a file of inputs, and of noise.")
]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="Where the model runs, such as cuda.")
]
DType = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Of weights and inputs: float32, bfloat16, float16 or float64.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of the table.")]
Output = Annotated[
    str,
    typer.Option("--output", "-o", metavar="FILE", help="Where the report goes; - is stdout."),
]
Rare = Annotated[
    float,
    typer.Option(
        "--rare",
        metavar="SHARE",
        min=0,
        max=1,
        help="Rare is a unit that fired in less than this share of samples.",
    ),
]
Dormant = Annotated[
    float,
    typer.Option(
        "--dormant",
        metavar="SCORE",
        min=0,
        help="Dormant is a unit whose mean activation is at most this much of its site's.",
    ),
]
Trials = Annotated[
    str | None, typer.Option("--csv", metavar="FILE", help="The table of runs; - is stdout.")
]
SweepHtml = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="The report as one page, with its heat maps."),
]
SafeNew = Annotated[
    float,
    typer.Option(
        "--safe",
        metavar="SHARE",
        min=0,
        max=1,
        help="A learning rate is safe if no run has more new deaths than this share.",
    ),
]

INIT_HELP = (
    "default (as built), pytorch, kaiming, xavier, lecun, orthogonal, normal, or a full name "
    "such as kaiming_uniform."
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
    from reludiag.diagnosis.diagnosis import RANDOM_INPUT
    from reludiag.errors import UsageError
    from reludiag.loading import load_batches, noise_batches, parse_arguments

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

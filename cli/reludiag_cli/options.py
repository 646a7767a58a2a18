"""Options that several commands share, and the models and batches made from them."""

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
        help="A function that takes a trial and trains: package.module:function or "
        "path/file.py:function. This code is run.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Number of processes. By default one per core."),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model, or a function that returns one: package.module:attribute or "
        "path/file.py:attribute. This code is run. Or a torch.export program, file.pt2.",
    ),
]
ModelArg = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg", metavar="KEY=VALUE", help="Argument of MODEL, as a JSON value. Repeatable."
    ),
]


def _unless_noise(context: typer.Context, data: str | None) -> str | None:
    """Data; None if they come from the settings and the command line gives a shape."""
    source = context.get_parameter_source("data")
    is_setting = source is not None and source.name == "DEFAULT_MAP"
    return None if is_setting and context.params.get("input_shape") is not None else data


Data = Annotated[
    str | None,
    typer.Option(
        callback=_unless_noise,
        metavar="SPEC",
        help="Batches, written like MODEL, or a .npy, .npz, .pt or .safetensors file of inputs.",
    ),
]
DataArg = Annotated[
    list[str] | None,
    typer.Option(
        "--data-arg", metavar="KEY=VALUE", help="Argument of the data, as a JSON value. Repeatable."
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="3,224,224", help="Use seeded noise instead of data; the shape of one sample."
    ),
]
UnitAxis = Annotated[
    list[str] | None,
    typer.Option(
        "--unit-axis",
        metavar="SITE=AXIS",
        help="Set the unit axis of a site, or its axes (relu=1,3), if reludiag finds wrong ones. "
        "Repeatable.",
    ),
]
Watch = Annotated[
    list[str] | None,
    typer.Option(
        "--watch",
        metavar="NAME=MODULE",
        help="Also watch the output of this module, as a site of this name. Repeatable.",
    ),
]
MergeCalls = Annotated[
    bool,
    typer.Option(
        "--merge-calls/--no-merge-calls",
        help="Whether a rectifier in a loop is one site, and not a site for each turn.",
    ),
]
GroupBy = Annotated[
    str | None,
    typer.Option(
        "--group-by",
        metavar="NAME",
        help="Count rows of one group as one sample, by this key or attribute of a batch.",
    ),
]
Samples = Annotated[
    str,
    typer.Option(
        "--samples",
        metavar="KIND",
        help="rows, or tokens (also: positions) to count each position as a sample.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Size of batches from a file of inputs, and of noise."),
]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="Device that the model runs on, such as cuda.")
]
DType = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Dtype of weights and inputs: float32, bfloat16, float16 or float64.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of the table.")
]
Output = Annotated[
    str,
    typer.Option("--output", "-o", metavar="FILE", help="Write the report here; - is stdout."),
]
Svg = Annotated[
    str | None, typer.Option("--svg", metavar="FILE", help="Write the report as an SVG picture.")
]
Rare = Annotated[
    float,
    typer.Option(
        "--rare",
        metavar="SHARE",
        min=0,
        max=1,
        help="A unit is rare if it fired in less than this share of samples.",
    ),
]
Dormant = Annotated[
    float,
    typer.Option(
        "--dormant",
        metavar="SCORE",
        min=0,
        help="A unit is dormant if its mean activation is at most this share of its site's mean.",
    ),
]
Trials = Annotated[
    str | None, typer.Option("--csv", metavar="FILE", help="Write the table of runs; - is stdout.")
]
SweepHtml = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="Write the report as one page, with heat maps."),
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
    """The model, on `device` and with `dtype`."""
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


def input_dtype(dtype: str | None) -> "torch.dtype | None":
    """To what floating-point inputs are cast."""
    import torch

    return None if dtype is None else getattr(torch, dtype)


def build_batches(
    data: str | None, arguments: list[str] | None, input_shape: str | None, batch_size: int
) -> tuple[Callable[[], Iterable[Any]] | None, list[str]]:
    """A function that returns the batches (None without data and shape), and notes on them."""
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


def unit_axes(items: list[str] | None) -> dict[str, int | tuple[int, ...]]:
    """Site -> axes, parsed from SITE=AXIS or SITE=AXIS,AXIS."""
    from reludiag.errors import UsageError

    axes: dict[str, int | tuple[int, ...]] = {}
    for item in items or []:
        site, _, numbers = item.rpartition("=")
        parts = numbers.split(",")
        if not site or not all(part.removeprefix("-").isdecimal() for part in parts):
            raise UsageError(
                f"--unit-axis {item!r} was given; expected SITE=AXIS, such as relu=1, or several "
                "axes, such as relu=1,3"
            )
        axes[site] = tuple(map(int, parts))
    return axes


def watched(items: list[str] | None) -> dict[str, str]:
    """Name of a site -> path of a module, parsed from NAME=MODULE."""
    from reludiag.errors import UsageError

    watch: dict[str, str] = {}
    for item in items or []:
        name, _, path = item.partition("=")
        if not name or not path:
            raise UsageError(
                f"--watch {item!r} was given; expected NAME=MODULE, such as latents=encoder.codes"
            )
        watch[name] = path
    return watch


def numbers(option: str, text: str | None) -> list[float] | None:
    """Parse numbers separated by commas."""
    from reludiag.errors import UsageError

    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} {text!r} was given; expected numbers separated by commas, such as "
            f"{option} 1e-4,1e-3,1e-2"
        ) from None

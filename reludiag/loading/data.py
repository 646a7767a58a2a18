"""Data: from a spec or a file to batches."""

import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from reludiag.errors import DataError, UsageError
from reludiag.loading.batch_contents import is_one_batch
from reludiag.loading.specs import call_user_code, load_attribute

FILE_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")
# Names of the array that holds the inputs, in a file with several arrays.
INPUT_NAMES = ("inputs", "input", "x", "X", "images", "input_ids", "data")
_NOISE_SAMPLES = 256


def load_batches(
    spec: str, arguments: dict[str, Any] | None = None, batch_size: int = 64
) -> Callable[[], Iterable[Any]]:
    """A function that returns new batches at each call, from a file of inputs or a data spec.

    Raises DataError or ModelError if that is not possible.
    """
    if spec.endswith(FILE_SUFFIXES):
        if arguments:
            raise UsageError(f"{spec} is a file of inputs, so it takes no --data-arg")
        inputs = _read_inputs(Path(spec))
        return lambda: _split(inputs, batch_size)
    data = load_attribute(spec)
    if callable(data) and not isinstance(data, Iterable):
        return lambda: _checked(call_user_code(data, spec, arguments or {}), spec, batch_size)
    if arguments:
        raise UsageError(f"{spec} is not a function, so it takes no --data-arg")
    return lambda: _checked(data, spec, batch_size)


def noise_batches(
    shape: tuple[int, ...], batch_size: int = 64, samples: int = _NOISE_SAMPLES
) -> Callable[[], Iterable[Tensor]]:
    """Standard normal inputs of `[sample, *shape]`, the same each time: not evidence of death."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((samples, *shape), generator=generator)
    return lambda: _split(inputs, batch_size)


def batches_of(data: Any, batch_size: int = 64) -> Any:
    """`data` itself if it is an iterable of batches; what it returns if it is a function.

    An array of inputs is cut into batches, because its rows are not batches; one of a single axis
    is one sample. A mapping, a dataclass, a graph or any other value with names is one batch. A
    tuple of tensors that differ in dtype or in their number of axes is one too, inputs first.
    """
    if isinstance(data, Tensor | np.ndarray):
        data = torch.as_tensor(data)
        is_cut = data.layout is torch.strided and not data.is_nested
        if not is_cut or not data.ndim or (data.ndim == 1 and data.is_floating_point()):
            return [data]
        return _split(data, batch_size)
    if is_one_batch(data):
        return [data]
    if isinstance(data, tuple) and all(isinstance(item, Tensor) for item in data):
        kinds = {(item.ndim, item.dtype) for item in data}
        return [data] if len(kinds) > 1 else data
    if callable(data) and not isinstance(data, Iterable | type):
        return batches_of(call_user_code(data, "the data", {}), batch_size)
    return data


def _checked(batches: Any, spec: str, batch_size: int) -> Iterable[Any]:
    batches = batches_of(batches, batch_size)
    if isinstance(batches, str | bytes | Mapping) or not isinstance(batches, Iterable):
        raise DataError(
            f"{spec} gives a {type(batches).__name__}; expected an iterable of batches (a "
            "DataLoader, a list), a tensor of inputs, or a function that returns one"
        )
    return batches


def _split(inputs: Tensor, batch_size: int) -> Iterable[Tensor]:
    return [] if len(inputs) == 0 else torch.split(inputs, batch_size)


def _read_inputs(path: Path) -> Tensor:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        elif path.suffix in {".npy", ".npz"}:
            loaded = np.load(path, allow_pickle=False)
            content = dict(loaded) if path.suffix == ".npz" else loaded
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        KeyError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        reason = (str(error) or "it ends too early").splitlines()[0]
        raise DataError(
            f"{path} cannot be read as {path.suffix} ({reason:.120}). "
            "Expected an array of inputs whose first axis is samples"
        ) from error
    if isinstance(content, Mapping):
        name = next((n for n in INPUT_NAMES if n in content), None)
        if name is None and len(content) != 1:
            raise DataError(
                f"{path} holds {', '.join(map(str, content)) or 'nothing'}; expected one array, "
                f"or one named {', '.join(INPUT_NAMES)}"
            )
        content = content[name] if name is not None else next(iter(content.values()))
    if isinstance(content, list | tuple) and content:
        content = content[0]
    try:
        inputs = torch.as_tensor(content)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} does not hold an array of numbers: {error}") from error
    if inputs.ndim == 0:
        raise DataError(f"{path} holds a single number; expected an array of inputs")
    return inputs

"""Data: from a spec or a file to batches, and from a batch to a model's arguments."""

import inspect
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from reludiag.errors import DataError, UsageError
from reludiag.loading.specs import call_user_code, load_attribute

FILE_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")
# Names of the array that holds the inputs, in a file with several arrays.
INPUT_NAMES = ("inputs", "input", "x", "X", "images", "input_ids", "data")
LABEL_NAMES = frozenset({"labels", "label", "targets", "target", "y"})
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


def model_arguments(
    model: nn.Module, batch: Any, device: torch.device, dtype: torch.dtype | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which to call `model` on a batch, labels left out.

    A tensor is the input; of a tuple or list the first element is; a dict is passed as
    keywords, without those that only the loss needs. Floating-point tensors become `dtype`.
    """
    if isinstance(batch, Tensor):  # the common case first: in a scan, each check costs time
        return (_moved(batch, device, dtype),), {}
    if isinstance(batch, list | tuple):
        if not batch:
            raise DataError("a batch is an empty list; expected the inputs as its first element")
        batch = batch[0]
    if isinstance(batch, Mapping):
        accepted = _keywords(model)
        return (), {
            key: _moved(value, device, dtype)
            for key, value in batch.items()
            if key not in LABEL_NAMES and (accepted is None or key in accepted)
        }
    return (_moved(batch, device, dtype),), {}


def input_tensors(values: Any) -> list[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    if not isinstance(values, list | tuple):
        return []
    return [tensor for value in values for tensor in input_tensors(value)]


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        if dtype is not None and not value.is_floating_point():
            dtype = None
        if value.device == device and (dtype is None or value.dtype == dtype):
            return value
        return value.to(device, dtype)
    if isinstance(value, Mapping):
        return {key: _moved(item, device, dtype) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(item, device, dtype) for item in value]
    return value


def _keywords(model: nn.Module) -> set[str] | None:
    """The argument names of the model's forward; None if it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def batches_of(data: Any, batch_size: int = 64) -> Any:
    """`data` itself if it is an iterable of batches.

    An array of inputs is cut into batches, because its rows are not batches. A tuple of tensors
    that differ in dtype or in their number of axes is one batch, inputs first, and not several.
    """
    if isinstance(data, Tensor | np.ndarray):
        return _split(torch.as_tensor(data), batch_size)
    if isinstance(data, tuple) and all(isinstance(item, Tensor) for item in data):
        kinds = {(item.ndim, item.dtype) for item in data}
        return [data] if len(kinds) > 1 else data
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

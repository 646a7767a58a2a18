"""Checkpoints: from a file or folder to a state dict that fits the model.

A checkpoint is data, and no code in it is run: pickles are read with `weights_only=True`, and what
that refuses is refused here.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from reludiag.errors import CheckpointError

StateDict = Mapping[str, Tensor]

# Keys under which training scripts store the weights, in the order in which they are tried.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema")
# Prefixes that wrappers put before a model's keys; stripped only if the result fits the model.
PREFIXES = ("module.", "model.", "net.", "network.")
# Wrappers of submodules leave these anywhere in a key.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_STEP_KEYS = ("global_step", "step", "iteration", "epoch")
_LISTED = 5  # keys shown of each kind of mismatch


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint."""

    path: str
    weights: StateDict
    step: int | None
    """The step (or epoch) at which it was written, if it says so."""


def read_checkpoint(path: str | Path, ema: bool = False) -> Checkpoint:
    """Read the weights in a `.pt`/`.pth`/`.ckpt`/`.safetensors` file or a sharded folder.

    With `ema`, the averaged weights instead of the plain ones. Raises CheckpointError
    if it cannot be read or holds no weights.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        return Checkpoint(str(path), _read_folder(path), None)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): was the disk full when it was written?")
    if path.suffix == ".safetensors" or _looks_like_safetensors(head, size):
        return Checkpoint(str(path), _read_safetensors(path), None)
    content = _read_torch(path)
    return Checkpoint(str(path), _find_weights(content, path, ema), _step(content))


def load_weights(model: nn.Module, checkpoint: Checkpoint, strict: bool = True) -> list[str]:
    """Load the weights into `model`; returns notes for the report (prefixes, tensors left out).

    Raises CheckpointError if keys are missing, unexpected or have wrong shapes. With `strict`
    False, matching tensors are loaded and the others noted; it raises only if nothing matches.
    """
    expected = {
        name: tensor.shape
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    }
    weights, stripped = _fitted(checkpoint.weights, expected)
    tied = _tied(model)
    missing = [
        name
        for name in expected
        if name not in weights
        and not name.endswith("num_batches_tracked")  # absent from files older than the counter
        and not any(other in weights for other in tied.get(name, ()))
    ]
    unexpected = [name for name in weights if name not in expected]
    misshaped = [
        f"{name} {_shape(tensor.shape)} instead of {_shape(expected[name])}"
        for name, tensor in weights.items()
        if name in expected and tensor.shape != expected[name]
    ]
    fitting = {
        name: tensor
        for name, tensor in weights.items()
        if name in expected and tensor.shape == expected[name]
    }
    notes = [f'"{part}" was removed from the keys' for part in stripped]
    problems = [
        _name_list(missing, "the checkpoint lacks {} of the model's tensors: {}"),
        _name_list(unexpected, "the checkpoint has {} that the model lacks: {}"),
        _name_list(misshaped, "{} have a different shape: {}"),
    ]
    problems = [problem for problem in problems if problem]
    if problems and (strict or not fitting):
        also = f" ({notes[0]})" if notes else ""
        advice = "Is it for another architecture, or are --model-arg values missing? " + (
            "--no-strict loads what matches." if fitting else "Nothing in it matches."
        )
        raise CheckpointError("\n".join([f"{checkpoint.path}{also}:", *problems, advice]))
    model.load_state_dict(fitting, strict=False)
    if problems:
        notes.append(
            f"--no-strict: {len(fitting)} of {len(expected)} tensors were loaded; the others "
            "keep the values of the built model"
        )
    return notes


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = _refused_names(path, str(error))
        if names:
            raise CheckpointError(
                f"{path} contains objects that are not plain weights: {', '.join(names)}. "
                "Reading them would run code from the file, so nothing was read. Save only the "
                "weights: torch.save(model.state_dict(), ...) or safetensors"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint: {_not_a_checkpoint(path)}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """Why torch could not read it, in helpful words."""
    text = str(error)
    if "TorchScript" in text:
        return (
            "it is a TorchScript archive, which holds code. Save the weights of the original "
            "model: torch.save(model.state_dict(), ...)"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("models/model.json") for name in names):
            return "it is a torch.export program: pass it as the MODEL"
        if not any(name.endswith("data.pkl") for name in names):
            listing = ", ".join(names[:3]) or "nothing"
            return f"it is a zip file of something else (it holds {listing})"
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(b"PK"):
        return "it is truncated: the end of the zip file is missing. Copy or save it again"
    if isinstance(error, EOFError):
        return "it ends too early: it is truncated, or not a checkpoint"
    return _not_a_checkpoint(path)


def _not_a_checkpoint(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"SQLite format 3"):
        return f"it is an SQLite file, maybe a recording: try `reludiag report {path}`"
    head = head[:12]
    return (
        f"it begins with {head!r}, which is neither a PyTorch file nor safetensors, "
        "or it was damaged on the way"
    )


def _refused_names(path: Path, message: str) -> list[str]:
    """The classes and functions for which `weights_only` refused the file."""
    try:
        names: list[str] = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError, OSError):
        names = []  # legacy files; torch's message names the first one
    if not names:
        names = re.findall(
            r"(?:GLOBAL|global:?|class|type)\s+`?([A-Za-z_][\w]*\.[\w.]+\w)", message
        )
    return list(dict.fromkeys(names))[:_LISTED]


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= size - 8


def _read_safetensors(path: Path) -> StateDict:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: {error}. It may be truncated"
        ) from error


def _read_folder(path: Path) -> StateDict:
    index = path / "model.safetensors.index.json"
    single = path / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return _read_safetensors(single)
        raise CheckpointError(
            f"{path} is a folder without model.safetensors.index.json or model.safetensors"
        )
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors shards") from error
    weights: dict[str, Tensor] = {}
    for shard in sorted(shards):
        # A name only: an index must not reach outside its folder.
        if Path(shard).name != shard or not (path / shard).is_file():
            raise CheckpointError(f"{index} names the shard {shard!r}, which is not in {path}")
        weights.update(_read_safetensors(path / shard))
    return weights


def _find_weights(content: Any, path: Path, ema: bool) -> StateDict:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; expected a state dict, or a dict with one "
            f"under {', '.join(WRAPPERS[:3])}, ..."
        )
    if ema:
        for key in EMA_WRAPPERS:
            candidates = next(_state_dicts(content.get(key)), None)
            if candidates is not None:
                return candidates
        raise CheckpointError(
            f"{path} has no averaged weights (looked for {', '.join(EMA_WRAPPERS)}). "
            f"It has: {_keys(content)}. Leave out --ema"
        )
    candidates = next(_state_dicts(content), None)
    if candidates is None:
        raise CheckpointError(
            f"{path} holds no weights: expected tensors by name, or a dict of them under "
            f"{', '.join(WRAPPERS)}. It has: {_keys(content)}"
        )
    return candidates


def _state_dicts(content: Any) -> Iterator[StateDict]:
    """The state dicts in a checkpoint's content, wrapped ones first."""
    if not isinstance(content, Mapping):
        return
    for key in WRAPPERS:
        yield from _state_dicts(content.get(key))
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield tensors


def _fitted(weights: StateDict, expected: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the model's names, and the parts removed from the file's names."""
    spellings = _spellings(tuple(weights), ())
    # Among equally good ones the first, which removes least.
    names, stripped = max(spellings, key=lambda spelling: len(expected.keys() & {*spelling[0]}))
    return dict(zip(names, weights.values(), strict=True)), list(stripped)


def _spellings(
    names: tuple[str, ...], stripped: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The unchanged names, and the names without each sequence of known prefixes and infixes."""
    yield names, stripped
    for part in (*PREFIXES, *_INFIXES):
        anywhere = part in _INFIXES
        shorter = tuple(
            name.replace(part, "") if anywhere else name.removeprefix(part) for name in names
        )
        if shorter != names and len({*shorter}) == len(names):
            yield from _spellings(shorter, (*stripped, part))


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """Parameters with several names: a file may hold only one of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}


def _step(content: Any) -> int | None:
    for key in _STEP_KEYS:
        value = content.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _shape(shape: Any) -> str:
    return "[" + ", ".join(str(length) for length in shape) + "]"


def _keys(content: Mapping[Any, Any]) -> str:
    names = [str(key) for key in content]
    return (", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")) or "nothing"


def _name_list(names: list[str], sentence: str) -> str:
    if not names:
        return ""
    part = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return sentence.format(len(names), part)

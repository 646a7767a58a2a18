"""Checkpoints: from a file or folder to a state dict that fits the model.

A checkpoint is data, and no code in it is run: pickles are read by `pickles.py`, which calls
nothing that they name.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.errors import CheckpointError
from reludiag.loading.checkpoint_files import FileContent, read_file
from reludiag.loading.checkpoint_folders import read_folder, read_index
from reludiag.loading.tensor_records import UnreadableError
from reludiag.loading.weight_search import (
    Fit,
    derive,
    derived_shape,
    derived_value,
    fits,
    is_averaged,
    may_be_averaged,
    refused_kind,
)

# Keys under which training scripts store the weights, in the order in which they are preferred
# where the weights under several of them fit the model.
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
_LISTED = 5  # keys shown of each kind of mismatch


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint."""

    path: str
    weights: Mapping[str, Tensor]
    """All tensors but those of optimizers, by full name: the keys that lead to it, and its own."""
    step: int | None
    """The step (or epoch) at which it was written, if it says so."""
    containers: Mapping[str, str]
    """Full name -> the keys that lead to the dict or module that the tensor is in."""
    problems: Mapping[str, str]
    """Full name -> why the values of that tensor cannot be read."""
    notes: tuple[str, ...] = ()
    """What a report should say of the file."""
    ema: bool = False
    """Whether the averaged weights are asked for."""


def read_checkpoint(path: str | Path, ema: bool = False) -> Checkpoint:
    """Read the tensors in a checkpoint: a file of `torch.save`, `pickle` or safetensors, or a
    folder of a library.

    With `ema`, the averaged weights are asked for. Nothing in it is run. Raises CheckpointError if
    it cannot be read or holds no weights.
    """
    path = Path(path)
    try:
        kind = path.stat().st_mode
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise CheckpointError(f"{path} is not a regular file or folder: a pipe or a device")
    try:
        if stat.S_ISDIR(kind):
            content = read_folder(path)
        elif path.name.endswith(".index.json"):
            content = read_index(path)
        else:
            content = read_file(path)
    except UnreadableError as error:
        raise CheckpointError(f"{path} {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} cannot be read: there is not enough memory") from error
    return _checkpoint(path, content, ema)


def _checkpoint(path: Path, content: FileContent, ema: bool) -> Checkpoint:
    names = [*content.tensors, *content.problems]
    if not any(content.containers[name] or not name.isdigit() for name in names if name):
        what = content.top
        if names:
            listed = "a tensor" if names == [""] else f"a {what} of tensors"
            raise CheckpointError(
                f"{path} holds {listed} without names; expected a state dict, or a dict "
                f"with one under {', '.join(WRAPPERS[:3])}, ..."
            )
        raise CheckpointError(
            f"{path} holds no weights: expected tensors by name, or a dict of them under any key. "
            f"It has: {what}"
        )
    if ema and not any(may_be_averaged(name) for name in names):
        raise CheckpointError(
            f"{path} has no averaged weights (looked for keys with ema, swa, averaged, teacher, "
            f"...). It has: {content.top}. Leave out --ema"
        )
    return Checkpoint(
        str(path),
        content.tensors,
        content.step,
        content.containers,
        content.problems,
        content.notes,
        ema,
    )


def load_weights(model: nn.Module, checkpoint: Checkpoint, strict: bool = True) -> list[str]:
    """Load the weights into `model`; returns notes for the report (prefixes, tensors left out).

    Raises CheckpointError if keys are missing, unexpected or have wrong shapes, or if several
    weights fit. With `strict` False, matching tensors are loaded and the others noted; it raises
    only if nothing matches.
    """
    own = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    }
    expected = {name: tensor.shape for name, tensor in own.items()}
    derived = derive(checkpoint.weights)
    shapes: dict[str, Any] = {name: tensor.shape for name, tensor in checkpoint.weights.items()}
    for name, (kind, pair, _) in derived.items():
        first, second = (checkpoint.weights[part] for part in pair)
        shapes[name] = derived_shape(kind, first.shape, second.shape)
    shapes.update(dict.fromkeys(checkpoint.problems))
    fit, notes = _chosen(checkpoint, shapes, expected)
    weights, words = _values(checkpoint, fit, derived)
    notes = [*checkpoint.notes, *notes, *words]
    tied = _tied(model)
    missing = [
        name
        for name in expected
        if name not in fit.names
        and not name.endswith("num_batches_tracked")  # absent from files older than the counter
        and not any(other in fit.names for other in tied.get(name, ()))
    ]
    used = {part for name in fit.names.values() for part in (name, *_sources(derived, name))}
    unexpected, beside = _beside(checkpoint, fit, used)
    misshaped = [
        f"{name} {_shape(tensor.shape)} instead of {_shape(expected[name])}"
        for name, tensor in weights.items()
        if tensor.shape != expected[name]
    ]
    # Whole numbers in place of a weight are a quantized one, without its scale.
    misshaped += [
        f"{name} {tensor.dtype} instead of {own[name].dtype}"
        for name, tensor in weights.items()
        if tensor.shape == expected[name] and not _same_kind(tensor, own[name])
    ]
    fitting = {
        name: tensor
        for name, tensor in weights.items()
        if tensor.shape == expected[name] and _same_kind(tensor, own[name])
    }
    problems = [
        _name_list(missing, "the checkpoint lacks {} of the model's tensors: {}"),
        _name_list(unexpected, "the checkpoint has {} that the model lacks: {}"),
        _name_list(misshaped, "{} have a different shape or kind of number: {}"),
    ]
    problems = [problem for problem in problems if problem]
    if problems:
        kind = refused_kind(shapes)
        if kind:
            raise CheckpointError(f"{checkpoint.path} does not fit: {kind}")
    unread = [name for name in fit.names.values() if name in checkpoint.problems]
    if unread:
        reason = checkpoint.problems[unread[0]]
        raise CheckpointError(f"{checkpoint.path}: {unread[0]} cannot be read: {reason}")
    if problems and (strict or not fitting):
        also = f" ({notes[0]})" if notes else ""
        advice = "Is it for another architecture, or are --model-arg values missing? " + (
            "--no-strict loads what matches." if fitting else "Nothing in it matches."
        )
        raise CheckpointError("\n".join([f"{checkpoint.path}{also}:", *problems, advice]))
    try:
        model.load_state_dict(fitting, strict=False)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{checkpoint.path} fits, but the model refuses it: {reason}"
        ) from error
    if beside:
        notes.append(f"{beside} other tensors of the checkpoint are outside {fit.prefix!r}")
    if problems:
        notes.append(
            f"--no-strict: {len(fitting)} of {len(expected)} tensors were loaded; the others "
            "keep the values of the built model"
        )
    return notes


_Derived = Mapping[str, tuple[str, tuple[str, ...], str]]


def _sources(derived: _Derived, name: str) -> tuple[str, ...]:
    return derived[name][1] if name in derived else ()


def _values(
    checkpoint: Checkpoint, fit: Fit, derived: _Derived
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the model's names, and notes on those that were computed."""
    weights, words = {}, []
    for own, name in fit.names.items():
        value: Tensor | None
        if name in derived:
            kind, (first, second), how = derived[name]
            value = derived_value(kind, checkpoint.weights[first], checkpoint.weights[second])
            words.append(how)
        else:
            value = checkpoint.weights.get(name)
        if value is not None:
            weights[own] = value
    return weights, list(dict.fromkeys(words))


def _beside(checkpoint: Checkpoint, fit: Fit, used: set[str]) -> tuple[list[str], int]:
    """What else is where the weights are: names that the model lacks, and how many tensors stand
    outside the prefix.
    """
    places = {checkpoint.containers[name] for name in used if name in checkpoint.containers}
    unexpected, outside = [], 0
    for name, place in checkpoint.containers.items():
        if place not in places or name in used or name.endswith("_extra_state"):
            continue
        if name.startswith(fit.prefix):
            unexpected.append(name.removeprefix(fit.prefix))
        elif not name.endswith("n_averaged"):
            outside += 1
    return unexpected, outside


def _chosen(
    checkpoint: Checkpoint, shapes: Mapping[str, Any], expected: Mapping[str, Any]
) -> tuple[Fit, list[str]]:
    """The weights to load, and notes on where they were; raises CheckpointError if that is open."""
    found = fits(shapes, expected)
    if not found:
        return Fit("", {}, 0), []
    prefixes = {fit.prefix for fit in found}
    averaged = [fit for fit in found if is_averaged(fit.prefix, prefixes, shapes)]
    plain = [fit for fit in found if fit not in averaged]
    wanted, others = (averaged, plain) if checkpoint.ema else (plain, averaged)
    if not wanted or (others and others[0].shaped > wanted[0].shaped):
        other = others[0]
        if checkpoint.ema:
            raise CheckpointError(
                f"{checkpoint.path} has no averaged weights that fit the model; the plain ones "
                f"{_under(other)} do. Leave out --ema"
            )
        if f"{other.prefix.removesuffix('module.')}n_averaged" not in shapes:
            raise CheckpointError(
                f"{checkpoint.path} has averaged weights {_under(other)} that fit the model, and "
                "no plain ones that fit better. --ema loads the averaged ones"
            )
        wanted = others
    best = wanted[0]
    equal = [
        fit for fit in wanted if (fit.shaped, len(fit.names)) == (best.shaped, len(best.names))
    ]
    best, notes = _preferred(checkpoint, equal, len(expected))
    if is_averaged(best.prefix, prefixes, shapes):
        notes.append(f"averaged weights were loaded: those {_under(best)}")
    places = {checkpoint.containers.get(name, "") for name in best.names.values()}
    place = next(iter(places)) if len(places) == 1 else ""
    removed = best.prefix.removeprefix(f"{place}.") if place else best.prefix
    parts = [removed] if removed and removed != f"{place}." and len(places) == 1 else []
    parts += best.removed
    return best, [*(f'"{part}" was removed from the keys' for part in parts), *notes]


def _under(fit: Fit) -> str:
    return f'under "{fit.prefix.rstrip(".")}"' if fit.prefix else "at the top"


def _preferred(checkpoint: Checkpoint, equal: list[Fit], size: int) -> tuple[Fit, list[str]]:
    """One of several weights that fit equally well."""
    best = equal[0]
    if len(equal) == 1 or best.shaped < size:
        return best, []
    for key in ("", *WRAPPERS):
        known = [fit for fit in equal if fit.prefix.partition(".")[0] == key]
        if len(known) == 1:
            named = ", ".join(_under(fit) for fit in equal if fit is not known[0])
            return known[0], [f"the weights {_under(known[0])} were loaded; others fit: {named}"]
    if all(_same(checkpoint, best, other) for other in equal[1:]):
        return best, []
    named = ", ".join(_under(fit) for fit in equal[:_LISTED])
    raise CheckpointError(
        f"{checkpoint.path} has several weights that fit the model ({len(equal)}: {named}), and "
        "they differ. Save the ones you mean in a file of their own: "
        "torch.save(model.state_dict(), ...)"
    )


def _same(checkpoint: Checkpoint, first: Fit, second: Fit) -> bool:
    pairs = ((name, second.names.get(own, "")) for own, name in first.names.items())
    values = ((checkpoint.weights.get(a), checkpoint.weights.get(b)) for a, b in pairs)
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in values)


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """Parameters with several names: a file may hold only one of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}


def _same_kind(tensor: Tensor, own: Tensor) -> bool:
    """Whether the values of one can stand in the other."""
    if tensor.is_complex() and not own.is_complex():
        return False
    is_whole = not tensor.is_floating_point() and not tensor.is_complex()
    return not is_whole or tensor.is_quantized or not own.is_floating_point() or not own.ndim


def _shape(shape: Any) -> str:
    return "[" + ", ".join(str(length) for length in shape) + "]"


def _name_list(names: list[str], sentence: str) -> str:
    if not names:
        return ""
    part = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return sentence.format(len(names), part)

"""Where a model's weights are in the content of a checkpoint: found by their fit to the model.

Each tensor of a checkpoint gets a full name, made of the keys that lead to it and of its own:
`state_dict.module.0.weight`. The weights of a model are those whose full names end as the model's
names do, all after the same prefix. So wrapper keys, prefixes and parts of a model need no list.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reludiag.loading.pickles import OtherKey
from reludiag.loading.tensor_records import StandIn, TensorRecord, UnreadableError

# A file can refer to one container from many places, and nest containers without end.
_MAX_VISITS = 8  # of one container
_MAX_DEPTH = 100
_MAX_NAMES = 500_000
_MAX_NAME_LENGTH = 1_000
_MAX_TEXT = 200_000_000  # characters in all full names
# What wrappers of submodules leave anywhere in a name. The last of them is tried alone, last.
INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
_AVERAGED = re.compile(
    r"(?:^|[^a-z])(?:ema|swa|averaged?|avg|polyak|shadow)(?:$|[^a-z])|[a-z](?:EMA|SWA)\b"
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor in a checkpoint."""

    name: str
    container: str
    """The keys that lead to the dict, list or module that it is in."""
    value: Any
    """A `TensorRecord`, or a tensor."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The weights after one prefix, as far as they fit the model."""

    prefix: str
    names: Mapping[str, str]
    """The model's name -> the full name in the checkpoint."""
    shaped: int
    """How many of them have the model's shape."""
    removed: tuple[str, ...] = ()
    """Infixes that were removed from names of the checkpoint."""


def leaves_of(
    content: Any, tensor_of: Callable[[StandIn], Tensor | None] | None = None
) -> list[Leaf]:
    """All tensors by full name, in the file's order, without those of optimizers.

    `tensor_of` gives the tensors that objects of other libraries are.

    Raises UnreadableError if there are more than any checkpoint has.
    """
    leaves: dict[str, Leaf] = {}
    visits: dict[int, int] = {}
    pending: list[tuple[str, str, Any, int]] = [("", "", content, 0)]
    text = seen = 0
    while pending:
        container, key, value, depth = pending.pop()
        path = f"{container}.{key}" if container and key else container or key
        seen += 1
        if tensor_of is not None and isinstance(value, StandIn):
            converted = tensor_of(value)
            value = value if converted is None else converted
        if isinstance(value, Tensor | TensorRecord):
            text += len(path)
            leaves.setdefault(path, Leaf(path, container, value))
        elif isinstance(value, dict | list | tuple | StandIn) and depth < _MAX_DEPTH:
            visits[id(value)] = visits.get(id(value), 0) + 1
            if visits[id(value)] <= _MAX_VISITS:
                inside = [
                    (path, name, part, depth + 1)
                    for name, part in _parts(value)
                    if len(path) + len(name) < _MAX_NAME_LENGTH
                ]
                seen += len(inside)
                pending += reversed(inside)
        if seen > 4 * _MAX_NAMES or len(leaves) > _MAX_NAMES or text > _MAX_TEXT:
            raise UnreadableError(f"it has more than {_MAX_NAMES:,} tensors or containers")
    return list(leaves.values())


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What is in a container, by name, where it can hold tensors."""
    if isinstance(value, StandIn):
        yield from _parts_of_object(value)
    elif isinstance(value, dict):
        if "param_groups" in value and "state" in value:
            return  # an optimizer: its tensors look like weights
        for key, part in value.items():
            if isinstance(part, _HOLDERS) and not isinstance(key, OtherKey):
                yield str(key), part
    else:
        for index, part in enumerate(value):
            if isinstance(part, _HOLDERS):
                yield str(index), part


_HOLDERS = (dict, list, tuple, StandIn, Tensor, TensorRecord)


def _parts_of_object(value: StandIn) -> Iterator[tuple[str, Any]]:
    held = value.attributes
    modules, parameters = held.get("_modules"), held.get("_parameters")
    if isinstance(modules, dict) and isinstance(parameters, dict):
        buffers = held.get("_buffers")
        unsaved = held.get("_non_persistent_buffers_set")
        if isinstance(buffers, dict):
            left_out = {n for n in unsaved if type(n) is str} if isinstance(unsaved, list) else ()
            buffers = {name: part for name, part in buffers.items() if name not in left_out}
        for part in (parameters, buffers, modules):
            if isinstance(part, dict):
                yield from _parts(part)
        return
    for part in (held, value.entries):
        yield from _parts(part)
    for part in (value.items, value.arguments, value.state):
        if isinstance(part, list | tuple):
            yield from _parts(part)


def is_averaged(prefix: str, prefixes: Container[str], names: Container[str]) -> bool:
    """Whether the weights after a prefix are a moving average: it says so, or it is the teacher of
    a student beside it, or the counter of an `AveragedModel` is.
    """
    if _AVERAGED.search(prefix):
        return True
    if "teacher" in prefix and prefix.replace("teacher", "student") in prefixes:
        return True
    return f"{prefix.removesuffix('module.')}n_averaged" in names if prefix else False


def may_be_averaged(name: str) -> bool:
    """Whether the full name of a tensor can be that of an average."""
    return bool(_AVERAGED.search(name)) or "teacher" in name or name.endswith("n_averaged")


def fits(shapes: Mapping[str, Any], expected: Mapping[str, Any]) -> list[Fit]:
    """The prefixes after which a checkpoint has weights of the model, the best first.

    `shapes` are those of the checkpoint, by full name. Equally good ones are in the file's order.
    """
    best: list[Fit] = []
    for count in (0, len(INFIXES) - 1, len(INFIXES)):
        infixes = INFIXES[:count]
        found = _fits_without(infixes, shapes, expected)
        if found and (not best or _quality(found[0]) > _quality(best[0])):
            best = found
        if best and best[0].shaped == len(expected):
            return best
    whole = _parts_apart(shapes, expected) or _glued(shapes, expected)
    return [whole, *best] if whole else best


def _quality(fit: Fit) -> tuple[int, int]:
    return fit.shaped, len(fit.names)


def _fits_without(
    infixes: tuple[str, ...], shapes: Mapping[str, Any], expected: Mapping[str, Any]
) -> list[Fit]:
    plain_expected = _without(infixes, expected)
    plain = _without(infixes, shapes)
    if infixes and plain.keys() == shapes.keys() and plain_expected.keys() == expected.keys():
        return []
    depth = max((name.count(".") + 1 for name in plain_expected), default=0)
    found: dict[str, dict[str, str]] = {}
    for short, name in plain.items():
        end = len(short)
        for _ in range(depth):
            end = short.rfind(".", 0, end)
            own = plain_expected.get(short[end + 1 :])
            if own is not None:
                found.setdefault(short[: end + 1], {})[own] = name
            if end < 0:
                break
    results = []
    for prefix, names in found.items():
        shaped = sum(shapes[theirs] == expected[own] for own, theirs in names.items())
        used = names.values()
        removed = tuple(i for i in infixes if any(i[:-1] in name.split(".") for name in used))
        removed = tuple(i for i in removed if not any(i[:-1] in own.split(".") for own in names))
        results.append(Fit(prefix, names, shaped, removed))
    results.sort(key=_quality, reverse=True)
    return results


def _without(infixes: tuple[str, ...], names: Mapping[str, Any]) -> dict[str, str]:
    """Names without infixes -> the names as they are."""
    if not infixes:
        return {name: name for name in names}
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(".".join(p for p in name.split(".") if f"{p}." not in infixes), name)
    return plain


_MAX_COMPARED = 20_000_000  # names times what each is compared with
_MAX_PARTS = 32


def _parts_apart(shapes: Mapping[str, Any], expected: Mapping[str, Any]) -> Fit | None:
    """The parts of a model under keys that contain their names, such as `encoder_state_dict`."""
    parts: dict[str, dict[str, Any]] = {}
    for name, shape in expected.items():
        part, dot, rest = name.partition(".")
        if not dot:
            return None
        parts.setdefault(part, {})[rest] = shape
    if not 1 < len(parts) <= _MAX_PARTS or len(parts) * len(shapes) > _MAX_COMPARED / 4:
        return None
    names: dict[str, str] = {}
    for part, own in parts.items():
        if part.isdigit():
            return None
        candidates = [
            fit
            for fit in _fits_without((), shapes, own)
            if fit.shaped == len(own) and part in re.split(r"[^a-zA-Z0-9]+", fit.prefix)
        ]
        plain = [fit for fit in candidates if not is_averaged(fit.prefix, (), shapes)]
        candidates = plain or candidates
        if len(candidates) != 1:
            return None
        names.update({f"{part}.{rest}": theirs for rest, theirs in candidates[0].names.items()})
    return Fit("", names, len(names))


def _glued(shapes: Mapping[str, Any], expected: Mapping[str, Any]) -> Fit | None:
    """The weights after a prefix that does not end with a dot; only if all are there."""
    lengths = sorted({len(name) for name in expected})
    if len(lengths) * len(shapes) > _MAX_COMPARED:
        return None
    found: dict[str, dict[str, str]] = {}
    for name, shape in shapes.items():
        for length in lengths:
            if length >= len(name):
                break
            own = name[-length:]
            if own in expected and expected[own] == shape:
                found.setdefault(name[:-length], {})[own] = name
    whole = [(p, names) for p, names in found.items() if len(names) == len(expected)]
    if len(whole) != 1:
        return None
    prefix, names = whole[0]
    return Fit(prefix, names, len(names))


# What is no plain weight, and is understood


def derive(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Weights that a checkpoint holds as two tensors: name -> how, the two names, and in words."""
    derived: dict[str, tuple[str, tuple[str, ...], str]] = {}
    for name in tensors:
        for first, second, kind, words in _PAIRS:
            if name.endswith(first):
                base = name[: -len(first)]
                other = base + second
                target = base if kind != "parametrized" else _original(base)
                if other in tensors and target not in tensors and target:
                    derived[target] = (kind, (name, other), words)
    return derived


_PAIRS = (
    ("_orig", "_mask", "pruned", "the mask of pruning was applied"),
    ("_g", "_v", "normed", "weight_norm was applied"),
    (".original0", ".original1", "parametrized", "weight_norm was applied"),
)


def _original(base: str) -> str:
    owner, dot, parameter = base.rpartition(".")
    head = owner.removesuffix("parametrizations")
    return head + parameter if dot and head != owner else ""


def derived_value(kind: str, first: Tensor, second: Tensor) -> Tensor | None:
    """The weight of a pair; None if the two do not belong together.

    Pruning: the original times its mask. Weight normalization (Salimans and Kingma 2016, eq. 2):
    `v g / |v|`, with the norm over the axes on which g has one value.
    """
    if kind == "pruned":
        return first * second.to(first.dtype) if first.shape == second.shape else None
    if not first.is_floating_point() or not second.is_floating_point():
        return None
    if first.ndim not in {0, second.ndim}:
        return None
    axes = [axis for axis in range(second.ndim) if not first.ndim or first.shape[axis] == 1]
    kept = [axis for axis in range(second.ndim) if axis not in axes]
    if len(kept) > 1 or any(first.shape[axis] != second.shape[axis] for axis in kept):
        return None
    norm: Tensor = torch.linalg.vector_norm(second, dim=axes, keepdim=True)
    return second * (first / norm)


def derived_shape(kind: str, first: Any, second: Any) -> Any:
    """The shape of the weight of a pair."""
    return first if kind == "pruned" else second


def refused_kind(names: Mapping[str, Any]) -> str:
    """What a checkpoint is, if it is of a kind that is not read; else ""."""
    lora = [name for name in names if _LORA.search(name)]
    if lora and len(lora) == len(names):
        return (
            f"it holds an adapter alone ({lora[0]}, ...), without the weights it was trained on. "
            "Merge it into its model first: merge_and_unload() of PEFT"
        )
    if lora:
        return (
            f"it holds adapters ({lora[0]}, ...) beside the weights, which may not be merged. "
            "Merge them first: merge_and_unload() of PEFT"
        )
    blocks = [name for name in names if _BLOCKS.search(name)]
    if blocks:
        return (
            f"it holds weights in blocks of 8 or 4 bits ({blocks[0]}, ...), which only their own "
            "library can unpack. Save the weights in floating point"
        )
    return ""


_LORA = re.compile(r"(?:^|[._])(?:lora|hada|ia3|lokr)_[a-zA-Z]")
_BLOCKS = re.compile(
    r"\.(?:SCB|weight_format|absmax|quant_map|nested_absmax|qweight|qzeros|"
    r"weight_packed|weight_scale|weight_scale_inv|quant_state\..*)$"
)

"""What a batch holds: its tensors, its named values, and the number of its samples.

A batch can be a tensor, an array, a list, a mapping, a named tuple, a dataclass, a packed sequence,
or an object such as a graph batch of PyTorch Geometric. That library is not imported: such an
object is known by its `keys()` and `num_nodes`.
"""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def is_named_tuple(value: Any) -> bool:
    """Whether its values have names; a packed sequence is one value."""
    return (
        isinstance(value, tuple)
        and hasattr(value, "_fields")
        and not isinstance(value, PackedSequence)
    )


def is_one_batch(value: Any) -> bool:
    """Whether an object is one batch although it can be iterated over."""
    return (
        isinstance(value, Mapping | PackedSequence)
        or is_named_tuple(value)
        or is_dataclass(value)
        or is_graph(value)
    )


def is_dataclass(value: Any) -> bool:
    """Whether it is an object, not a type, whose class is a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_graph(value: Any) -> bool:
    """Whether it is a graph, or several, as PyTorch Geometric has them."""
    return not isinstance(value, Tensor) and hasattr(value, "num_nodes") and hasattr(value, "keys")


def named_values(value: Any) -> dict[str, Any] | None:
    """The values of a batch by name; None if they have no names."""
    if isinstance(value, Mapping):
        return {str(name): value[name] for name in value}
    if is_named_tuple(value):
        return dict(zip(getattr(value, "_fields", ()), value, strict=True))
    if is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if is_graph(value):
        names = value.keys() if callable(value.keys) else value.keys
        if all(hasattr(value, name) for name in names):
            return {name: getattr(value, name) for name in names}
    return None


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in a batch, or in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif not isinstance(value, _PLAIN):
        yield from tensors_of(list((named_values(value) or {}).values()))


def row_tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors in a forward's arguments whose rows may be samples: not those in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif is_one_batch(value) and not isinstance(value, PackedSequence):
            yield from row_tensors((named_values(value) or {}).values())


def is_opaque(value: Any) -> bool:
    """Whether it may hold tensors that cannot be found."""
    if isinstance(value, list | tuple):
        return any(is_opaque(item) for item in value)
    return not isinstance(value, (Tensor, np.ndarray, *_PLAIN)) and named_values(value) is None


def samples_in(values: Iterable[Any]) -> int | None:
    """The number of samples in a forward's arguments; None if it is not known.

    Of a tensor its rows (of a nested one its components), of a list of tensors its length, of a
    packed sequence its sequences, of graphs their number, and of a single graph its nodes.
    """
    return _first_number(values, by_node=False)


def rows_in(values: Iterable[Any]) -> int | None:
    """The same, but of several graphs the nodes of all: the rows that may have groups."""
    return _first_number(values, by_node=True)


def _first_number(values: Iterable[Any], by_node: bool) -> int | None:
    for value in values:
        samples = _samples(value, by_node)
        if samples is not None:
            return samples
    return None


def _samples(value: Any, by_node: bool) -> int | None:
    if isinstance(value, Tensor):
        return int(value.size(0)) if value.dim() else None
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])
    if isinstance(value, list | tuple) and not is_named_tuple(value):
        return len(value) if value and isinstance(value[0], Tensor) else None
    if isinstance(value, _PLAIN):
        return None
    if is_graph(value):
        graphs, nodes = getattr(value, "num_graphs", None), value.num_nodes
        count = graphs if isinstance(graphs, int) and graphs > 1 and not by_node else nodes
        return count if isinstance(count, int) else None
    return _first_number((named_values(value) or {}).values(), by_node)


def moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A batch on a device, arrays as tensors, floating-point tensors as `dtype` if it is given.

    What the caller has is not changed.
    """
    if isinstance(value, np.ndarray):
        try:
            value = torch.as_tensor(value)
        except TypeError:  # an array of text
            return value
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            dtype = None
        if value.is_meta:  # without values to move
            return value
        if value.device == device and (dtype is None or value.dtype == dtype):
            return value
        return value.to(device, dtype)
    if isinstance(value, PackedSequence):
        packed: Any = value  # torch's types do not have all of its arguments
        return packed.to(device=device, dtype=dtype if value.data.is_floating_point() else None)
    if is_named_tuple(value):
        return type(value)(*(moved(item, device, dtype) for item in value))
    if isinstance(value, list | tuple):
        return type(value)([moved(item, device, dtype) for item in value])
    if type(value) is dict:
        return {name: moved(item, device, dtype) for name, item in value.items()}
    if isinstance(value, _PLAIN):
        return value
    return _moved_object(value, device, dtype)


def _moved_object(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    names = named_values(value)
    if names is None:
        return copy.copy(value).to(device) if callable(getattr(value, "to", None)) else value
    changed = {}
    for name, item in names.items():
        new = moved(item, device, dtype)
        if not isinstance(item, _PLAIN) and not _same(item, new):
            changed[name] = new
    if not changed:
        return value
    clone = copy.copy(value)
    for name, item in changed.items():
        if isinstance(value, Mapping):
            clone[name] = item
        elif is_dataclass(value):
            object.__setattr__(clone, name, item)  # it may be frozen
        else:
            setattr(clone, name, item)
    return clone


def _same(value: Any, new: Any) -> bool:
    """Whether nothing in it has moved."""
    if isinstance(value, np.ndarray):
        return new is value
    pairs = zip(tensors_of(value), tensors_of(new), strict=False)
    return new is value or all(a is b for a, b in pairs)


def described(value: Any) -> str:
    """What a batch is, for an error: `x [8, 4] float32, y [8] int64`."""
    if isinstance(value, Tensor | np.ndarray):
        dtype = str(value.dtype).removeprefix("torch.")
        if isinstance(value, Tensor) and value.is_nested:
            return f"nested, {value.size(0)} components, {dtype}"
        return f"{list(value.shape)} {dtype}"
    names = named_values(value)
    if names is not None:
        return ", ".join(f"{name} {described(item)}" for name, item in names.items()) or "nothing"
    if isinstance(value, list | tuple) and not isinstance(value, PackedSequence):
        items = ", ".join(described(item) for item in value[:4])
        return f"a {type(value).__name__} of {len(value)}: {items}" + ", ..." * (len(value) > 4)
    return type(value).__name__

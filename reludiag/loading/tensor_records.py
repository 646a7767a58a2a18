"""Records of what a pickle says of tensors: sizes and places, checked before anything is read.

What a pickle rebuilds tensors by is understood by functions of this file, each of which takes the
arguments of the function of the same name in torch. What is of any other class is a `StandIn`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

MAX_DIMENSIONS = 64
_MAX_SIZE = 1 << 62


class UnreadableError(Exception):
    """A file that cannot be read; its text says why and continues "it cannot be read: ...".

    Within `reludiag.loading` only: the reader of checkpoints makes it a CheckpointError.
    """


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names. It is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False, repr=False)  # its content may be deep, or itself
class StandIn:
    """An object of a class that is not read: what the pickle gave to it."""

    name: Name
    arguments: tuple[Any, ...] = ()
    attributes: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    """The state, where it is not a dict of attributes."""
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A piece of a tensor storage in the file."""

    key: str
    dtype: torch.dtype
    size: int
    """Bytes."""
    offset: int = 0
    """Bytes from the beginning of the storage with this key."""
    content: Any = None
    """What it is read from, if not from the file around the pickle."""


@dataclass(slots=True, eq=False)
class TensorRecord:
    """A tensor of a file before its values are read."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: Storage | None = None
    offset: int = 0
    stride: tuple[int, ...] = ()
    problem: str = ""
    """Why its values cannot be read."""
    quantizer: tuple[Any, ...] = ()
    """Of a quantized tensor: the scheme, then scale and zero point, or both by channel and axis."""


STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")
DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "UntypedStorage": torch.uint8,
}


def storage_of(identity: Any, content: Any = None) -> Any:
    """The storage that torch's persistent id names; raises UnreadableError for a false one.

    The id is `("storage", type, key, device, elements)`, in old files with a view at the end:
    `(key, offset, elements)` in elements.
    """
    if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
        return identity[1]  # the class of a whole module, beside its source text
    if not isinstance(identity, tuple) or len(identity) not in {5, 6} or identity[0] != "storage":
        raise UnreadableError("it refers to something other than tensor storages")
    _, kind, key, _, elements, *view = identity
    dtype = STORAGES.get(kind.name) if isinstance(kind, Name) else kind
    if isinstance(kind, Name) and kind.module not in STORAGE_MODULES:
        dtype = None
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str | int):
        raise UnreadableError("it has a tensor storage of an unknown type")
    _whole(elements)
    start = 0
    if view and view[0] is not None:
        _, start, elements = view[0]
        _whole(start), _whole(elements)
    return Storage(str(key), dtype, elements * dtype.itemsize, start * dtype.itemsize, content)


def _whole(value: Any) -> int:
    """A size, an offset or a stride, if it can be one."""
    if type(value) is not int or not 0 <= value < _MAX_SIZE:
        raise UnreadableError("it has a tensor with an impossible size, offset or stride")
    return value


def whole_of(declared: TensorRecord, local: TensorRecord, placements: Any) -> TensorRecord:
    """A distributed tensor, if the local part is all of it; else why it is not."""
    if not isinstance(placements, list | tuple) or len(placements) > MAX_DIMENSIONS:
        placements = ()
    kinds = [p.name.name for p in placements if isinstance(p, StandIn)]
    if local.shape == declared.shape and kinds and not any("Partial" in kind for kind in kinds):
        return local
    declared.problem = (
        "it is one rank's part of a DTensor: save the whole with full_tensor(), or with "
        "torch.distributed.checkpoint"
    )
    return declared


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: torch.dtype | None = None
) -> TensorRecord:
    if not isinstance(storage, Storage):
        raise UnreadableError("it has a tensor without a storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise UnreadableError("it has a tensor with an impossible size, offset or stride")
    if len(size) > MAX_DIMENSIONS:
        raise UnreadableError(f"it has a tensor of {len(size)} dimensions")
    for value in (offset, *size, *stride):
        _whole(value)
    dtype = dtype or storage.dtype
    elements = 1
    for length in size:
        elements *= length
    if elements >= _MAX_SIZE:
        raise UnreadableError("it has a tensor with an impossible size, offset or stride")
    if elements:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if (last + 1) * dtype.itemsize > storage.size:
            raise UnreadableError(
                f"it has a tensor of {list(size)} in a storage of {storage.size} bytes, which "
                "is too short for it"
            )
    record = TensorRecord(dtype, size, storage, offset, stride)
    if any(isinstance(part, dict) and part for part in rest[2:3]):
        record.problem = "it is a conjugate or negative view, which is not read"
    return record


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> TensorRecord:
    if not isinstance(dtype, torch.dtype):
        raise UnreadableError("it has a tensor of an unknown dtype")
    return _tensor(storage, offset, size, stride, grad, hooks, *rest, dtype=dtype)


def _quantized(
    storage: Any, offset: Any, size: Any, stride: Any, quantizer: Any, *_: Any
) -> TensorRecord:
    record = _tensor(storage, offset, size, stride)
    if not isinstance(quantizer, tuple) or len(quantizer) < 3:
        raise UnreadableError("it has a quantized tensor without a scale")
    record.quantizer = quantizer
    return record


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _wrapper(_kind: Any, dtype: Any, size: Any, *_: Any) -> TensorRecord:
    return _without_values(dtype, size, "it is a tensor class that is not read")


def _meta(dtype: Any, size: Any, *_: Any) -> TensorRecord:
    return _without_values(dtype, size, "it was saved on the meta device, without values")


def _without_values(dtype: Any, size: Any, problem: str) -> TensorRecord:
    if not isinstance(dtype, torch.dtype) or not isinstance(size, tuple):
        raise UnreadableError("it has a tensor of an unknown dtype or size")
    if len(size) > MAX_DIMENSIONS:
        raise UnreadableError(f"it has a tensor of {len(size)} dimensions")
    return TensorRecord(dtype, tuple(map(_whole, size)), problem=problem)


def _unread(what: str) -> Callable[..., TensorRecord]:
    def read(*_: Any) -> TensorRecord:
        return TensorRecord(torch.float32, (), problem=f"it is {what}, which is not read")

    return read


# By module and name, what is called in place of torch's function.
REBUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_qtensor"): _quantized,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _meta,
    ("torch._utils", "_rebuild_wrapper_subclass"): _wrapper,
    ("torch._utils", "_rebuild_sparse_tensor"): _unread("sparse"),
    ("torch._utils", "_rebuild_nested_tensor"): _unread("a nested tensor"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _unread("a tensor of another device"),
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
}

"""Folders of `torch.distributed.checkpoint`: tensors in chunks, and `.metadata` that says where.

`.metadata` is a pickle; it is read as data (`pickles.py`), as is each chunk. Entries that are not
tensors are pickles of anything, and are never read.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reludiag.loading.checkpoint_files import FileContent, key_list
from reludiag.loading.pickles import OtherKey, read_pickle
from reludiag.loading.tensor_records import StandIn, TensorRecord, UnreadableError
from reludiag.loading.torch_files import read_torch_stream, window

_OPTIMIZER = re.compile(r"(?:^|\.)optim[^.]*\.")


def read_distributed(path: Path) -> FileContent:
    """The tensors of a distributed checkpoint but those of optimizers. Raises UnreadableError."""
    metadata = path / ".metadata"
    if not metadata.is_file():
        raise UnreadableError("cannot be read: .metadata in it is not a regular file")
    try:
        with metadata.open("rb") as file:
            content, _ = read_pickle(file, _refuse)
        tensors, problems = _tensors(path, content)
    except UnreadableError as error:
        raise UnreadableError(f"cannot be read: {error}") from error
    places = dict.fromkeys([*tensors, *problems], "")
    return FileContent(tensors, places, problems, (), None, key_list(places))


def _refuse(_: Any) -> Any:
    raise UnreadableError("its .metadata refers to objects that are not in the file")


def _tensors(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    entries, stored = (_dict(content, name) for name in ("state_dict_metadata", "storage_data"))
    places = {}
    for key, info in stored.items():
        index = key.value if isinstance(key, OtherKey) else None
        if isinstance(index, StandIn) and isinstance(info, StandIn):
            name, offsets = index.attributes.get("fqn"), index.attributes.get("offset")
            if isinstance(name, str):
                places[name, _sizes(offsets or ())] = info.attributes
    left = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    tensors, problems = {}, {}
    for name, entry in entries.items():
        is_tensor = isinstance(entry, StandIn) and entry.name.name == "TensorStorageMetadata"
        if not isinstance(name, str) or not is_tensor or _OPTIMIZER.search(name):
            continue
        size, dtype = _sizes(entry.attributes.get("size")), _dtype(entry)
        left -= math.prod(size) * dtype.itemsize
        if left < 0:
            raise UnreadableError("its tensors have more bytes than its files")
        try:
            tensors[name] = _tensor(path, name, size, dtype, entry, places)
        except _UnreadChunkError as error:
            problems[name] = str(error)
    return tensors, problems


class _UnreadChunkError(Exception):
    """A chunk whose values cannot be read, although nothing is wrong with it."""


def _tensor(
    path: Path, name: str, size: tuple[int, ...], dtype: torch.dtype, entry: StandIn, places: Any
) -> Tensor:
    chunks = list(_chunks(entry))
    if sum(math.prod(sizes) for _, sizes in chunks) != math.prod(size):
        raise UnreadableError(f"the parts of {name[:80]!r} are not the whole")
    result = torch.empty(size, dtype=dtype)
    covered = torch.zeros(size, dtype=torch.bool) if len(chunks) > 1 else None
    for offsets, sizes in chunks:
        info = places.get((name, offsets)) or places.get((name, ()))
        if info is None or len(offsets) != len(size):
            raise UnreadableError(f"a part of {name[:80]!r} is nowhere stored")
        if any(o + s > n for o, s, n in zip(offsets, sizes, size, strict=True)):
            raise UnreadableError(f"a part of {name[:80]!r} is outside it")
        value = _chunk(path, name, info)
        if value.shape != sizes or value.dtype is not dtype:
            raise UnreadableError(f"a part of {name[:80]!r} has another shape or dtype than said")
        place = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
        result[place] = value
        if covered is not None:
            covered[place] = True
    if covered is not None and not covered.all():
        raise UnreadableError(f"the parts of {name[:80]!r} overlap, and are not the whole")
    return result


def _chunks(entry: StandIn) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    chunks = entry.attributes.get("chunks")
    for chunk in chunks if isinstance(chunks, list) else ():
        if not isinstance(chunk, StandIn):
            raise UnreadableError("its .metadata has a chunk of an unknown form")
        offsets = _sizes(chunk.attributes.get("offsets"))
        sizes = _sizes(chunk.attributes.get("sizes"))
        if len(offsets) != len(sizes):
            raise UnreadableError("its .metadata has a chunk of an unknown form")
        yield offsets, sizes


def _chunk(path: Path, name: str, info: dict[Any, Any]) -> Tensor:
    """The tensor of one chunk, from its place in a file of the folder."""
    if info.get("transform_descriptors"):
        raise _UnreadChunkError("it is stored compressed or encrypted, which is not read")
    file_name, start, length = (info.get(k) for k in ("relative_path", "offset", "length"))
    # A name only: the metadata must not reach outside its folder.
    if not isinstance(file_name, str) or Path(file_name).name != file_name:
        raise UnreadableError(f"{name[:80]!r} is said to be in a file outside the folder")
    file_path = path / file_name
    if not file_path.is_file():
        raise UnreadableError(f"the file {file_name[:80]!r} is missing from it")
    if type(start) is not int or type(length) is not int or min(start, length) < 0:
        raise UnreadableError(f"the place of {name[:80]!r} is impossible")
    if start + length > file_path.stat().st_size:
        raise UnreadableError(f"the file {file_name[:80]!r} is truncated")
    with file_path.open("rb") as file:
        content = read_torch_stream(window(file, start, length), length)
        record = content.content
        if not isinstance(record, TensorRecord):
            raise UnreadableError(f"{name[:80]!r} is not a tensor in {file_name[:80]}")
        if record.problem:
            raise _UnreadChunkError(record.problem)
        return content.load([record])[id(record)]


def _dict(content: Any, name: str) -> dict[Any, Any]:
    value = content.attributes.get(name) if isinstance(content, StandIn) else None
    if not isinstance(value, dict):
        raise UnreadableError("its .metadata is not that of torch.distributed.checkpoint")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > 64:
        raise UnreadableError("its .metadata has an impossible size or offset")
    if any(type(length) is not int or not 0 <= length < 1 << 62 for length in value):
        raise UnreadableError("its .metadata has an impossible size or offset")
    return tuple(value)


def _dtype(entry: StandIn) -> torch.dtype:
    properties = entry.attributes.get("properties")
    if isinstance(properties, StandIn):
        state = properties.state
        dtype = state[0] if isinstance(state, tuple) and state else None
        dtype = dtype or properties.attributes.get("dtype")
        if isinstance(dtype, torch.dtype):
            return dtype
    raise UnreadableError("its .metadata has a tensor of an unknown dtype")

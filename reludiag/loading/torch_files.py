"""Files of `torch.save`, old and new, and bare pickles: from bytes to content with tensors.

A new file is a zip archive: `data.pkl` and one uncompressed entry for each storage
(https://pytorch.org/docs/stable/notes/serialization.html). An old one is five pickles and then the
storages. What is inside is read as data (`pickles.py`); no name in it is looked up.
"""

import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import torch
from torch import Tensor

from reludiag.loading.pickles import read_pickle
from reludiag.loading.tensor_records import (
    Name,
    StandIn,
    Storage,
    TensorRecord,
    UnreadableError,
    storage_of,
)

_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_OLD_VERSION = 1001
_WHOLE_NUMBERS = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
_ZIP_HEADER = 30  # bytes before the name in a local header
_ZIP_ENCRYPTED = 1
_MAX_ENTRIES = 1_000_000
# A bare pickle holds each storage as an old file of its own, as the argument of this call.
_FROM_BYTES = ("torch.storage", "_load_from_bytes")


class Storages(Protocol):
    """Where the bytes of storages are."""

    def size(self, key: str) -> int:
        """The bytes of a storage; raises UnreadableError if it is not there."""

    def read(self, key: str) -> Tensor:
        """Its bytes, as `uint8[byte]`."""


@dataclass
class TorchFile:
    """The content of a file, with a `TensorRecord` where a tensor is."""

    content: Any
    names: list[Name]
    """Classes and functions that the pickle names, and that were not read."""
    storages: Storages
    limit: int
    """Bytes of the file: its storages cannot have more."""
    notes: list[str] = field(default_factory=list)

    def load(self, records: Iterable[TensorRecord]) -> dict[int, Tensor]:
        """The tensors of records without a problem, by the id of the record.

        Raises UnreadableError if they need more bytes than the file has.
        """
        records = list(records)
        used = [*records, *(scale for record in records for scale in _scales(record))]
        raw: dict[tuple[int, str], Tensor] = {}
        total = 0
        for place, source, key, end in map(self._place, used):
            size = source.size(key)
            if end > size:
                raise UnreadableError(
                    f"its storage {key[:40]!r} is too short: {size} bytes instead of {end}. "
                    "It is truncated or damaged"
                )
            if place not in raw:
                total += size
                if total > self.limit:
                    raise UnreadableError("its storages have more bytes than the file")
                raw[place] = source.read(key)
        if isinstance(self.storages, _Entries) and self.storages.damaged:
            self.notes.append(
                f"the checksums of {self.storages.damaged} tensors do not match: the file was "
                "damaged on the way, or saved without checksums"
            )
        return {id(record): self._tensor(record, raw) for record in records}

    def _place(self, record: TensorRecord) -> tuple[tuple[int, str], Storages, str, int]:
        storage = record.storage
        if storage is None:
            raise UnreadableError("it has a tensor without a storage")
        source = storage.content or self.storages
        return (id(source), storage.key), source, storage.key, storage.offset + storage.size

    def _tensor(self, record: TensorRecord, raw: dict[tuple[int, str], Tensor]) -> Tensor:
        place, _, _, end = self._place(record)
        item = record.dtype.itemsize
        start = record.storage.offset if record.storage else 0
        piece = raw[place][start : start + (end - start) // item * item]
        try:
            if record.quantizer:
                scales = [self._tensor(scale, raw) for scale in _scales(record)]
                return _quantized(piece, record, scales)
            if not piece.numel():
                return torch.empty(record.shape, dtype=record.dtype)
            if start % item:
                piece = piece.clone()
            return piece.view(record.dtype).as_strided(record.shape, record.stride, record.offset)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0][:120]
            raise UnreadableError(f"one of its tensors cannot be built: {reason}") from error


def _scales(record: TensorRecord) -> list[TensorRecord]:
    return [part for part in record.quantizer if isinstance(part, TensorRecord)]


def _quantized(piece: Tensor, record: TensorRecord, scales: list[Tensor]) -> Tensor:
    """A tensor of torch's own quantization, from its whole numbers and scales."""
    kind = _WHOLE_NUMBERS.get(record.dtype)
    elements = math.prod(record.shape)
    if kind is None or elements * record.dtype.itemsize > len(piece):
        raise UnreadableError("it has a quantized tensor of an unknown kind")
    values = piece.view(kind).as_strided(record.shape, record.stride, record.offset).contiguous()
    empty, (_, first, second, *axis) = torch.zeros(record.shape), record.quantizer
    with warnings.catch_warnings(action="ignore"):  # that torch will drop this kind of tensor
        if scales:
            channel, points = scales
            result = torch.quantize_per_channel(empty, channel, points, int(axis[0]), record.dtype)
        else:
            result = torch.quantize_per_tensor(empty, float(first), int(second), record.dtype)
    result.untyped_storage().copy_(values.untyped_storage())
    return result


class _Window(io.RawIOBase):
    """A part of an open file as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        super().__init__()
        self.file = file
        self.start = start
        self.length = length
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.start + self.place)
        view = memoryview(buffer)[: max(self.length - self.place, 0)]
        count = cast("io.BufferedReader", self.file).readinto(view)
        self.place += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.length}[whence]
        if origin + offset < 0:
            raise ValueError("a position before the beginning")
        self.place = origin + offset
        return self.place

    def tell(self) -> int:
        return self.place


def window(file: BinaryIO, start: int, length: int) -> BinaryIO:
    """`length` bytes of an open file as a file."""
    return cast("BinaryIO", io.BufferedReader(_Window(file, start, length)))


def array_tensor(value: StandIn) -> Tensor | None:
    """A NumPy array that a pickle holds as a tensor; None if it is none of plain numbers.

    NumPy pickles an array's bytes with its shape, its dtype and its order, in two ways.
    """
    match value:
        case StandIn(Name(_, "_reconstruct"), state=(_, shape, kind, is_fortran, data)):
            pass
        case StandIn(Name(_, "_frombuffer"), (data, kind, shape, order)):
            is_fortran = order == "F"
        case _:
            return None
    dtype = _ARRAY_DTYPES.get(kind.arguments[0]) if isinstance(kind, StandIn) else None
    is_big = isinstance(kind, StandIn) and isinstance(kind.state, tuple) and ">" in kind.state
    if not isinstance(shape, tuple) or len(shape) > 64 or not isinstance(data, bytes | bytearray):
        return None
    if dtype is None or is_big or any(type(n) is not int or n < 0 for n in shape):
        return None
    if math.prod(shape) * dtype.itemsize != len(data):
        return None
    if not data:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings(action="ignore"):  # that it cannot be written to
        flat = torch.frombuffer(data, dtype=dtype)  # no copy: many arrays can share their bytes
    if is_fortran:
        return flat.view(shape[::-1]).permute(*range(len(shape))[::-1])
    return flat.view(shape)


_ARRAY_DTYPES = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """The content of a file that `torch.save` or `pickle.dump` wrote, while the file is open.

    Raises UnreadableError.
    """
    with path.open("rb") as file:
        yield read_torch_stream(file, os.fstat(file.fileno()).st_size)


def read_torch_stream(file: BinaryIO, size: int) -> TorchFile:
    """The same of an open file of `size` bytes, or of bytes in memory."""
    is_zip = file.read(2) == b"PK"
    file.seek(0)
    return _read_zip(file, size) if is_zip else _read_pickles(file, size)


# Zip archives


class _Entries:
    """The storages of a zip archive."""

    def __init__(self, file: BinaryIO, entries: dict[str, zipfile.ZipInfo]) -> None:
        self.file = file
        self.entries = entries
        self.damaged = 0
        """Storages read so far whose checksum is wrong."""

    def size(self, key: str) -> int:
        return self._entry(key).file_size

    def read(self, key: str) -> Tensor:
        entry = self._entry(key)
        content = _entry_bytes(self.file, entry)
        self.damaged += zlib.crc32(content.numpy().data) != entry.CRC
        return content

    def _entry(self, key: str) -> zipfile.ZipInfo:
        entry = self.entries.get(key)
        if entry is None:
            raise UnreadableError(f"its storage {key[:40]!r} is missing from the archive")
        return entry


def _entry_bytes(file: BinaryIO, entry: zipfile.ZipInfo) -> Tensor:
    """The bytes of an uncompressed entry, whether or not its checksum is right."""
    _seek_entry(file, entry)
    return _bytes_of(file, entry.file_size)


def _seek_entry(file: BinaryIO, entry: zipfile.ZipInfo) -> None:
    """Go to where an uncompressed entry begins."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ZIP_ENCRYPTED:
        raise UnreadableError(
            "its tensors are compressed or encrypted, which torch.save never does: unpack it and "
            "save it again"
        )
    file.seek(entry.header_offset)
    header = file.read(_ZIP_HEADER)
    if len(header) < _ZIP_HEADER or header[:4] != b"PK\x03\x04":
        raise UnreadableError("its zip directory points to nothing: it is damaged")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    file.seek(name_length + extra_length, os.SEEK_CUR)


def _bytes_of(file: BinaryIO, size: int) -> Tensor:
    here = file.tell()
    file.seek(0, os.SEEK_END)
    left = file.tell() - here
    file.seek(here)
    if size > left:
        raise UnreadableError("a tensor in it is cut off: it is truncated. Copy or save it again")
    content = torch.empty(size, dtype=torch.uint8)
    if size and file.readinto(content.numpy().data) != size:  # type: ignore[attr-defined]
        raise UnreadableError("a tensor in it is cut off: it is truncated. Copy or save it again")
    return content


def _read_zip(file: BinaryIO, size: int) -> TorchFile:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError) as error:
        raise UnreadableError(
            "it is truncated: the end of the zip file is missing. Copy or save it again"
        ) from error
    if len(entries) > _MAX_ENTRIES:
        raise UnreadableError(f"it is a zip archive of {len(entries)} files")
    by_name = {entry.filename: entry for entry in entries}
    pickles = [name for name in by_name if name == "data.pkl" or name.endswith("/data.pkl")]
    if not pickles:
        raise UnreadableError(_other_zip(list(by_name)))
    pickle_name = min(pickles, key=len)
    folder = pickle_name.removesuffix("data.pkl")
    if f"{folder}constants.pkl" in by_name or any(n.startswith(f"{folder}code/") for n in by_name):
        raise UnreadableError(
            "it is a TorchScript archive, which holds code. Save the weights of the original "
            "model: torch.save(model.state_dict(), ...)"
        )
    order = by_name.get(f"{folder}byteorder")
    if order is not None and order.file_size == 3:
        raise UnreadableError("it was written on a big-endian machine, whose numbers are not read")
    prefix = f"{folder}data/"
    storages = _Entries(
        file,
        {n.removeprefix(prefix): entry for n, entry in by_name.items() if n.startswith(prefix)},
    )
    _seek_entry(file, by_name[pickle_name])
    pickled = window(file, file.tell(), by_name[pickle_name].file_size)
    content, names = read_pickle(pickled, storage_of)
    return TorchFile(content, names, storages, size)


def _other_zip(names: list[str]) -> str:
    if any(name.endswith("models/model.json") for name in names):
        return "it is a torch.export program: pass it as the MODEL"
    listing = ", ".join(name[:80] for name in names[:3]) or "nothing"
    inner = [name for name in names if name.endswith((".pt", ".pth", ".ckpt", ".zip", ".bin"))]
    if inner or any(name.endswith(".safetensors") for name in names):
        return (
            f"it is a zip archive around other files: unpack it and pass what is in it ({listing})"
        )
    if any(name.endswith(".npy") for name in names):
        return "it is an .npz file of NumPy arrays, not a checkpoint"
    return f"it is a zip file of something else (it holds {listing})"


# Bare pickles, and the format before PyTorch 1.6


class _Pieces:
    """The storages behind the pickles of an old file: where each begins, and its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.pieces: dict[str, tuple[int, int]] = {}

    def size(self, key: str) -> int:
        if key not in self.pieces:
            raise UnreadableError(f"its storage {key[:40]!r} is missing: it is truncated")
        return self.pieces[key][1]

    def read(self, key: str) -> Tensor:
        start, size = self.pieces[key]
        self.file.seek(start)
        return _bytes_of(self.file, size)


def _read_pickles(file: BinaryIO, size: int) -> TorchFile:
    inner: dict[int, tuple[bytes, Any]] = {}

    def from_bytes(content: Any) -> Any:
        if not isinstance(content, bytes):
            raise UnreadableError("it has a tensor storage that is not bytes")
        if id(content) not in inner:
            inner[id(content)] = content, _read_old(io.BytesIO(content), len(content), inside=True)
        return inner[id(content)][1].content

    content, names = read_pickle(file, _refuse, {_FROM_BYTES: from_bytes})
    if type(content) is not int or content != _OLD_MAGIC:
        return TorchFile(content, names, _Pieces(file), size)
    file.seek(0)
    return _read_old(file, size)


def _read_old(file: BinaryIO, size: int, inside: bool = False) -> TorchFile:
    (magic, _), (version, _), (system, _) = (read_pickle(file, _refuse) for _ in range(3))
    if magic != _OLD_MAGIC or version != _OLD_VERSION or not isinstance(system, dict):
        raise UnreadableError("it is an old PyTorch file of an unknown version")
    if system.get("little_endian") is False:
        raise UnreadableError("it was written on a big-endian machine, whose numbers are not read")
    storages, items = _Pieces(file), dict[str, int]()

    def persistent(identity: Any) -> Any:
        storage = storage_of(identity, storages if inside else None)
        if isinstance(storage, Storage):
            items[storage.key] = storage.dtype.itemsize
        return storage

    content, names = read_pickle(file, persistent)
    keys, _ = read_pickle(file, _refuse)
    if not isinstance(keys, list):
        raise UnreadableError("it is an old PyTorch file without a list of its storages")
    for key in (str(key) for key in keys if type(key) in {str, int}):
        length = int.from_bytes(file.read(8), "little") * items.get(key, 1)
        start = file.tell()
        if start + length > size:
            raise UnreadableError("it ends too early: it is truncated. Copy or save it again")
        storages.pieces[key] = (start, length)
        file.seek(length, os.SEEK_CUR)
    return TorchFile(content, names, storages, size)


def _refuse(identity: Any) -> Any:
    raise UnreadableError("its pickle refers to objects that are not in the file")

"""Files of checkpoints: of what kind one is, its tensors by full name, or why it cannot be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from reludiag.loading.tensor_records import Name, StandIn, TensorRecord, UnreadableError
from reludiag.loading.torch_files import TorchFile, array_tensor, open_torch_file
from reludiag.loading.weight_search import leaves_of

_STEP_KEYS = ("global_step", "step", "iteration", "epoch")
_LISTED = 5
# How files begin that are no checkpoints, or have one inside, and what they are.
_CONTAINERS = (
    (b"\x1f\x8b", "is compressed by gzip: unpack it first (gunzip)"),
    (b"BZh", "is compressed by bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "is compressed by xz: unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes it: not weights of PyTorch"),
    (b"GGUF", "is a GGUF file, whose weights are in blocks of few bits: not weights of PyTorch"),
    (b"\x93NUMPY", "is one array of NumPy, not a checkpoint"),
    (
        b"version https://git-lfs",
        "is a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`",
    ),
)
STAGE_3, STAGE_3_END = "zero_pp_rank_", "model_states.pt"
STAGE_3_REASON = (
    "is from DeepSpeed's stage 3, which leaves the weights in pieces with the optimizer: join them "
    "with its zero_to_fp32.py and pass what that writes"
)
_TAR_MAGIC = 257  # where a tar archive says that it is one


@dataclass(frozen=True)
class FileContent:
    """The tensors of a file or a folder."""

    tensors: Mapping[str, Tensor]
    """By full name, without those of optimizers."""
    containers: Mapping[str, str]
    """Full name -> the keys that lead to the dict or module that the tensor is in."""
    problems: Mapping[str, str]
    """Full name -> why that tensor cannot be read."""
    notes: tuple[str, ...]
    step: int | None
    top: str
    """What is at the top, in words."""


def read_file(path: Path) -> FileContent:
    """The tensors in a file. Raises UnreadableError, whose text follows the path."""
    size = path.stat().st_size
    if size == 0:
        raise UnreadableError("is empty (0 bytes): was the disk full when it was written?")
    with path.open("rb") as file:
        head = file.read(512)
    if path.suffix == ".safetensors" or _looks_like_safetensors(head, size):
        return plain_content(read_safetensors(path))
    _check_kind(path, head)
    try:
        with open_torch_file(path) as file_content:
            return _content(file_content)
    except UnreadableError as error:
        if head.startswith(b"PK") or head[0] == 0x80:
            raise UnreadableError(f"cannot be read: {error}") from error
        raise UnreadableError(f"is not a checkpoint: {_beginning(head)}") from error


def plain_content(tensors: Mapping[str, Tensor], notes: tuple[str, ...] = ()) -> FileContent:
    """Tensors by name as a content."""
    return FileContent(tensors, dict.fromkeys(tensors, ""), {}, notes, None, key_list(tensors))


def _content(file: TorchFile) -> FileContent:
    leaves = leaves_of(file.content)
    if not leaves:  # weights as arrays of NumPy; beside tensors, those are something else
        leaves = leaves_of(file.content, array_tensor)
        tensors = {leaf.name: leaf.value for leaf in leaves}
        problems = {}
    else:
        problems = {leaf.name: leaf.value.problem for leaf in leaves if leaf.value.problem}
        readable = [leaf for leaf in leaves if not leaf.value.problem]
        loaded = file.load(leaf.value for leaf in readable)
        tensors = {leaf.name: loaded[id(leaf.value)] for leaf in readable}
    return FileContent(
        tensors,
        {leaf.name: leaf.container for leaf in leaves},
        problems,
        (*file.notes, *_unread_names(file.names)),
        _step(file.content),
        _top(file.content),
    )


def _unread_names(names: list[Name]) -> list[str]:
    # What surrounds a DTensor is understood, not a user's.
    names = [name for name in names if not name.module.startswith("torch.distributed.")]
    if not names:
        return []
    listed = ", ".join(str(name)[:80] for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [
        f"the checkpoint also has objects that are not weights; they were not read, and nothing "
        f"in them was run: {listed}{more}"
    ]


def _step(content: Any) -> int | None:
    for key in _STEP_KEYS:
        value = content.get(key) if isinstance(content, dict) else None
        if type(value) is int and abs(value) < 1 << 62:
            return value
    return None


def _top(content: Any) -> str:
    if isinstance(content, dict):
        return key_list(content)
    if isinstance(content, StandIn):
        return f"an object of {content.name}"
    return "tensor" if isinstance(content, TensorRecord) else type(content).__name__


def key_list(content: Mapping[Any, Any]) -> str:
    """The first keys in words."""
    names = [str(key)[:80] for key in content if isinstance(key, str | int)]
    return (", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")) or "nothing"


def _check_kind(path: Path, head: bytes) -> None:
    if path.name.startswith(STAGE_3) and path.name.endswith(STAGE_3_END):
        raise UnreadableError(STAGE_3_REASON)
    if path.suffix == ".distcp" or path.name == ".metadata":
        raise UnreadableError(
            "is a part of a distributed checkpoint: pass the folder that it is in"
        )
    for beginning, what in _CONTAINERS:
        if head.startswith(beginning):
            raise UnreadableError(what)
    if head[_TAR_MAGIC : _TAR_MAGIC + 5] == b"ustar":
        raise UnreadableError("is a tar archive: unpack it and pass what is in it")
    if head.lstrip()[:5].lower() in {b"<!doc", b"<html", b"<?xml"}:
        raise UnreadableError(
            "is a web page, not a checkpoint: the download gave a page instead of the file"
        )
    if head.startswith(b"SQLite format 3"):
        raise UnreadableError(
            f"is not a checkpoint: it is an SQLite file, maybe a recording: try `reludiag report "
            f"{path}`"
        )


def _beginning(head: bytes) -> str:
    return (
        f"it begins with {head[:12]!r}, which is neither a PyTorch file nor safetensors, "
        "or it was damaged on the way"
    )


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= size - 8


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file; raises UnreadableError."""
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UnreadableError(
            f"is not a readable safetensors file: {error}. It may be truncated"
        ) from error

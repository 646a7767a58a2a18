"""The only place that opens, completes or abandons report files."""

import contextlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from reludiag.errors import UsageError

STDOUT = "-"
Target = str | Path | IO[str]


@contextlib.contextmanager
def opened(target: Target) -> Iterator[IO[str]]:
    """A text stream to `target`; `-` is stdout, an open stream is used directly.

    A file is written under a temporary name next to it and renamed when it is complete: a killed
    export leaves the old file unchanged. Raises UsageError if it cannot be written.
    """
    if not isinstance(target, str | Path):
        yield target
        return
    if str(target) == STDOUT:
        yield sys.stdout
        sys.stdout.flush()
        return
    with _replacing(Path(target)) as file, io.TextIOWrapper(file, "utf-8", newline="") as stream:
        yield stream
        stream.flush()
        _settle(file)


def write(target: Target, text: str | Callable[[str], str]) -> None:
    """Write a text, or the result of a function of the encoding."""
    with opened(target) as stream:
        stream.write(text if isinstance(text, str) else text(encoding_of(stream)))


def encoding_of(stream: IO[str]) -> str:
    """The encoding that a stream turns text into; UTF-8 for one that keeps it as text."""
    return getattr(stream, "encoding", None) or "utf-8"


def write_bytes(content: bytes, path: str | Path) -> None:
    """Write a file as `opened` does: completely or not at all."""
    with opened_binary(path) as file:
        file.write(content)


@contextlib.contextmanager
def opened_binary(target: str | Path | IO[bytes]) -> Iterator[IO[bytes]]:
    """A stream of bytes to a file, as `opened` makes one of text; an open stream as it is."""
    if not isinstance(target, str | Path):
        yield target
        return
    with _replacing(Path(target)) as file:
        yield file
        _settle(file)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    check_writable(path)
    if _is_special(path):
        with _as_usage_error(path), path.open("wb") as file:
            yield file
        return
    with _as_usage_error(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with _as_usage_error(path), os.fdopen(descriptor, "wb") as file:
            yield file
        with _as_usage_error(path):
            # mkstemp makes private files; give it the permissions of any new file.
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def append(path: str | Path, text: str) -> None:
    """Append to a file that others also write to. Raises UsageError if that fails."""
    with _as_usage_error(Path(path)), Path(path).open("a", encoding="utf-8", newline="") as stream:
        stream.write(text)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe: these are written to, and never replaced by a file."""
    return path.exists() and not path.is_file()


def _settle(file: IO[bytes]) -> None:
    file.flush()
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        os.fsync(file.fileno())


def check_writable(target: str | Path) -> None:
    """Raise UsageError before a long pass, not after it, if `target` cannot be written."""
    path = Path(target)
    if str(target) == STDOUT:
        return
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; pass the name of a file in it")
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise UsageError(f"cannot write {path}: it is not writable")
    elif not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: the folder {path.parent} is not writable")


@contextlib.contextmanager
def _as_usage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error

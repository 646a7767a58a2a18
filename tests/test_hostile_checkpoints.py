"""Checkpoints made to do harm: nothing in them is run, and each ends soon, with a sentence."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reludiag
from reludiag.loading import load_weights, read_checkpoint
from reludiag.loading.tensor_records import UnreadableError
from reludiag.loading.torch_files import read_torch_stream

CANARY = "canary_of_the_tests"
DONE = b"."


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    if 0 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    content = pickle.encode_long(value)
    return b"\x8b" + struct.pack("<i", len(content)) + content


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def zipped(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def bare(path: Path, pickled: bytes) -> Path:
    path.write_bytes(pickled)
    return path


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that exists as soon as a module is imported, or a function in it is called."""
    sign = tmp_path / "sings"
    lines = [
        f"open({str(sign)!r}, 'a').write('imported ')",
        f"def sing(*args, **kwargs): open({str(sign)!r}, 'a').write('called ')",
        "class Bird(dict):",
        "    __init__ = __setstate__ = __reduce__ = append = extend = __setitem__ = sing",
        "    def __new__(cls, *args, **kwargs): sing(); return super().__new__(cls)",
    ]
    (tmp_path / f"{CANARY}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    yield sign
    assert not sign.exists()
    assert CANARY not in sys.modules


SING, BIRD = named(CANARY, "sing"), named(CANARY, "Bird")
STACKED = text(CANARY) + text("sing") + b"\x93"
CALLS = {
    "reduce": SING + b")R",
    "reduce, stacked name": STACKED + b")R",
    "reduce of a shell": named("os", "system") + text("exit 3") + b"\x85R",
    "reduce of eval": named("builtins", "eval") + text("1/0") + b"\x85R",
    "reduce of getattr": named("builtins", "getattr") + SING + text("__call__") + b"\x86R)R",
    "newobj": BIRD + b")\x81",
    "newobj with names": BIRD + b")}" + text("a") + b"K\x01s\x92",
    "object": b"(" + BIRD + b"K\x01o",
    "instance": b"(K\x01i" + f"{CANARY}\nsing\n".encode(),
    "build": BIRD + b")\x81}" + text("a") + b"K\x01sb",
    "build with slots": BIRD + b")\x81N}" + text("a") + b"K\x01s\x86b",
    "build with a state": BIRD + b")\x81" + text("state") + b"b",
    "append": BIRD + b")\x81K\x01a",
    "appends": BIRD + b")\x81(K\x01K\x02e",
    "setitem": BIRD + b")\x81" + text("a") + b"K\x01s",
    "setitems": BIRD + b")\x81(" + text("a") + b"K\x01u",
    "additems": BIRD + b")\x81(K\x01\x90",
    "extension": b"\x82\x01)R",
    "a hook of a tensor": named("torch._utils", "_rebuild_parameter")
    + b"(N\x89"
    + SING
    + b")Rt"
    + b"R",
    "a default of a dict": named("collections", "defaultdict") + SING + b"\x85R",
    "a rebuild by name": named("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + SING
    + BIRD
    + b")}tR",
    "a rebuild of a rebuild": named("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + named("torch._tensor", "_rebuild_from_type_v2")
    + BIRD
    + b")}tR",
    "a call of a call": SING + b")R)R",
    "a call of a number": b"K\x01)R",
    "a dotted name": named(f"{CANARY}.sing", "__call__") + b")R",
    "a name with a null": named(CANARY + "\0", "sing") + b")R",
    "a name like one that is read": named("torch._utils", "_rebuild_tensor_v2.__globals__") + b")R",
    "a class as a persistent id": b"(" + BIRD + b")\x81tQ",
    "a text as a persistent id": b"P" + CANARY.encode() + b"\n",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("around", ["zip", "bare", "old"])
def test_a_call_in_a_pickle_is_not_made(
    tmp_path: Path, canary: Path, call: str, around: str
) -> None:
    pickled = b"\x80\x04}(" + text("w") + CALLS[call] + b"u" + DONE
    path = tmp_path / "file.pt"
    if around == "zip":
        zipped(path, pickled)
    else:
        magic = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        head = b"".join(pickle.dumps(part, 2) for part in magic) if around == "old" else b""
        bare(path, head + pickled + (pickle.dumps([], 2) if around == "old" else b""))
    with pytest.raises(reludiag.CheckpointError):
        read_checkpoint(path)


def test_the_weights_beside_a_call_are_read_and_the_call_is_named(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for protocol in (2, 3, 4, 5):
        content = {"x": Evil(), "state_dict": net().state_dict()}
        torch.save(content, tmp_path / "w.pt", pickle_protocol=protocol)
        target = net()
        with torch.no_grad():
            target[0].weight.zero_()
        notes = load_weights(target, read_checkpoint(tmp_path / "w.pt"))
        assert any(f"{os.system.__module__}.system" in note for note in notes)
        assert torch.equal(target[0].weight, net()[0].weight)
    assert not (tmp_path / "ran").exists()


def tensor(
    size: tuple[int, ...] = (2, 2),
    stride: tuple[int, ...] = (2, 1),
    offset: int = 0,
    elements: int = 4,
    identity: bytes | None = None,
) -> bytes:
    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    identity = identity or (
        b"("
        + text("storage")
        + named("torch", "FloatStorage")
        + text("0")
        + text("cpu")
        + number(elements)
        + b"t"
    )
    return (
        named("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + identity
        + b"Q"
        + number(offset)
        + numbers(size)
        + numbers(stride)
        + b"\x89}tR"
    )


def false_id(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


KIND = named("torch", "FloatStorage")
LIES = {
    "larger than its storage": tensor((3, 2)),
    "at an offset beyond its storage": tensor(offset=1),
    "at a negative offset": tensor(offset=-1),
    "with a negative size": tensor((-2, -2)),
    "with a negative stride": tensor(stride=(2, -1)),
    "with strides beyond its storage": tensor(stride=(1 << 40, 1)),
    "with a size that overflows": tensor((1 << 63, 2)),
    "with sizes whose product overflows": tensor((1 << 40, 1 << 40), (0, 0)),
    "with fewer strides than sizes": tensor((2, 2), (1,)),
    "with a thousand axes": tensor((1,) * 1000, (1,) * 1000),
    "in a storage shorter than it says": tensor((100, 100), (100, 1), elements=10_000),
    "in a storage that is not there": tensor(
        identity=false_id(text("storage"), KIND, text("9"), text("cpu"), number(4))
    ),
    "in a storage outside the folder": tensor(
        identity=false_id(text("storage"), KIND, text("../version"), text("cpu"), number(4))
    ),
    "in a storage of another kind": tensor(
        identity=false_id(
            text("storage"), named("os", "FloatStorage"), text("0"), text("cpu"), b"K\x04"
        )
    ),
    "in a storage of no kind": tensor(
        identity=false_id(text("storage"), b"K\x01", text("0"), text("cpu"), b"K\x04")
    ),
    "in a storage of a negative length": tensor(
        identity=false_id(text("storage"), KIND, text("0"), text("cpu"), number(-4))
    ),
    "in a storage of 10^30 elements": tensor(
        identity=false_id(text("storage"), KIND, text("0"), text("cpu"), number(10**30))
    ),
    "in something that is no storage": tensor(identity=false_id(text("module"), b"K\x01", b"NN")),
    "in a persistent id of two": tensor(identity=false_id(text("storage"), KIND)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    pickled = b"\x80\x02}(" + text("w") + LIES[lie] + b"u" + DONE
    with pytest.raises(reludiag.CheckpointError, match="cannot be read"):
        read_checkpoint(zipped(tmp_path / "file.pt", pickled, {"0": bytes(16)}))


def test_an_honest_one_made_by_hand_is_read(tmp_path: Path) -> None:
    pickled = b"\x80\x02}(" + text("weight") + tensor((1, 4), (4, 1)) + b"u" + DONE
    content = struct.pack("<4f", 1, 2, 3, 4)
    checkpoint = read_checkpoint(zipped(tmp_path / "file.pt", pickled, {"0": content}))
    target = nn.Linear(4, 1, bias=False)
    assert load_weights(target, checkpoint) == []
    assert target.weight.tolist() == [[1, 2, 3, 4]]


def test_a_huge_view_of_one_number_is_not_made(tmp_path: Path) -> None:
    pickled = b"\x80\x02}(" + text("weight") + tensor((1 << 40,), (0,)) + b"u" + DONE
    checkpoint = read_checkpoint(zipped(tmp_path / "file.pt", pickled, {"0": bytes(16)}))
    with pytest.raises(reludiag.CheckpointError, match="different shape"):
        load_weights(nn.Linear(4, 1, bias=False), checkpoint)


def entries_at_one_place(path: Path) -> None:
    """A zip archive in which many entries are the same bytes."""
    pickled = (
        b"\x80\x02}("
        + b"".join(
            text(f"w{key}")
            + tensor(
                (250_000,),
                (1,),
                identity=false_id(
                    text("storage"), KIND, text(str(key)), text("cpu"), number(250_000)
                ),
            )
            for key in range(99)
        )
        + b"u"
        + DONE
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(1_000_000))
        first = archive.infolist()[-1]
        for key in range(1, 99):
            entry = zipfile.ZipInfo(f"archive/data/{key}")
            for part in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(entry, part, getattr(first, part))
            archive.filelist.append(entry)
        archive._didModify = True  # type: ignore[attr-defined]
    path.write_bytes(file.getvalue())


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.", zipfile.ZIP_DEFLATED)
        archive.writestr("archive/data/0", bytes(10_000_000))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(entries_at_one_place, "more bytes than the file"), (compressed, "compressed")],
)
def test_a_zip_bomb_is_refused(tmp_path: Path, make: Any, sentence: str) -> None:
    make(tmp_path / "file.pt")
    with pytest.raises(reludiag.CheckpointError, match=sentence):
        read_checkpoint(tmp_path / "file.pt")


LARGE_LIST = b"](" + b"N" * 100_000 + b"eq\x00"
LARGE_TEXT = text("x" * 1_000_000) + b"q\x00"
BOMBS = {
    "nested lists": b"]" * 100_000 + b"a" * 99_999,
    "nested tuples": b")" + b"\x85" * 100_000,
    "nested tuples as a key": b"}" + b")" + b"\x85" * 100_000 + b"Ns",
    "a tuple of itself twice as a key": b"}" + b")" + b"2\x86" * 60 + b"Ns",
    "a tuple of itself twice in a set": b"\x8f(" + b")" + b"2\x86" * 60 + b"\x90",
    "a list of itself": b"]2a",
    "nested calls": SING + b")R" * 50_000,
    "nested dicts": b"}" + (b"q\x00}" + text("k") + b"h\x00s") * 20_000,
    "one dict under many keys of many": b"}q\x00"
    + b"".join(
        b"}(" + b"".join(text(f"{key}") + b"h\x00" for key in "abcdefgh") + b"uq\x00"
        for _ in range(30)
    ),
    "modules of themselves": b"}q\x00"
    + b"".join(
        BIRD
        + b")\x81}("
        + text("_parameters")
        + b"}"
        + text("_modules")
        + b"}("
        + text("a")
        + b"h\x00"
        + text("b")
        + b"h\x00uubq\x00"
        for _ in range(60)
    ),
    "one list copied again and again": LARGE_LIST
    + (named("builtins", "set") + b"h\x00\x85R") * 3_000,
    "one text encoded again and again": LARGE_TEXT
    + (named("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R") * 3_000,
    "a state taken again and again": b"}("
    + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(30_000))
    + b"uq\x00"
    + BIRD
    + b")\x81"
    + b"h\x00b" * 3_000,
    "keys with one hash": b"}("
    + b"".join(number(i * ((1 << 61) - 1)) + b"N" for i in range(1, 30_000))
    + b"u",
    "a text of 4 GB": b"X\xff\xff\xff\xff",
    "a text of 2^63 bytes": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "bytes of 2^62": b"\x8e" + b"\0" * 7 + b"\x40",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7f",
    "a number of a negative length": b"\x8b\xff\xff\xff\xff",
    "a number of many digits": b"L" + b"9" * 900_000 + b"L\n",
    "a line without an end": b"L" + b"9" * 3_000_000,
    "a large number": b"\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000,
    "a memo at 2^32 - 1": b"Nr\xff\xff\xff\xff0",
    "a memo that is empty": b"h\x07",
    "a frame of 2^62 bytes": b"\x95" + b"\0" * 7 + b"\x40N",
    "a buffer outside the pickle": b"\x97",
    "nothing on the stack": b"000",
    "a mark that is not there": b"t",
    "marks alone": b"(" * 100_000,
    "no end": b"N" * 10,
    "an unknown opcode": b"\xff",
    "odd items": b"}(" + text("a") + b"u",
    "items of a number": b"K\x01" + text("a") + b"Ns",
    "an append to a number": b"K\x01Na",
    "a name that is a number": b"K\x01K\x02\x93",
    "arguments that are a number": SING + b"K\x01R",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_ends_with_a_sentence(tmp_path: Path, canary: Path, bomb: str) -> None:
    with pytest.raises(reludiag.CheckpointError):
        read_checkpoint(zipped(tmp_path / "file.pt", b"\x80\x04" + BOMBS[bomb] + DONE))


def test_opcodes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reludiag.loading.pickles.MAX_OPCODES", 1_000)
    path = zipped(tmp_path / "file.pt", b"\x80\x04" + b"N" * 1_001 + DONE)
    with pytest.raises(reludiag.CheckpointError, match="more than 1,000 opcodes"):
        read_checkpoint(path)


def test_every_opcode_is_read_or_refused_with_a_sentence(canary: Path) -> None:
    for code in range(256):
        for argument in (b"", b"\x01", b"0\n", b"\0" * 8, b"a\nb\n"):
            for before in (b"", b"N", b"}", b"]", b"(", b"(N", b")" + SING, SING + b")"):
                pickled = b"\x80\x04" + before + bytes([code]) + argument + DONE
                with suppress(UnreadableError):
                    read_torch_stream(io.BytesIO(pickled), len(pickled))


def test_damage_anywhere_is_a_sentence(tmp_path: Path) -> None:
    torch.save({"model": net().state_dict(), "epoch": 3}, tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        damaged = bytearray(content)
        for place in torch.randint(len(content), (3,), generator=generator).tolist():
            damaged[place] = int(torch.randint(256, (1,), generator=generator))
        bare(tmp_path / "damaged.pt", bytes(damaged))
        with suppress(reludiag.CheckpointError):
            load_weights(net(), read_checkpoint(tmp_path / "damaged.pt"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path(os.devnull)):
        with pytest.raises(reludiag.CheckpointError, match="pipe or a device"):
            read_checkpoint(path)

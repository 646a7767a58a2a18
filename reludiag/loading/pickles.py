"""Pickles read as data: a machine for their opcodes that builds tensors' records and calls nothing.

The opcodes are documented in Python's `pickletools`, which also decodes their arguments. A fixed
table of exact names is understood: what torch writes around a tensor (`tensor_records`), and plain
containers. Every other name becomes an inert `Name`, and whatever a pickle would have
made with it a `StandIn` that keeps what it was given.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

from reludiag.loading.tensor_records import (
    DTYPES,
    REBUILDERS,
    STORAGE_MODULES,
    STORAGES,
    Name,
    StandIn,
    TensorRecord,
    UnreadableError,
    whole_of,
)

# Bounds on what a file may ask for: far above what training scripts write, and such that a machine
# full of the costliest opcodes stays under a gigabyte.
MAX_OPCODES = 2_000_000
_MAX_LINE = 1 << 20  # bytes in an argument that ends with its line
# A call or a state can copy one large container again and again: so many elements in all, and so
# many bytes of text.
_MAX_COPIED = 4_000_000
_MAX_ENCODED = 1 << 29


class Stream(Protocol):
    """What a pickle is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes."""

    def readline(self, size: int = -1, /) -> bytes:
        """Up to and with the end of the line."""

    def tell(self) -> int:
        """The position."""


@dataclass(slots=True, eq=False, repr=False)
class OtherKey:
    """A key of a dict that is neither a text nor a small number.

    Compared by identity: to compare or hash what a pickle holds can take any time.
    """

    value: Any


_Persistent = Callable[[Any], Any]
_Reader = Callable[..., Any]


def read_pickle(
    stream: Stream,
    persistent: _Persistent,
    readers: Mapping[tuple[str, str], _Reader] | None = None,
) -> tuple[Any, list[Name]]:
    """The content of one pickle, and the names in it that were not read.

    `persistent` gives the value of a persistent id, and `readers` are more names that are
    understood. Raises UnreadableError.
    """
    machine = _Machine(persistent, readers or {})
    try:
        content = machine.run(_Bounded(stream))
    except UnreadableError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise UnreadableError(
            f"its pickle is damaged ({type(error).__name__}: {reason})"
        ) from error
    return content, list(machine.names.values())


class _Bounded:
    """A stream whose lines are bounded, so that a file without line ends is not read as one."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.read = stream.read
        self.tell = stream.tell

    def readline(self) -> bytes:
        line = self._stream.readline(_MAX_LINE)
        if len(line) == _MAX_LINE:
            raise UnreadableError("its pickle has a line without an end")
        return line


class _Machine:
    """The state of reading one pickle: a stack, marks in it, and the memo."""

    def __init__(self, persistent: _Persistent, readers: Mapping[tuple[str, str], _Reader]) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[tuple[str, str], Name] = {}  # every unknown one, in the file's order
        self.known: dict[tuple[str, str], Name] = {}
        self.persistent = persistent
        self.readers = {**_READ, **readers}
        self.copied = 0
        self.encoded = 0

    def run(self, stream: _Bounded) -> Any:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", stream))):
            if step >= MAX_OPCODES:
                raise UnreadableError(f"its pickle has more than {MAX_OPCODES:,} opcodes")
            name = opcode.name
            if name in _VALUES:
                if type(argument) is str and not argument.isascii():
                    # Half a character cannot be printed.
                    argument = argument.encode("utf-8", "replace").decode("utf-8")
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name == "STOP":
                return self.stack.pop()
            else:
                self.step(name, argument)
        raise UnreadableError("its pickle has no end")

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME" | "READONLY_BUFFER":
                pass
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "POP":
                if stack:
                    stack.pop()
                else:
                    self.to_mark()
            case "POP_MARK":
                self.to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE":
                items = self.to_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                items = stack[-count:]
                if len(items) < count:
                    raise UnreadableError("its pickle takes values that are not there")
                del stack[-count:]
                stack.append(tuple(items))
            case "LIST" | "FROZENSET":
                items = self.to_mark()
                self.stack.append(items)
            case "DICT":
                items = self.to_mark()
                self.stack.append({})
                self.set_items(items)
            case "APPEND":
                self.extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.to_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.to_mark())
            case "GLOBAL":
                module, _, name = argument.partition(" ")
                stack.append(self.name(module, name))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not (isinstance(name, str) and isinstance(module, str)):
                    raise UnreadableError("its pickle names a class by something other than text")
                stack.append(self.name(module, name))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(self.name("copyreg", f"extension_{argument}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.apply(function, arguments))
            case "NEWOBJ_EX":
                named, arguments, cls = stack.pop(), stack.pop(), stack.pop()
                result = self.apply(cls, arguments)
                self.build(result, named)
                stack.append(result)
            case "OBJ":
                cls, *items = self.to_mark()
                self.stack.append(self.apply(cls, tuple(items)))
            case "INST":
                items = self.to_mark()
                module, _, name = argument.partition(" ")
                self.stack.append(self.apply(self.name(module, name), tuple(items)))
            case "BUILD":
                state = stack.pop()
                self.build(stack[-1], state)
            case "PERSID":
                stack.append(self.persistent(argument))
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case _:
                raise UnreadableError(f"its pickle needs {opcode}, which no checkpoint has")

    def to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, StandIn):
            target.items.extend(items)
        else:
            raise UnreadableError("its pickle appends to something that is no list")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, StandIn) else target
        if not isinstance(entries, dict) or len(items) % 2:
            raise UnreadableError("its pickle sets items of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[_key(key)] = value

    def name(self, module: str, name: str) -> Any:
        """What a name stands for: a dtype, or the name itself."""
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        pair = (module, name)
        is_known = pair in self.readers or (module in STORAGE_MODULES and name in STORAGES)
        names = self.known if is_known or pair in _MARKERS else self.names
        return names.setdefault(pair, Name(module, name))

    def apply(self, function: Any, arguments: Any) -> Any:
        """What a call gives, where it is one of the few that are understood; else a stand-in."""
        if not isinstance(arguments, tuple):
            raise UnreadableError("its pickle calls something with arguments that are no tuple")
        if isinstance(function, StandIn):
            function = function.name
        if not isinstance(function, Name):
            raise UnreadableError("its pickle calls something that has no name")
        self.charge(arguments)
        if (function.module, function.name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return self.from_type(*arguments)
        reader = self.readers.get((function.module, function.name))
        if reader is None:
            return StandIn(function, arguments)
        if reader in _COPYING:
            for argument in arguments:
                self.charge(argument)
        return reader(*arguments)

    def charge(self, value: Any) -> None:
        """Count what is copied of a container or text."""
        if isinstance(value, str | bytes):
            self.encoded += len(value)
        elif isinstance(value, list | tuple | dict):
            self.copied += len(value)
        if self.copied > _MAX_COPIED or self.encoded > _MAX_ENCODED:
            raise UnreadableError("its pickle copies its content again and again")

    def build(self, target: Any, state: Any) -> None:
        """Keep a state with the stand-in it is for. That of containers and tensors is dropped."""
        if not isinstance(target, StandIn):
            return
        if isinstance(state, dict) and not target.attributes:
            target.attributes = state
            return
        attributes = self.attributes(state)
        self.charge(target.attributes)
        target.attributes = {**target.attributes, **attributes}
        if not attributes:
            target.state = state

    def attributes(self, state: Any) -> dict[Any, Any]:
        """The attributes in an object's state: a dict, or a pair of it and a dict of its slots."""
        if isinstance(state, dict):
            self.charge(state)
            return state
        if not isinstance(state, tuple) or len(state) != 2:
            return {}
        if any(part is not None and not isinstance(part, dict) for part in state):
            return {}
        for part in state:
            self.charge(part)
        return {**(state[0] or {}), **(state[1] or {})}

    def from_type(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """A tensor of a class of its own. A distributed one is read if its local part is all."""
        if not isinstance(function, Name) or function.name == "_rebuild_from_type_v2":
            raise UnreadableError("its pickle rebuilds a tensor by something that has no name")
        result = self.apply(function, arguments)
        if isinstance(result, TensorRecord) and function.name == "_rebuild_wrapper_subclass":
            values = self.attributes(state)
            local, spec = values.get("_local_tensor"), values.get("_spec")
            if isinstance(local, TensorRecord) and isinstance(spec, StandIn):
                return whole_of(result, local, spec.attributes.get("placements"))
            named = kind if isinstance(kind, Name) else "tensor"
            result.problem = f"it is a {named}, a tensor class that is not read"
        return result


def _key(key: Any) -> Any:
    if type(key) is str or (type(key) is int and key.bit_length() < 60):
        return key
    return OtherKey(key)


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """An OrderedDict, defaultdict or Counter: pairs or a dict among its arguments."""
    content: dict[Any, Any] = {}
    for argument in arguments:
        if isinstance(argument, dict):
            content.update(argument)
        elif isinstance(argument, list):
            for pair in argument:
                if isinstance(pair, list | tuple) and len(pair) == 2:
                    content[_key(pair[0])] = pair[1]
    return content


def _sequence(items: Any = ()) -> list[Any]:
    return list(items) if isinstance(items, list | tuple) else []


def _size(items: Any = ()) -> tuple[Any, ...]:
    return tuple(_sequence(items))


def _encoded(text: Any, encoding: Any = "utf-8") -> bytes:
    """Bytes as protocol 2 has them."""
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1", "utf-8"}:
        raise UnreadableError("its pickle has bytes in an unknown encoding")
    return text.encode(encoding)


_BUILTINS = ("builtins", "__builtin__")
_READ: dict[tuple[str, str], Callable[..., Any]] = {
    **REBUILDERS,
    ("torch", "Size"): _size,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("_codecs", "encode"): _encoded,
    **{(module, "dict"): _mapping for module in _BUILTINS},
    **{(module, "list"): _sequence for module in _BUILTINS},
    **{(module, "set"): _sequence for module in _BUILTINS},
    **{(module, "frozenset"): _sequence for module in _BUILTINS},
    **{(module, "tuple"): _size for module in _BUILTINS},
}
_COPYING = (_mapping, _sequence, _size, _encoded)
# Names beside tensors that say nothing about their values: stand-ins, but not worth a note.
_MARKERS = {
    ("torch", "device"),
    ("torch", "Tensor"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.serialization", "_get_layout"),
    ("torch", "per_tensor_affine"),
    ("torch", "per_channel_affine"),
    ("builtins", "int"),
    ("builtins", "float"),
}
_VALUES = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg is not None
    and not opcode.stack_before
    and len(opcode.stack_after) == 1
    and opcode.name.removeprefix("SHORT_").startswith(
        ("BIN", "INT", "LONG", "FLOAT", "STRING", "UNICODE", "BYTEARRAY8")
    )
    and not opcode.name.endswith(("GET", "PUT", "PERSID"))
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}

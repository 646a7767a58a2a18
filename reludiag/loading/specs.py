"""MODEL and data specs: `pkg.module:attr` or `path/file.py:attr`, an object or a factory."""

import difflib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from reludiag.errors import ModelError, UsageError, UserCodeError

_LISTED = 12  # attributes shown when one is missing


def parse_arguments(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """`["width=64", "name=big"]` as keyword arguments; values are JSON or plain text.

    Raises UsageError if a pair has no `=`. `option` is the flag to name in that error.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(
                f"{option} {pair!r} was given; expected KEY=VALUE, such as {option} width=64"
            )
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return arguments


def load_model(spec: str, arguments: dict[str, Any] | None = None) -> nn.Module:
    """The model that `spec` names: a module object, or what a class or factory returns.

    For a file `*.pt2` it is the program in it. Raises ModelError if it cannot be found or is not a
    module, UserCodeError if its code raises.
    """
    if spec.endswith(".pt2"):
        if arguments:
            raise UsageError(f"{spec} is a program, so it takes no --model-arg")
        from reludiag.loading.programs import load_program

        return load_program(spec)
    value = load_attribute(spec)
    if not isinstance(value, nn.Module) or isinstance(value, type):
        if not callable(value):
            raise ModelError(
                f"{spec} is {_described(value)}; expected a torch.nn.Module, or a class or "
                "function that returns one"
            )
        value = call_user_code(value, spec, arguments or {})
    elif arguments:
        raise UsageError(f"{spec} is a model already, so it takes no --model-arg")
    if not isinstance(value, nn.Module):
        raise ModelError(f"{spec} returned {_described(value)}; expected a torch.nn.Module")
    return value


def load_attribute(spec: str) -> Any:
    """The object that `pkg.module:attr` or `path/file.py:attr` names.

    Raises ModelError if the module or the attribute is missing, UserCodeError if importing
    it raises.
    """
    source, colon, attribute = spec.rpartition(":")
    if not colon or not source or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", attribute):
        raise ModelError(
            f"{spec!r} names no attribute; expected package.module:attribute or "
            "path/file.py:attribute, such as sample_models/digits.py:build"
        )
    if source.endswith(".py") or "/" in source or "\\" in source:
        module = _import_file(Path(source))
    else:
        module = _import_module(source)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ModelError(_missing(source, attribute, part, value))
        value = getattr(value, part)
    return value


def function_spec(function: Callable[..., Any]) -> str:
    """The spec by which another process can import a function, with its module or its file.

    Raises UsageError for a function that no other process can import.
    """
    name = getattr(function, "__qualname__", "")
    source = inspect.getsourcefile(function) if inspect.isfunction(function) else None
    if source is None or "<" in name or not Path(source).is_file():
        raise UsageError(
            f"{function!r:.80} was given; expected a function that other processes can import: "
            "one at the top level of a file, or its spec such as "
            '"path/file.py:train"'
        )
    file = _importable_file(function.__module__)
    if file is not None and file.is_file() and file.samefile(source):
        return f"{function.__module__}:{name}"
    return f"{Path(source).resolve()}:{name}"


def _importable_file(module: str) -> Path | None:
    """Where another process would import a module from; None for a script, or a file's module."""
    folders, module_spec = None, None
    for end in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:end])
        # importlib.util.find_spec would accept modules that only this process has imported.
        specs = (finder.find_spec(name, folders) for finder in sys.meta_path)
        module_spec = next((spec for spec in specs if spec is not None), None)
        if module_spec is None:
            return None
        folders = module_spec.submodule_search_locations
    return None if module_spec is None or module_spec.origin is None else Path(module_spec.origin)


def call_user_code(function: Callable[..., Any], spec: str, arguments: dict[str, Any]) -> Any:
    """Call it with keyword arguments; an exception becomes a UserCodeError."""
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        keywords = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise user_code_error(f"{spec}({keywords})", error) from error


def user_code_error(doing: str, error: BaseException) -> UserCodeError:
    """The user's error with its traceback, from the first frame outside reludiag."""
    frame = error.__traceback__
    ours = str(Path(__file__).parents[1])
    while frame is not None and (
        frame.tb_frame.f_code.co_filename.startswith((ours, "<frozen importlib"))
    ):
        frame = frame.tb_next
    text = "".join(traceback.format_exception(type(error), error, frame))
    return UserCodeError(f"{doing} raised {type(error).__name__}: {error}", text.rstrip())


def _import_module(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ModelError(
                f"no module {name!r} can be imported (looked in {Path.cwd()} and the installed "
                f"packages). For a file, give its path: path/{name.replace('.', '/')}.py:..."
            ) from error
        raise user_code_error(f"importing {name}", error) from error
    except (Exception, SystemExit) as error:
        raise user_code_error(f"importing {name}", error) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        )
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise ModelError(f"{path} does not exist (the current folder is {Path.cwd()}).{hint}")
    resolved = path.resolve()
    name = "reludiag_spec_" + re.sub(r"\W", "_", str(resolved))
    if name in sys.modules:
        return sys.modules[name]
    # As when Python runs a file: its own folder can be imported from, and so can the current one.
    for folder in (str(Path.cwd()), str(resolved.parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise user_code_error(f"importing {path}", error) from error
    return module


def _missing(source: str, attribute: str, part: str, container: Any) -> str:
    names = [name for name in vars(container) if not name.startswith("_")] if container else []
    usable = [
        n for n in names if callable(getattr(container, n)) or _is_model(getattr(container, n))
    ]

    def is_imported(name: str) -> bool:
        value = getattr(container, name)
        return not _is_model(value) and getattr(value, "__module__", None) != getattr(
            container, "__name__", None
        )

    usable.sort(key=is_imported)  # names defined there come first
    near = difflib.get_close_matches(part, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    listing = ", ".join(usable[:_LISTED]) + (", ..." if len(usable) > _LISTED else "")
    where = source if part == attribute else f"{source}:{attribute.rpartition('.')[0]}"
    return f"{where} has no attribute {part!r}.{hint} It has: {listing or 'nothing to call'}"


def _is_model(value: object) -> bool:
    return isinstance(value, nn.Module)


def _described(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"

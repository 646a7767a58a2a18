"""Settings: options that `[tool.reludiag]` in pyproject.toml or RELUDIAG_* variables give.

Flag > variable > file > default. What can be set is read from the commands themselves: each option
but those in `COMMAND_LINE_ONLY`, under the name that it has there.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from reludiag.errors import UsageError
from reludiag.reports.run.formats import OPTIONS

COMMAND_LINE_ONLY = frozenset(
    {
        *(each.name for each in OPTIONS),  # of one call
        *("json", "out", "output"),
        *("data-arg", "init", "input-shape", "kind", "lr"),  # what is asked
        *("model-arg", "once", "shard"),
        *("help", "install-completion", "show-completion", "version"),
    }
)
PREFIX = "RELUDIAG_"

Commands = Mapping[str, Any]
"""Name -> command, as Typer makes them."""


@dataclass(frozen=True)
class Given:
    """A setting that was given outside of the command line."""

    key: str
    value: Any
    """As text, a list of texts, or a bool for a flag."""
    source: str
    """`variable` or `file`."""
    origin: str
    """The name of the variable, or the path of the file."""


def options_of(commands: Commands) -> dict[str, dict[str, Any]]:
    """What can be set: key -> command -> its option."""
    found: dict[str, dict[str, Any]] = {}
    for name, command in commands.items():
        for option in command.params:
            key = next((text[2:] for text in option.opts if text.startswith("--")), None)
            if key is not None and key not in COMMAND_LINE_ONLY:
                found.setdefault(key, {})[name] = option
    return dict(sorted(found.items()))


def given_settings(commands: Commands, folder: Path | None = None) -> dict[str, Given]:
    """What is set for a call in `folder` (the current one), a variable before the file.

    Raises UsageError for what no command has, or would refuse.
    """
    known = options_of(commands)
    in_force: dict[str, Given] = {}
    for given in (*_from_file(folder or Path.cwd()), *_from_variables()):
        if given.key not in known:
            raise UsageError(_unknown(given, known))
        in_force[given.key] = _checked(given, known[given.key], commands)
    return in_force


def default_map(commands: Commands, in_force: Mapping[str, Given]) -> dict[str, dict[str, Any]]:
    """The settings as each command takes its defaults: command -> parameter -> value."""
    known = options_of(commands)
    return {
        name: {
            option.name: in_force[key].value
            for key, options in known.items()
            if key in in_force and (option := options.get(name)) is not None
        }
        for name in commands
    }


def _from_file(folder: Path) -> list[Given]:
    """Of the nearest pyproject.toml in `folder` or above that has a `[tool.reludiag]`."""
    for parent in (folder, *folder.parents):
        path = parent / "pyproject.toml"
        if not path.is_file():
            continue
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("reludiag")
        except (ValueError, OSError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        if isinstance(table, dict):
            return [Given(key, _at(parent, key, v), "file", str(path)) for key, v in table.items()]
    return []


def _at(folder: Path, key: str, value: Any) -> Any:
    """A file of data is looked for beside the pyproject.toml that names it."""
    if key != "data" or not isinstance(value, str):
        return value
    path, colon, attribute = value.rpartition(":") if ":" in value else (value, "", "")
    return f"{folder / path}{colon}{attribute}" if (folder / path).is_file() else value


def _from_variables() -> Iterable[Given]:
    for name, text in sorted(os.environ.items()):
        if name.startswith(PREFIX) and text:
            key = name.removeprefix(PREFIX).lower().replace("_", "-")
            yield Given(key, text, "variable", name)


def _unknown(given: Given, known: Iterable[str]) -> str:
    if given.key in COMMAND_LINE_ONLY:
        return f"{given.origin} sets {given.key}, which can be given on the command line only"
    close = difflib.get_close_matches(given.key.replace("_", "-"), known, 1)
    names = sorted(known)
    expected = f"Did you mean {close[0]}?" if close else f"Expected one of {', '.join(names)}"
    return f"{given.origin} sets {given.key}, which is no setting of reludiag. {expected}"


def _checked(given: Given, options: Mapping[str, Any], commands: Commands) -> Given:
    """The value as each command that has the option takes it from its command line."""
    value = given.value
    for name, option in options.items():
        value = _as_text(given, option.multiple, option.is_flag)
        try:
            option.process_value(typer.Context(commands[name], resilient_parsing=True), value)
        except typer.BadParameter as error:
            raise _refused(given, error.message) from None
    return Given(given.key, value, given.source, given.origin)


def _as_text(given: Given, multiple: bool, is_flag: bool) -> Any:
    value = given.value
    if multiple:
        # A variable holds several with spaces between them.
        values = value.split() if given.source == "variable" else value
        values = values if isinstance(values, list) else [values]
        if all(_is_plain(item) for item in values):
            return [str(item) for item in values]
        raise _refused(given, "expected text, or a list of texts")
    if is_flag:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        value = words.get(value.lower()) if isinstance(value, str) else value
        if isinstance(value, bool):
            return value
        raise _refused(given, "expected true or false")
    if _is_plain(value):
        return str(value)
    raise _refused(given, "expected one value")


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _refused(given: Given, why: str) -> UsageError:
    return UsageError(f"{given.origin} sets {given.key} to {given.value!r}: {why}")

"""Settings: options set by `[tool.reludiag]` in pyproject.toml or by RELUDIAG_* variables.

Flag > variable > file > default. The commands themselves say what can be set: every option except
those in `COMMAND_LINE_ONLY`, under its own name.
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
        *(each.name for each in OPTIONS),  # the files of one call
        *("json", "out", "output"),
        *("data-arg", "init", "input-shape", "kind", "lr"),  # the question of one call
        *("model-arg", "once", "shard"),
        *("help", "install-completion", "show-completion", "version"),
    }
)
PREFIX = "RELUDIAG_"

Commands = Mapping[str, Any]
"""Name -> command, as Typer makes them."""


@dataclass(frozen=True)
class Setting:
    """The value of an option that a variable or a file sets."""

    key: str
    value: Any
    """A text, a list of texts, or a bool for a flag."""
    source: str
    """`variable` or `file`."""
    origin: str
    """The name of the variable, or the path of the file."""


def options_of(commands: Commands) -> dict[str, dict[str, Any]]:
    """The options that can be set: key -> command -> its option."""
    options: dict[str, dict[str, Any]] = {}
    for name, command in commands.items():
        for option in command.params:
            key = next((text[2:] for text in option.opts if text.startswith("--")), None)
            if key is not None and key not in COMMAND_LINE_ONLY:
                options.setdefault(key, {})[name] = option
    return dict(sorted(options.items()))


def settings_in_force(commands: Commands, folder: Path | None = None) -> dict[str, Setting]:
    """The settings for a call in `folder`, by default the current one.

    A variable overrides the file. Raises UsageError for a key that no command has, or a value that
    a command refuses.
    """
    all_options = options_of(commands)
    in_force: dict[str, Setting] = {}
    for setting in (*_from_file(folder or Path.cwd()), *_from_variables()):
        if setting.key not in all_options:
            raise UsageError(_unknown_key(setting, all_options))
        in_force[setting.key] = _checked(setting, all_options[setting.key], commands)
    return in_force


def default_map(commands: Commands, in_force: Mapping[str, Setting]) -> dict[str, dict[str, Any]]:
    """The settings as defaults of each command: command -> parameter -> value."""
    all_options = options_of(commands)
    return {
        name: {
            option.name: in_force[key].value
            for key, options in all_options.items()
            if key in in_force and (option := options.get(name)) is not None
        }
        for name in commands
    }


def _from_file(folder: Path) -> list[Setting]:
    """Settings of the nearest pyproject.toml, in `folder` or above, with a `[tool.reludiag]`."""
    for parent in (folder, *folder.parents):
        path = parent / "pyproject.toml"
        if not path.is_file():
            continue
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("reludiag")
        except (ValueError, OSError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        if isinstance(table, dict):
            origin = str(path)
            return [Setting(k, _at(parent, k, v), "file", origin) for k, v in table.items()]
    return []


def _at(folder: Path, key: str, value: Any) -> Any:
    """Resolve a file of data relative to the folder of the pyproject.toml that names it."""
    if key != "data" or not isinstance(value, str):
        return value
    path, colon, attribute = value.rpartition(":") if ":" in value else (value, "", "")
    return f"{folder / path}{colon}{attribute}" if (folder / path).is_file() else value


def _from_variables() -> Iterable[Setting]:
    for name, text in sorted(os.environ.items()):
        if name.startswith(PREFIX) and text:
            key = name.removeprefix(PREFIX).lower().replace("_", "-")
            yield Setting(key, text, "variable", name)


def _unknown_key(setting: Setting, keys: Iterable[str]) -> str:
    if setting.key in COMMAND_LINE_ONLY:
        return f"{setting.origin} sets {setting.key}, which can be set on the command line only"
    close = difflib.get_close_matches(setting.key.replace("_", "-"), keys, 1)
    names = sorted(keys)
    expected = f"Did you mean {close[0]}?" if close else f"Expected one of {', '.join(names)}"
    return f"{setting.origin} sets {setting.key}, which is not a setting of reludiag. {expected}"


def _checked(setting: Setting, options: Mapping[str, Any], commands: Commands) -> Setting:
    """The setting with its value as the command line would give it, accepted by each command."""
    value = setting.value
    for name, option in options.items():
        value = _as_text(setting, option.multiple, option.is_flag)
        try:
            option.process_value(typer.Context(commands[name], resilient_parsing=True), value)
        except typer.BadParameter as error:
            raise _refused(setting, error.message) from None
    return Setting(setting.key, value, setting.source, setting.origin)


def _as_text(setting: Setting, multiple: bool, is_flag: bool) -> Any:
    value = setting.value
    if multiple:
        # A variable separates several values by spaces.
        values = value.split() if setting.source == "variable" else value
        values = values if isinstance(values, list) else [values]
        if all(_is_plain(item) for item in values):
            return [str(item) for item in values]
        raise _refused(setting, "expected text, or a list of texts")
    if is_flag:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        value = words.get(value.lower()) if isinstance(value, str) else value
        if isinstance(value, bool):
            return value
        raise _refused(setting, "expected true or false")
    if _is_plain(value):
        return str(value)
    raise _refused(setting, "expected one value")


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _refused(setting: Setting, reason: str) -> UsageError:
    return UsageError(f"{setting.origin} sets {setting.key} to {setting.value!r}: {reason}")

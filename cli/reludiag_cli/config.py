"""`reludiag config`: the settings in force, and where each is from."""

import re
from typing import Any

import typer

from reludiag_cli import options
from reludiag_cli.settings import PREFIX, given_settings, options_of


def config(context: typer.Context, as_json: options.AsJson = False) -> None:
    """Show which settings are in force, and from where.

    Flags come first, then RELUDIAG_* variables, then [tool.reludiag] in the pyproject.toml of this
    folder or one above, then the defaults.
    """
    commands: Any = context.find_root().command
    rows = _rows(commands.commands)
    if as_json:
        import json

        print(json.dumps({"schema_version": 1, "settings": rows}, ensure_ascii=False))
    else:
        _print(rows)


def _rows(commands: Any) -> list[dict[str, Any]]:
    in_force = given_settings(commands)
    rows = []
    for key, by_command in options_of(commands).items():
        given = in_force.get(key)
        defaults = {name: option.default for name, option in by_command.items()}
        rows.append(
            {
                "setting": key,
                "value": None if given is None else _without_password(given.value),
                "source": "default" if given is None else given.source,
                "origin": None if given is None else given.origin,
                "variable": PREFIX + key.upper().replace("-", "_"),
                "defaults": defaults,
            }
        )
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for title in ("Setting", "Value", "From"):
        table.add_column(title, overflow="fold")
    for row in rows:
        is_set = row["source"] != "default"
        value = _shown(row["value"]) if is_set else _default(row["defaults"])
        table.add_row(
            Text(row["setting"], style="bold" if is_set else ""),
            Text(value, style="" if is_set else "dim"),
            Text(row["origin"] or "default", style="" if is_set else "dim"),
        )
    Console().print(table)


def _default(defaults: dict[str, Any]) -> str:
    """The default, or where they differ, that of each command."""
    shown = {name: _shown(value) for name, value in defaults.items()}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return ", ".join(f"{name}: {value}" for name, value in shown.items())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(value) if isinstance(value, list) else str(value)


def _without_password(value: Any) -> Any:
    """A database's password is not for the log of a pipeline."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<=://)([^/@\s]*):[^@\s]+@", r"\1:***@", value)

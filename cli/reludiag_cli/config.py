"""`reludiag config`: the settings in force, and where each comes from."""

import re
from typing import Any

import typer

from reludiag_cli import options
from reludiag_cli.settings import PREFIX, options_of, settings_in_force


def config(context: typer.Context, as_json: options.AsJson = False) -> None:
    """Show the settings in force, and where each comes from.

    A flag overrides a RELUDIAG_* variable; a variable overrides [tool.reludiag] in the
    pyproject.toml of this folder or one above; that overrides the default.
    """
    commands: Any = context.find_root().command
    rows = _rows(commands.commands)
    if as_json:
        import json

        print(json.dumps({"schema_version": 1, "settings": rows}, ensure_ascii=False))
    else:
        _print(rows)


def _rows(commands: Any) -> list[dict[str, Any]]:
    in_force = settings_in_force(commands)
    rows = []
    for key, by_command in options_of(commands).items():
        setting = in_force.get(key)
        defaults = {name: option.default for name, option in by_command.items()}
        rows.append(
            {
                "setting": key,
                "value": None if setting is None else _without_password(setting.value),
                "source": "default" if setting is None else setting.source,
                "origin": None if setting is None else setting.origin,
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
        value = _as_text(row["value"]) if is_set else _default(row["defaults"])
        table.add_row(
            Text(row["setting"], style="bold" if is_set else ""),
            Text(value, style="" if is_set else "dim"),
            Text(row["origin"] or "default", style="" if is_set else "dim"),
        )
    Console().print(table)


def _default(defaults: dict[str, Any]) -> str:
    """The default, or each command's where they differ."""
    texts = {name: _as_text(value) for name, value in defaults.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{name}: {value}" for name, value in texts.items())


def _as_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(value) if isinstance(value, list) else str(value)


def _without_password(value: Any) -> Any:
    """Hide the password of a database: the output may end up in the log of a pipeline."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<=://)([^/@\s]*):[^@\s]+@", r"\1:***@", value)

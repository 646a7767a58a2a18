"""Reference: the pages that are made entirely from the code."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from reludiag_cli.app import app
from reludiag_cli.settings import COMMAND_LINE_ONLY, PREFIX

from docs.generate.blocks import ROOT
from reludiag.diagnosis import columns as diagnosis
from reludiag.experiments import trial_table as trials
from reludiag.experiments.analysis import effects
from reludiag.recording import schema
from reludiag.tables import Column

FOLDER = ROOT / "docs" / "reference"
_KEPT_AS_WRITTEN = "\b"  # begins a paragraph of help that is not wrapped: an example
_MADE = "<!-- Made from the code by `make pages`. -->\n\n"


def reference_pages() -> dict[Path, str]:
    """Path -> text."""
    makers: Mapping[str, Callable[[], str]] = {
        "command-line.md": command_line,
        "tables.md": tables,
        "recording.md": recording_schema,
    }
    return {FOLDER / name: _MADE + make() for name, make in makers.items()}


def command_line() -> str:
    """Every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    text = f"# The command line\n\n{group.help}\n\n"
    text += (
        "The result goes to stdout, everything else to stderr. Every file is written completely or "
        f"not at all. {group.epilog}\n\n"
        "Options marked with a dot (·) can also be set in `[tool.reludiag]` of `pyproject.toml`, "
        "under their name without the dashes, or by a variable such as "
        f"`{PREFIX}FAIL_OVER`: see [in a pipeline](../how-to/ci.md).\n\n"
    )
    text += _rows(
        ("Command", "What it does"),
        ((f"[`{n}`](#{n})", _paragraphs(c.help)[0]) for n, c in group.commands.items()),
    )
    text += "\n" + _option_table(group.params)
    return text + "".join(_command(name, each) for name, each in group.commands.items())


def tables() -> str:
    """Every column of every table."""
    text = (
        "# The columns of each table\n\n"
        "Tables are pandas DataFrames with fixed columns and dtypes. CSV and Parquet files and the "
        "JSON document use the same names. In a CSV, unknown values are empty.\n"
    )
    for title, about, columns in (
        (
            "Units",
            "`diagnosis.units`, `--csv` and `--parquet`: a row per unit, sites in forward order. "
            "The files hold the units that are not alive, or every unit with `--all`.",
            diagnosis.UNIT_COLUMNS,
        ),
        (
            "Units of a recording",
            "These follow if the source is a recording or several checkpoints:",
            diagnosis.LEDGER_COLUMNS,
        ),
        ("Sites", "`diagnosis.sites`: a row per site.", diagnosis.SITE_COLUMNS),
        (
            "Sites of a recording",
            "These follow if the source is a recording:",
            diagnosis.SITE_LEDGER_COLUMNS,
        ),
        (
            "Timeline",
            "`diagnosis.timeline`: a row per snapshot and site. It is None after a single scan.",
            diagnosis.TIMELINE_COLUMNS,
        ),
        (
            "Metrics",
            "`diagnosis.metrics`: a row per window of `every` steps and metric, of what "
            "`Monitor.log` was given; without rows where that is nothing. In the JSON document, a "
            "value that is not finite is null.",
            diagnosis.METRIC_COLUMNS,
        ),
        (
            "Marks",
            "`diagnosis.marks`: a row per mark that `Monitor.mark` set, with what died from there "
            "to the next one.",
            diagnosis.MARK_COLUMNS,
        ),
        (
            "Trials",
            "`reludiag.sweep`, `reludiag.compare`, `Replay.trials`, and `--csv` of these three "
            f"commands: a row per run. A column `{trials.METRIC}NAME` follows for each number that "
            "the training returned.",
            trials.TRIAL_COLUMNS,
        ),
        (
            "Cells",
            "`Effects.cells`: a row for each initialization and learning rate.",
            effects.CELL_COLUMNS,
        ),
    ):
        text += f"\n## {title}\n\n{about}\n\n{_columns(columns)}"
    return text


def recording_schema() -> str:
    """The file that a Monitor writes."""
    return (
        "# The recording\n\n"
        "A recording is one SQLite file with a write-ahead log. Each snapshot is one transaction: "
        "once committed, it survives a crash, and a reader can follow a run that is still being "
        "written. During the run, a `-wal` and a `-shm` file next to it are part of the recording; "
        "at the end they are merged into it.\n\n"
        "`reludiag.load` and the commands read it for you; this page is for reading it in SQL. "
        f"The schema's version is {schema.SCHEMA_VERSION} (`PRAGMA "
        f"user_version`). Version {schema.OLDEST_READ} is read as well; a file of another version "
        "is refused with an error. Its "
        f"`application_id` is {schema.APPLICATION_ID:#x}.\n\n"
        f"```sql\n{schema.SCHEMA.strip()}\n```\n"
    )


def _command(name: str, command: Any) -> str:
    paragraphs = _paragraphs(command.help)
    arguments = [p for p in command.params if p.opts == [p.name]]
    options = [p for p in command.params if p.opts != [p.name]]
    words = " ".join(_metavar(a) if a.required else f"[{_metavar(a)}]" for a in arguments)
    text = f"\n## {name}\n\n"
    for paragraph in paragraphs:
        example = paragraph.removeprefix(_KEPT_AS_WRITTEN).strip()
        is_example = example.startswith("reludiag ")
        text += f"```text\n{example}\n```\n\n" if is_example else f"{paragraph}\n\n"
    text += f"`reludiag {name} {words} [OPTIONS]`\n\n".replace("  ", " ")
    if arguments:
        rows = ((f"`{_metavar(a)}`", a.help) for a in arguments)
        text += _rows(("Argument", "Meaning"), rows) + "\n"
    return text + _option_table(options)


def _option_table(options: Iterable[Any]) -> str:
    rows = []
    for option in options:
        key = option.opts[0].removeprefix("--")
        names = "`, `".join([*option.opts, *option.secondary_opts])
        value = "" if option.is_flag else f" `{_metavar(option)}`"
        dot = "" if key in COMMAND_LINE_ONLY else " ·"
        default = option.default
        default_text = "" if default in (None, False, ()) else f" Default: `{_shown(default)}`."
        repeatable = " May be repeated." if option.multiple and "epeat" not in option.help else ""
        rows.append((f"`{names}`{value}{dot}", f"{option.help}{repeatable}{default_text}"))
    return _rows(("Option", "Meaning"), rows)


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    kind = parameter.type_descriptor.annotation
    numbers = {"float": "NUMBER", "int": "N"}
    name = str(parameter.name).upper()
    return numbers.get(getattr(kind, "__name__", ""), name)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _columns(columns: Sequence[Column]) -> str:
    rows = ((f"`{c.name}`", c.dtype, c.meaning) for c in columns)
    return _rows(("Column", "dtype", "Meaning"), rows)


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a help text, each on one line, examples as they are written."""
    parts = text.split("\n\n")
    return [p if p.startswith(_KEPT_AS_WRITTEN) else " ".join(p.split()) for p in parts]


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(c) for c in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")

"""The table of formats: what each promises, and that options and settings follow from it."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import typer
from reludiag_cli.app import app
from reludiag_cli.settings import COMMAND_LINE_ONLY

import reludiag
from reludiag.reports.run import formats
from reludiag.reports.run.formats import FORMATS, OPTIONS, Format, ReportOptions
from tests.planted_runs import NEVER, dying, planted_run

RUN = planted_run({"a": [(0, NEVER), (3, NEVER), (NEVER, NEVER)], "b": dying(30, 6)}, 6)
BEGINS = {
    "csv": b"site,unit,verdict",
    "parquet": b"PAR1",
    "html": b"<!DOCTYPE html>",
    "svg": b"<svg",
    "junit": b"<?xml",
    "markdown": b"### reludiag",
    "json": b'{"schema_version"',
}

each_format = pytest.mark.parametrize("each", FORMATS, ids=lambda each: each.name)


def needed(each: Format) -> None:
    if each.library:
        pytest.importorskip(each.library)


@each_format
def test_a_file_is_of_the_format_that_its_name_ends_in(each: Format, tmp_path: Path) -> None:
    needed(each)
    target = tmp_path / f"report{each.ending.upper()}"
    RUN.write(target)
    content = target.read_bytes()
    assert content.startswith(BEGINS.get(each.name, b""))
    assert len(content) > 100
    RUN.write(tmp_path / "other", each.name)
    assert (tmp_path / "other").stat().st_size == len(content)


@each_format
def test_an_open_stream_is_written_to_and_left_open(each: Format, tmp_path: Path) -> None:
    needed(each)
    stream: IO[Any] = io.BytesIO() if each.is_binary else io.StringIO()
    RUN.write(stream, each.name)
    assert stream.tell() > 100


@each_format
def test_what_is_written_on_the_way_to_an_error_leaves_the_old_file(
    each: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed(each)
    target = tmp_path / f"report{each.ending}"
    target.write_text("old")
    writer = each.writer()

    def broken(diagnosis: reludiag.Diagnosis, stream: IO[Any], choices: ReportOptions) -> None:
        writer(diagnosis, stream, choices)
        raise RuntimeError

    module, _, function = each.path.partition(":")
    monkeypatch.setattr(sys.modules[module], function, broken)
    with pytest.raises(RuntimeError):
        RUN.write(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_names_and_endings_are_of_one_format_each() -> None:
    assert len({each.name for each in FORMATS}) == len(FORMATS)
    assert len({each.ending for each in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("command", ["scan", "report"])
def test_each_option_is_one_of_scan_and_of_report(command: str) -> None:
    commands: Any = typer.main.get_command(app)
    helps = {option.opts[0]: option.help for option in commands.commands[command].params}
    for each in OPTIONS:
        assert helps[f"--{each.name}"] == each.help


def test_no_configuration_sets_where_a_report_goes() -> None:
    assert {each.name for each in OPTIONS} <= COMMAND_LINE_ONLY


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    """As a device is: /dev/null must not become a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        RUN.write(pipe, "json")
        assert reader.communicate()[0].startswith('{"schema_version"')
    assert pipe.is_fifo()


def test_what_is_no_format_is_refused_with_what_is() -> None:
    with pytest.raises(reludiag.UsageError, match=", ".join(each.name for each in FORMATS)):
        RUN.write("report.html", "yaml")
    with pytest.raises(
        reludiag.UsageError, match=re.escape(", ".join(each.ending for each in FORMATS))
    ):
        RUN.write("report")
    with pytest.raises(reludiag.UsageError, match="as format"):
        RUN.write(io.StringIO())


def test_limits_reach_the_formats_that_judge(tmp_path: Path) -> None:
    RUN.write(tmp_path / "gate.xml", fail_over=["b=100%", "0"])
    assert 'failures="2"' in (tmp_path / "gate.xml").read_text()  # the whole model, and a
    RUN.write(tmp_path / "gate.md", fail_over="1%")
    assert "Over the limit" in (tmp_path / "gate.md").read_text()
    with pytest.raises(reludiag.UsageError, match="no site name matches"):
        RUN.write(tmp_path / "typo.xml", fail_over="encoder=5%")


def test_the_table_imports_none_of_the_formats() -> None:
    code = "import reludiag.reports.run.formats, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert formats.__name__ in loaded
    assert not loaded & {each.path.partition(":")[0] for each in FORMATS} | loaded & {"pandas"}


def test_a_page_is_written_without_the_analysis_of_several_runs() -> None:
    """Which takes longer to import than the page to write."""
    code = """
import io, sys
from tests.test_formats import RUN
for name in [n for n in sys.modules if n.startswith("reludiag.experiments")]: del sys.modules[name]
RUN._repr_html_()
RUN.write(io.StringIO(), "html")
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [n for n in done.stdout.split() if n.startswith("reludiag.experiments")]

"""The README: every command and every block of code in it runs, as it stands there."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reludiag_cli.app import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "sample_models" / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is after `make demo`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "sample_models").symlink_to(ROOT / "sample_models")
    (folder / "demo").mkdir()
    for options in (
        ["--lr", "0.1", "--checkpoint", "demo/digits.pt", "--recording", "demo/run.reludiag"],
        ["--lr", "0.001", "--recording", "demo/slow.reludiag"],
    ):
        subprocess.run(
            [sys.executable, "sample_models/digits.py", *options],
            check=True, cwd=folder,
        )  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_every_command_of_the_readme_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    ran = 0
    for command in commands(PAGES[0]):
        if command[0] == "make":
            # Not run from inside a test, but it must be there.
            subprocess.run(["make", "-n", *command[1:]], check=True, cwd=ROOT, capture_output=True)
            continue
        assert command[0] == "reludiag"
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code, command
        ran += 1
    assert ran >= 8
    assert (place / "dead.csv").exists()
    assert (place / "report.json").exists()


def test_every_python_block_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(PAGES[0], "python"):
        exec(block, names)
    for name in [name for name in names if name.startswith("test_")]:
        names[name]()
    assert (tmp_path / "dead.csv").exists()


@pytest.mark.slow
def test_every_command_of_the_sample_models_page_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a few steps instead of a whole training."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "sample_models"))  # as Python does for a script
    for command in commands(PAGES[1]):
        assert command[0] == "python"
        monkeypatch.setattr(sys, "argv", [*command[1:], "--steps", "2"])
        runpy.run_path(command[1], run_name="__main__")
        assert capsys.readouterr().out, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target

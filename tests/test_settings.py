"""Settings: from pyproject.toml and variables, what wins, and what is refused; completion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import reludiag
from tests.test_cli import ENVIRONMENT, reludiag_command

NETWORK = """
import torch
from torch import nn

def build():
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU())
    nn.init.constant_(model[0].bias, -100.0)
    return model

def batches(): return [torch.ones(10, 1)]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network whose units are all dead."""
    for name in os.environ:
        if name.startswith("RELUDIAG_"):
            monkeypatch.delenv(name)
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path


def configure(place: Path, text: str) -> None:
    (place / "pyproject.toml").write_text(f"[project]\nname = 'x'\n[tool.reludiag]\n{text}\n")


def in_force(folder: Path) -> dict[str, tuple[object, str]]:
    done = reludiag_command("config", "--json", cwd=folder)
    rows = json.loads(done.out)["settings"]
    return {row["setting"]: (row["value"], row["source"]) for row in rows}


def test_a_flag_comes_before_a_variable_before_the_file_before_the_default(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(*flags: str) -> int:
        scan = ("scan", "net.py:build", "--data", "net.py:batches", "--json", *flags)
        document = json.loads(reludiag_command(*scan, cwd=place).out)
        return document["thresholds"]["rare"]

    assert limit() == 0.001
    configure(place, "rare = 0.1")
    assert limit() == 0.1
    monkeypatch.setenv("RELUDIAG_RARE", "0.2")
    assert limit() == 0.2
    assert limit("--rare", "0.3") == 0.3


def test_the_file_gives_flags_lists_and_data(place: Path) -> None:
    configure(place, 'data = "net.py:batches"\nfail-over = ["1=100%", "4"]\nall-sites = true')
    assert reludiag_command("scan", "net.py:build", cwd=place).code == 0
    configure(place, 'data = "net.py:batches"\nfail-over = "3"')
    assert reludiag_command("scan", "net.py:build", cwd=place).code == 1
    configure(place, 'data = "net.py:batches"\nfail-over = 3')
    assert reludiag_command("scan", "net.py:build", cwd=place).code == 1
    assert reludiag_command("scan", "net.py:build", "--fail-over", "4", cwd=place).code == 0


def test_the_file_of_a_folder_above_counts_and_names_data_beside_itself(place: Path) -> None:
    configure(place, 'data = "net.py:batches"')
    below = place / "a" / "b"
    below.mkdir(parents=True)
    (place / "a" / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    done = reludiag_command("scan", place / "net.py:build", "--json", cwd=below)
    assert json.loads(done.out)["samples"] == 10
    (place / "a" / "pyproject.toml").write_text("[tool.reludiag]\nrare = 0.5\n")
    assert in_force(below)["data"] == (None, "default")
    assert in_force(below)["rare"] == ("0.5", "file")


def test_noise_on_the_command_line_comes_before_data_of_the_file(place: Path) -> None:
    configure(place, 'data = "net.py:batches"')
    done = reludiag_command("scan", "net.py:build", "--input-shape", "1", cwd=place)
    assert done.code == 0 and "RANDOM INPUT" in done.out
    both = ("--input-shape", "1", "--data", "net.py:batches")
    assert reludiag_command("scan", "net.py:build", *both, cwd=place).code == 2


def test_a_variable_holds_several_values_with_spaces_between(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELUDIAG_FAIL_OVER", "1=100% 3")
    monkeypatch.setenv("RELUDIAG_ALL_SITES", "yes")
    monkeypatch.setenv("RELUDIAG_DEVICE", "")
    assert in_force(place)["fail-over"] == (["1=100%", "3"], "variable")
    assert in_force(place)["all-sites"] == (True, "variable")
    assert in_force(place)["device"] == (None, "default")
    scan = ("scan", "net.py:build", "--data", "net.py:batches")
    assert reludiag_command(*scan, cwd=place).code == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fail_over = '5%'", "not a setting of reludiag. Did you mean fail-over?"),
        ("colour = 'red'", "Expected one of all, all-sites"),
        ("csv = 'x.csv'", "on the command line only"),
        ("rare = 3", "to 3: "),
        ("rare = true", "expected one value"),
        ("rare = 'few'", "to 'few'"),
        ("limit = 1.5", "to 1.5: "),
        ("strict = 'perhaps'", "expected true or false"),
        ("fail-over = [['5%']]", "a list of texts"),
        ("[tool.reludiag.scan]\nrare = 0.1", "not a setting of reludiag"),
        ("rare = ", "cannot be read"),
    ],
)
def test_what_cannot_be_set_is_refused_with_a_sentence(place: Path, text: str, words: str) -> None:
    configure(place, text)
    done = reludiag_command("scan", "net.py:build", "--data", "net.py:batches", cwd=place)
    assert (done.code, done.out) == (2, "")
    assert words in done.sentence
    assert "pyproject.toml" in done.err.replace("\n", "").replace("│", "").replace(" ", "")


def test_a_mistyped_variable_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELUDIAG_FAILOVER", "5%")
    done = reludiag_command("report", "run.reludiag", cwd=place)
    assert done.code == 2
    assert "RELUDIAG_FAILOVER sets failover" in done.sentence
    assert "Did you mean fail-over?" in done.sentence


def test_help_and_the_version_need_no_good_configuration(place: Path) -> None:
    configure(place, "colour = 'red'")
    assert reludiag_command("--help", cwd=place).code == 0
    assert reludiag_command("--version", cwd=place).code == 0


def test_config_shows_each_setting_with_its_source(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(place, "rare = 0.25\ndormant = '[bold]0[/]'")
    assert "sets dormant to '[bold]0[/]'" in reludiag_command("config", cwd=place).sentence
    configure(place, "rare = 0.25")
    monkeypatch.setenv("RELUDIAG_SEEDS", "7")
    monkeypatch.setenv("RELUDIAG_STORAGE", "postgresql://me:secret@host/db")
    done = reludiag_command("config", cwd=place)
    assert done.code == 0 and max(map(len, done.out.splitlines())) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.strip()}
    assert rows["seeds"] == ["7", "RELUDIAG_SEEDS"]
    assert rows["rare"][0] == "0.25" and rows["strict"] == ["true", "default"]
    assert rows["batch-size"][:2] == ["scan:", "64,"]
    assert "secret" not in done.out + reludiag_command("config", "--json", cwd=place).out


def test_every_command_takes_its_defaults_from_the_settings(place: Path) -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    nn.init.constant_(model[0].bias, -100.0)
    with reludiag.Monitor(model, path=place / "run.reludiag", probe=torch.ones(4, 1)) as monitor:
        monitor.step()
    configure(place, "fail-on-new-deaths = true\nfail-over = '1'\nall = true")
    assert reludiag_command("report", "run.reludiag", cwd=place).code == 1
    alive = reludiag.scan(nn.Sequential(nn.Identity(), nn.ReLU()), [torch.ones(4, 2)])
    alive.to_json(place / "alive.json")
    assert reludiag_command("diff", "alive.json", "run.reludiag", cwd=place).code == 1


@pytest.mark.parametrize(
    ("words", "completed"),
    [("reludiag rep", ["report", "replay"]), ("reludiag report --ju", ["--junit"])],
)
def test_a_shell_completes_commands_and_options(words: str, completed: list[str]) -> None:
    program = "import sys; sys.argv[0] = 'reludiag'; from reludiag_cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **ENVIRONMENT,
            "_RELUDIAG_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
        capture_output=True,
        text=True,
    )
    assert sorted(done.stdout.split()) == sorted(completed), done.stderr

"""The command line: what it prints where, its exit codes, and what bad input gets."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from reludiag_cli.app import main
from torch import nn

import reludiag

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "COLUMNS": "80"}

FILE = """
import torch
from torch import nn

def build(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

def batches(n=3):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(50, 4, generator=generator), torch.zeros(50)) for _ in range(n)]

def empty(): return []
def wrong_shape(): return [torch.randn(5, 3)]
def with_nan(): return [torch.full((5, 4), float("nan"))]
def used_up(): return iter(batches())
def raising(): raise LookupError("my own mistake")
def plain(): return nn.Linear(4, 4)
def endless():
    import sys, time
    print("drawing", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.05)
        yield torch.randn(2, 4)
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The text of the panel, unwrapped."""
        lines = [line.strip("│╭╮╰╯─ ") for line in self.err.splitlines()]
        return " ".join(line for line in lines if line)


def reludiag_command(*arguments: object, cwd: Path | None = None, **env: str) -> Done:
    """Run the command line; in a process of its own only where the environment matters."""
    if env:
        process = subprocess.run(
            [sys.executable, "-m", "reludiag", *map(str, arguments)],
            capture_output=True,
            encoding=env.get("PYTHONIOENCODING", "utf-8"),
            cwd=cwd or ROOT,
            env={**ENVIRONMENT, **env},
        )
        return Done(process.returncode, process.stdout, process.stderr)
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or ROOT),
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit) as exited,
    ):
        patch.setattr(sys, "argv", ["reludiag", *map(str, arguments)])
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("COLUMNS", "80")
        main()
    return Done(int(exited.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model file, its weights (three dead units) and a recording."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "net.py").write_text(FILE)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].bias[[1, 3, 4]] = -100.0
    torch.save(model.state_dict(), folder / "weights.pt")
    with reludiag.Monitor(model, path=folder / "run.reludiag", every=2) as monitor:
        for _ in range(4):
            model(torch.randn(100, 4))
            monitor.step()
    return folder


def scan(place: Path, *arguments: object, data: str | None = "batches") -> Done:
    given = [] if data is None else ["--data", f"net.py:{data}"]
    return reludiag_command("scan", "net.py:build", "weights.pt", *given, *arguments, cwd=place)


def test_the_report_goes_to_stdout_and_fits_80_columns(place: Path) -> None:
    done = scan(place)
    assert done.code == 0
    assert done.err == ""
    assert "3 of 8 units dead (38 %)" in done.out
    assert "1, 3, 4" in done.out
    assert "\x1b" not in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 80


def test_the_csv_has_a_row_per_unit_that_is_not_alive(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "dead.csv"
    assert scan(place, "--csv", path).code == 0
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [(r["site"], r["unit"], r["verdict"], r["samples"], r["fired"]) for r in rows] == [
        ("1", unit, "dead", "150", "0") for unit in "134"
    ]
    assert list(rows[0])[:3] == ["site", "unit", "verdict"]
    assert float(rows[0]["firing_rate_upper"]) == pytest.approx(1 - 0.05 ** (1 / 150), rel=1e-9)
    scan(place, "--csv", path, "--all")
    assert len(list(csv.DictReader(path.open(encoding="utf-8")))) == 8


def test_csv_and_json_can_go_to_stdout_alone(place: Path, tmp_path: Path) -> None:
    done = scan(place, "--csv", "-")
    assert [row["unit"] for row in csv.DictReader(io.StringIO(done.out))] == ["1", "3", "4"]
    document = json.loads(scan(place, "--json").out)
    assert document["schema_version"] == 1
    assert document["totals"]["dead"] == 3
    assert [unit["unit"] for unit in document["units"]] == [1, 3, 4]
    assert scan(place, "--json", "--output", tmp_path / "r.json").out == ""
    assert json.loads((tmp_path / "r.json").read_text()) == document


def test_the_page_is_written_beside_the_other_reports(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = scan(place, "--html", page, "--csv", tmp_path / "dead.csv")
    assert done.code == 0
    assert "3 of 8 units dead" in done.out
    assert "3 of 8 units are dead (38 %)" in page.read_text(encoding="utf-8")
    assert reludiag_command("report", "run.reludiag", "--html", page, cwd=place).code == 0
    assert "When did they die?" in page.read_text(encoding="utf-8")
    alone = reludiag_command("report", "run.reludiag", "--html", "-", cwd=place)
    assert alone.out.startswith("<!DOCTYPE html>")
    assert alone.out.rstrip().endswith("</html>")


def test_a_figure_is_written_in_the_format_of_its_name(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for kind in ("lifelines", "sites", "rates"):
        path = tmp_path / f"{kind}.svg"
        done = reludiag_command("plot", "run.reludiag", "--kind", kind, "-o", path, cwd=place)
        assert (done.code, done.out) == (0, "")
        assert "<svg" in path.read_text(encoding="utf-8")
    done = reludiag_command("plot", "run.reludiag", "-o", "figure.gif", cwd=place)
    assert done.code == 2
    assert "ends in .svg, .pdf, .png" in done.sentence
    done = reludiag_command("plot", "run.reludiag", "run.reludiag", "-o", "x.svg", cwd=place)
    assert done.code == 2
    assert "--kind sweep for several" in done.sentence


def test_paths_are_absolute_or_of_the_current_folder(place: Path, tmp_path: Path) -> None:
    absolute = reludiag_command(
        "scan", place / "net.py:build", place / "weights.pt", "--data", f"{place}/net.py:batches",
        cwd=tmp_path,
    )  # fmt: skip
    assert absolute.code == 0
    assert absolute.out.splitlines()[3:] == scan(place).out.splitlines()[3:]
    module = reludiag_command("scan", "net:build", "weights.pt", "--data", "net:batches", cwd=place)
    assert module.out == scan(place).out


def test_arguments_reach_the_model_and_the_data(place: Path) -> None:
    done = reludiag_command(
        "scan", "net.py:build", "--model-arg", "width=5", "--data", "net.py:batches",
        "--data-arg", "n=1", "--json", cwd=place,
    )  # fmt: skip
    document = json.loads(done.out)
    assert document["totals"]["units"] == 5
    assert document["samples"] == 50
    assert json.loads(scan(place, "--limit", 2, "--json").out)["samples"] == 100


def test_inputs_from_a_file_of_another_precision(place: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(70, 4)))
    done = scan(place, "--data", tmp_path / "x.npy", "--dtype", "bfloat16", "--json", data=None)
    assert json.loads(done.out)["samples"] == 70
    assert json.loads(done.out)["totals"]["dead"] == 3


def test_random_input_says_that_it_is_no_evidence(place: Path) -> None:
    done = scan(place, "--input-shape", "4", data=None)
    assert done.code == 0
    assert "RANDOM INPUT" in done.out
    assert "3 of 8 units dead" in done.out
    assert "95 %" not in done.out  # of noise there is no bound that holds for data
    assert any(
        "not evidence of death" in note
        for note in json.loads(scan(place, "--input-shape", "4", "--json", data=None).out)["notes"]
    )


def test_several_checkpoints_are_a_timeline(place: Path, tmp_path: Path) -> None:
    state = torch.load(place / "weights.pt")
    paths = []
    for index, dead in enumerate([[], [1], [1, 3], [3]]):
        bias = state["0.bias"].clone()
        bias[[1, 3, 4]] = 1.0
        bias[dead] = -100.0
        paths.append(tmp_path / f"{index}.pt")
        torch.save({"model": {**state, "0.bias": bias}, "step": 10 * index}, paths[-1])
    done = reludiag_command(
        "scan", "net.py:build", *paths, "--data", "net.py:batches", "--json", "--all", cwd=place
    )
    document = json.loads(done.out)
    assert [row["step"] for row in document["timeline"]] == [0, 10, 20, 30]
    assert [row["dead"] for row in document["timeline"]] == [0, 1, 2, 1]
    units = {unit["unit"]: unit for unit in document["units"]}
    assert (units[1]["died_step"], units[1]["revived_step"]) == (10, 30)
    assert (units[3]["died_step"], units[3]["born_dead"]) == (20, False)


def test_fail_over_exits_1_on_a_share_or_a_number(place: Path) -> None:
    for limit, code in [("2", 1), ("3", 0), ("37%", 1), ("37.5%", 0), ("0", 1), ("100%", 0)]:
        assert scan(place, "--fail-over", limit).code == code, limit
    assert "3 of 8 units are dead" in scan(place, "--fail-over", "5%").err
    assert reludiag_command("report", place / "run.reludiag", "--fail-over", "5%").code == 1


def test_report_shows_the_recording(place: Path) -> None:
    done = reludiag_command("report", place / "run.reludiag")
    assert done.code == 0
    assert "Deaths over time" in done.out
    assert done.out == str(reludiag.load(place / "run.reludiag"))


def test_init_says_how_a_model_was_initialized_and_what_is_dead_at_birth(place: Path) -> None:
    without = reludiag_command("init", "net.py:build", cwd=place)
    assert without.code == 0 and "pytorch" in without.out
    assert "Without data it is unknown" in " ".join(without.out.split())
    done = reludiag_command(
        "init", "net.py:build", "--data", "net.py:batches", "--seeds", "2", "--json", cwd=place
    )
    found = json.loads(done.out)
    assert found["samples"] == 150
    assert [layer["scheme"] for layer in found["layers"]] == ["pytorch"] * 2
    assert [row["site"] for row in found["births"]] == ["1"]
    assert len(found["redraws"]) == 4 * 2
    noise = reludiag_command("init", "net.py:build", "--input-shape", "4", cwd=place)
    assert "RANDOM INPUT" in noise.out and max(map(len, noise.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ("net.py:empty", 3, "gave no batch"),
        ("net.py:wrong_shape", 3, "refused batch 0"),
        ("net.py:with_nan", 3, "NaN or infinite"),
        ("net.py:raising", 3, "my own mistake"),
    ],
)
def test_init_says_what_is_wrong_with_the_data(
    place: Path, data: str, code: int, words: str
) -> None:
    done = reludiag_command("init", "net.py:build", "--data", data, cwd=place)
    assert done.code == code and words in done.sentence and "bug" not in done.err


def test_sites_lists_modules_functions_and_their_units(place: Path, tmp_path: Path) -> None:
    static = reludiag_command("sites", "net.py:build", cwd=place)
    assert static.code == 0
    assert "each once" in static.out
    done = reludiag_command("sites", "net.py:build", "--input-shape", "4", "--json", cwd=place)
    assert json.loads(done.out)["sites"] == [
        {"site": "1", "units": 8, "unit_axis": "1", "activation": "ReLU", "can_die": True,
         "producer": "0", "norm": None, "selects_from": None}
    ]  # fmt: skip
    (tmp_path / "f.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.relu = nn.ReLU(); self.fc = nn.Linear(4, 4)\n"
        "        self.layer = nn.TransformerEncoderLayer(4, 1, 8)\n"
        "    def forward(self, x):\n"
        "        return self.layer(F.relu(self.relu(self.fc(x))).clamp(min=0).clamp(-1, 1))\n"
    )
    # Without a batch it is not known what feeds a function.
    for arguments, owners in (([], ("Net", "Net")), (["--input-shape", "4"], ("fc", "fc"))):
        done = reludiag_command("sites", "f.py:Net", *arguments, "--json", cwd=tmp_path)
        found = {site["site"] for site in json.loads(done.out)["sites"]}
        assert found == {"relu", f"{owners[0]}:relu", f"{owners[1]}:clamp", "layer:relu"}
    assert "No rectifier" in reludiag_command("sites", "torch.nn:Flatten").out


def test_a_unit_axis_can_be_overruled(place: Path) -> None:
    def axis_of(value: str) -> Done:
        return reludiag_command(
            "sites", "net.py:build", "--input-shape", "5,4", "--unit-axis", value, "--json",
            cwd=place,
        )  # fmt: skip

    assert json.loads(axis_of("1=1").out)["sites"][0]["units"] == 5
    assert json.loads(axis_of("1=-1").out)["sites"][0]["units"] == 8
    for nonsense in ("1", "1=x", "2=1"):
        done = axis_of(nonsense)
        assert (done.code, done.out) == (2, "")
        assert "Traceback" not in done.err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_pipe_of_any_encoding_gets_its_report(place: Path, encoding: str) -> None:
    done = reludiag_command("report", place / "run.reludiag", PYTHONIOENCODING=encoding)
    assert done.code == 0, done.err
    assert "Deaths over time" in done.out


def test_no_color_is_heeded(place: Path) -> None:
    done = reludiag_command(
        "report", place / "run.reludiag", NO_COLOR="1", FORCE_COLOR="1", TERM="xterm-256color"
    )
    assert "\x1b[31m" not in done.out
    assert "\x1b[1;31m" not in done.out


# What bad input gets: one panel, the exit code of the design, nothing written, no traceback


def bad_inputs(place: Path) -> dict[str, tuple[list[object], int, str]]:
    weights, net, run = "weights.pt", "net.py:build", "run.reludiag"
    data = ["--data", "net.py:batches"]
    (place / "cut.pt").write_bytes((place / weights).read_bytes()[:200])
    (place / "empty.pt").write_bytes(b"")
    (place / "garbage.pt").write_bytes(b"not a checkpoint at all, but text")
    (place / "cut.reludiag").write_bytes((place / run).read_bytes()[:5000])
    (place / "text.reludiag").write_text("not SQLite")
    torch.save({"conv.weight": torch.zeros(2)}, place / "other.pt")
    torch.save(nn.Linear(2, 2), place / "whole.pt")
    (place / "newer.reludiag").write_bytes((place / run).read_bytes())
    with sqlite3.connect(place / "newer.reludiag") as db:
        db.execute("PRAGMA user_version = 99")
    sqlite3.connect(place / "other.sqlite").execute("CREATE TABLE t (x)")
    scan_ = ["scan", net, weights]
    return {
        "no such checkpoint": (["scan", net, "gone.pt", *data], 3, "gone.pt does not exist"),
        "no such model file": (["scan", "gone.py:build", weights, *data], 3, "does not exist"),
        "attribute missing": (["scan", "net.py:biuld", weights, *data], 3, "Did you mean build?"),
        "no attribute": (["scan", "net.py", weights, *data], 3, "names no attribute"),
        "factory raising": (["scan", "net.py:raising", weights, *data], 3, "my own mistake"),
        "no model": (["scan", "net.py:empty", weights, *data], 3, "returned list"),
        "truncated": (["scan", net, "cut.pt", *data], 3, "truncated"),
        "empty": (["scan", net, "empty.pt", *data], 3, "is empty"),
        "garbage": (["scan", net, "garbage.pt", *data], 3, "neither a PyTorch file"),
        "whole model": (["scan", net, "whole.pt", *data], 3, "another architecture"),
        "other architecture": (["scan", net, "other.pt", *data], 3, "another architecture"),
        "no rectifier": (["scan", "net.py:plain", *data], 3, "no rectifier"),
        "no data": (scan_, 2, "no data was given"),
        "data empty": ([*scan_, "--data", "net.py:empty"], 3, "gave no batch"),
        "wrong shape": ([*scan_, "--data", "net.py:wrong_shape"], 3, "shape [5, 3] float32"),
        "NaN": ([*scan_, "--data", "net.py:with_nan"], 3, "NaN or infinite"),
        "data raising": ([*scan_, "--data", "net.py:raising"], 3, "my own mistake"),
        "data file missing": ([*scan_, "--data", "gone.npy"], 3, "gone.npy does not exist"),
        "two kinds of data": ([*scan_, *data, "--input-shape", "4"], 2, "both given"),
        "input shape": ([*scan_, "--input-shape", "3x4"], 2, "such as 3,224,224"),
        "model arg": ([*scan_, *data, "--model-arg", "width"], 2, "KEY=VALUE"),
        "dtype": ([*scan_, *data, "--dtype", "int3"], 2, "expected one of float32"),
        "device": ([*scan_, *data, "--device", "nowhere"], 2, "--device nowhere cannot be used"),
        "fail over": ([*scan_, *data, "--fail-over", "lots"], 2, "such as 5%"),
        "fail over share": ([*scan_, *data, "--fail-over", "101%"], 2, "from 0% to 100%"),
        "output folder": ([*scan_, *data, "--csv", "no/dead.csv"], 2, "folder no does not exist"),
        "output refused": ([*scan_, *data, "--csv", "/proc/dead.csv"], 2, "cannot write /proc"),
        "two on stdout": ([*scan_, *data, "--csv", "-", "--json"], 2, "only one of"),
        "output is folder": ([*scan_, *data, "--csv", "."], 2, "it is a folder"),
        "recording missing": (["report", "gone.reludiag"], 3, "does not exist"),
        "recording cut": (["report", "cut.reludiag"], 3, "may be incomplete"),
        "no recording": (["report", "text.reludiag"], 3, "so it is not an SQLite file"),
        "other SQLite": (["report", "other.sqlite"], 3, "not a recording of reludiag"),
        "newer schema": (["report", "newer.reludiag"], 3, "schema version 99"),
        "unknown option": (["scan", "--no-such-option"], 2, "No such option"),
        "unknown command": (["scam"], 2, "No such command"),
    }  # fmt: skip


def test_bad_input_gets_one_panel_and_its_exit_code(place: Path) -> None:
    for name, (arguments, code, sentence) in bad_inputs(place).items():
        before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file() and p.suffix != ".pyc"}
        done = reludiag_command(*arguments, cwd=place)
        assert done.code == code, (name, done.err)
        assert sentence in done.sentence, (name, done.sentence)
        assert done.out == "", name
        assert done.err.count("╭") == 1, name
        # The user's own traceback is shown where it is the user's code that raised.
        assert ("Traceback" in done.err) == ("raising" in name), name
        after = {p: p.read_bytes() for p in place.rglob("*") if p.is_file() and p.suffix != ".pyc"}
        assert after == before, name


def test_an_old_file_survives_a_failed_export(place: Path, tmp_path: Path) -> None:
    old = tmp_path / "dead.csv"
    old.write_text("precious")
    assert scan(place, "--csv", old, data="wrong_shape").code == 3
    assert old.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(place: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    done = scan(place, "--csv", tmp_path / "dead.csv")
    tmp_path.chmod(0o755)
    assert done.code == 2
    assert "not writable" in done.sentence


def test_ctrl_c_exits_130_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "reludiag", "scan", "net.py:build", "weights.pt",
         "--data", "net.py:endless", "--csv", tmp_path / "dead.csv"],
        cwd=place, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stderr.readline() == "drawing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_internal_error_exits_4_and_shows_its_traceback(place: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'reludiag.recording': raise AssertionError('a bug')\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    done = reludiag_command(
        "report", place / "run.reludiag", PYTHONPATH=f"{tmp_path}:{ROOT}:{ROOT / 'cli'}"
    )
    assert done.code == 4
    assert "Traceback" in done.err
    assert "Internal error in reludiag" in done.err


COMMANDS = (
    *("scan", "sites", "report", "watch", "diff", "compare", "init", "sweep", "replay", "plot"),
    "config",
)


def test_the_list_of_commands_says_whole_sentences() -> None:
    done = reludiag_command("--help")
    listed = done.out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(line.endswith(".") and "..." not in line for line in listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_and_says_what_its_values_are(command: str) -> None:
    done = reludiag_command(command, "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert done.out.startswith(f"Usage: reludiag {command} ")
    options = done.out.split("Options:\n")[1]
    assert not re.search(r"<(str|int|float|list)\b", options)
    for line in re.findall(r"^  reludiag .*", done.out, re.MULTILINE):
        assert line.startswith(f"  reludiag {command} ")  # an example, in lines of its own


def test_each_file_that_was_written_is_named_on_stderr(place: Path, tmp_path: Path) -> None:
    names = ("u.csv", "r.html", "t.svg", "j.xml", "s.md", "r.json")
    csv, html, svg, junit, markdown, output = (tmp_path / name for name in names)
    done = scan(
        place, "--csv", csv, "--svg", svg, "--html", html, "--junit", junit, "--markdown", markdown,
        "--json", "-o", output,
    )  # fmt: skip
    assert (done.code, done.out) == (0, "")
    assert done.err.splitlines() == [f"wrote {tmp_path / name}" for name in names]
    assert all((tmp_path / name).stat().st_size > 0 for name in names)
    assert scan(place, "--csv", "-").err == ""
    assert scan(place, "--json").err == ""


def test_the_name_of_a_file_sends_no_command_to_the_terminal(place: Path, tmp_path: Path) -> None:
    done = scan(place, "--csv", tmp_path / "\x1b[31mred")
    assert "wrote" in done.err
    assert "\x1b" not in done.err


@pytest.mark.parametrize(
    ("command", "code"),
    [("sweep", 1), ("replay", 3)],  # a replay stops as soon as every run would crash
)
def test_a_training_that_always_crashes_says_why(command: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def build():\n    return None\n")
    done = reludiag_command(
        command, "bad.py:build", "--seeds", 1, "--workers", 1, "--out", "here", cwd=tmp_path
    )
    assert done.code == code
    said = done.out if command == "sweep" else done.err
    assert "TypeError: build() takes 0" in " ".join(said.replace("│", "").split())


def test_a_recording_given_as_a_checkpoint_is_told_from_one(place: Path) -> None:
    done = reludiag_command(
        "scan", "net.py:build", "run.reludiag", "--data", "net.py:batches", cwd=place
    )
    assert done.code == 3
    assert "try `reludiag report run.reludiag`" in done.sentence


def test_scan_takes_groups_kinds_of_samples_and_turns_of_loops(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Loop(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU())\n"
        "    def forward(self, x):\n"
        "        return self.layer(self.layer(x))\n"
        "def batches():\n"
        "    return [{'x': torch.randn(6, 4), 'series': torch.arange(6) // 2}]\n"
    )
    model, data = f"{tmp_path}/loop.py:Loop", f"{tmp_path}/loop.py:batches"

    def sites(*options: str) -> list[tuple[str, int]]:
        done = reludiag_command("scan", model, "--data", data, "--json", *options)
        assert done.code == 0, done.err
        return [(site["site"], site["samples"]) for site in json.loads(done.out)["sites"]]

    assert sites() == [("layer.1", 6)]
    assert sites("--group-by", "series") == [("layer.1", 3)]
    assert sites("--samples", "tokens") == [("layer.1", 12)]
    assert sites("--no-merge-calls") == [("layer.1", 6), ("layer.1#1", 6)]
    assert reludiag_command("scan", model, "--data", data, "--samples", "pixels").code == 2

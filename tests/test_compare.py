"""Compare: recordings of single runs become the table that a sweep has."""

import csv
import io
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import reludiag
from reludiag.experiments.trial_table import TRIAL_COLUMNS
from tests.test_cli import reludiag_command

PROBE = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def record(
    path: Path,
    *,
    lr: float = 0.1,
    rates: tuple[float, ...] = (),
    states: tuple[tuple[int, ...], ...] = ((), ()),
    facts: dict[str, Any] | None = None,
    probe: torch.Tensor | None = PROBE,
) -> Path:
    """A run of 20 units that can die and 4 that cannot; `states` are the silent units by step.

    A negative unit stands for one whose bias is NaN, counted from the end.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 4), nn.LeakyReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def silence(units: tuple[int, ...]) -> None:
        with torch.no_grad():
            model[0].bias.zero_()
            for unit in units:
                model[0].bias[unit] = -100.0 if unit >= 0 else math.nan

    silence(states[0])
    with reludiag.Monitor(model, optimizer, path=path, every=1, probe=probe):
        for step, units in enumerate(states[1:]):
            if rates:
                optimizer.param_groups[0]["lr"] = rates[step]
            silence(units)
            if probe is None:
                model(PROBE)
            optimizer.step()  # without gradients: only what is done by hand changes
    with sqlite3.connect(path) as db:
        rows = [(key, json.dumps(value)) for key, value in (facts or {}).items()]
        db.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", rows)
    db.close()
    return path


def row(path: Path) -> dict[str, Any]:
    (only,) = reludiag.compare([path]).to_dict("records")
    return {str(name): value for name, value in only.items()}


def test_a_recording_becomes_a_row_of_the_declared_columns(tmp_path: Path) -> None:
    """0 and 1 are born dead, 1 comes back, 2 dies and stays, 3 dies and comes back."""
    path = record(tmp_path / "a", states=((0, 1), (0, 2, 3), (0, 2)))
    trials = reludiag.compare([path])
    assert list(trials.dtypes.items()) == [
        (column.name, pd.Series(dtype=column.dtype).dtype) for column in TRIAL_COLUMNS
    ]
    found = row(path)
    assert {name: found[name] for name in ("units", "born", "new", "revived", "dead")} == {
        "units": 20, "born": 2, "new": 1, "revived": 2, "dead": 2,
    }  # fmt: skip
    assert found["dead_fraction"] == pytest.approx(0.1)
    assert (found["status"], found["steps"], found["nonfinite"]) == ("complete", 2, 0)
    assert (found["init"], found["recording"], found["error"]) == ("unknown", str(path), "")


def test_a_unit_that_was_born_dead_came_back_and_died_again_is_not_new(tmp_path: Path) -> None:
    found = row(record(tmp_path / "a", states=((5,), (), (5,))))
    assert (found["born"], found["new"], found["dead"], found["revived"]) == (1, 0, 1, 1)


def test_the_learning_rate_is_the_largest_that_a_step_used(tmp_path: Path) -> None:
    warm = record(tmp_path / "a", rates=(0.01, 0.3, 0.02), states=((),) * 4)
    assert row(warm)["lr"] == 0.3


def test_a_run_with_nan_at_its_end_has_diverged_and_has_no_dead_units(tmp_path: Path) -> None:
    found = row(record(tmp_path / "a", states=((3,), (3, -1))))
    assert (found["status"], found["nonfinite"]) == ("diverged", 1)
    assert found["dead"] == 1
    everything = row(record(tmp_path / "b", states=((), tuple(range(-1, -21, -1)))))
    assert (everything["nonfinite"], everything["dead"]) == (20, 0)


def test_what_the_recording_says_of_its_trial_is_taken_from_it(tmp_path: Path) -> None:
    found = row(record(tmp_path / "a", facts={"init": "kaiming", "seed": 7}))
    assert (found["init"], found["seed"]) == ("kaiming", 7)
    found = row(record(tmp_path / "b", facts={"trial": {"init": "lecun", "seed": 3, "lr": 9}}))
    assert (found["init"], found["seed"], found["lr"]) == ("lecun", 3, 0.1)


@pytest.mark.parametrize("status", ["running", "interrupted by ValueError"])
def test_a_run_that_did_not_end_is_kept_out_of_the_comparison(tmp_path: Path, status: str) -> None:
    whole = record(tmp_path / "a")
    broken = record(tmp_path / "b", facts={"status": status})
    trials = reludiag.compare([whole, broken])
    assert trials["status"].tolist() == ["complete", "crashed"]
    assert status in trials["error"].iloc[1]
    found = reludiag.effects(trials)
    assert (found.counted, found.crashed) == (1, 1)


def test_runs_of_different_lengths_are_compared_with_a_word_on_it(tmp_path: Path) -> None:
    paths = [record(tmp_path / name, states=((),) * n) for name, n in (("a", 2), ("b", 5))]
    notes = reludiag.effects(reludiag.compare(paths)).notes
    assert any("differ in steps, 1 to 4" in note for note in notes)


def test_runs_with_a_probe_and_without_are_compared_with_a_word_on_it(tmp_path: Path) -> None:
    judged = record(tmp_path / "a")
    trained = record(tmp_path / "b", probe=None)
    smaller = record(tmp_path / "c", probe=PROBE[:8])
    trials = reludiag.compare([judged, trained, smaller])
    assert trials["probe"].fillna(0).tolist() == [64, 0, 8]
    done = reludiag_command("compare", judged, trained)
    assert "1 of 2 runs judged their units on a probe" in " ".join(done.out.split()).replace(
        " │ │ ", " "
    )
    notes = reludiag.effects(reludiag.compare([judged, smaller])).notes
    assert any("differ in samples of the probe, 8 to 64" in note for note in notes)
    alike = reludiag.effects(reludiag.compare([judged, record(tmp_path / "d")])).notes
    assert not any("probe" in note for note in alike)


def test_what_a_recording_warns_of_is_said_of_the_runs_too(tmp_path: Path) -> None:
    warning = "On the probe, BatchNorm uses its running statistics."
    paths = [
        record(tmp_path / name, facts={"notes": notes})
        for name, notes in (("a", [warning, "Other."]), ("b", [warning]))
    ]
    notes = reludiag.effects(reludiag.compare(paths)).notes
    assert notes[:2] == (warning, "1 of 2 runs: Other.")


def test_the_same_recording_twice_is_refused(tmp_path: Path) -> None:
    path = record(tmp_path / "a")
    with pytest.raises(reludiag.UsageError, match="more than once"):
        reludiag.compare([path, tmp_path / "." / "a"])


def grid(folder: Path) -> list[Path]:
    """Six runs: units die at 1.0, and at 0.1 with one initialization."""
    dead = {("kaiming", 0.01): 0, ("kaiming", 0.1): 0, ("kaiming", 1.0): 12}
    dead |= {("normal", 0.01): 0, ("normal", 0.1): 8, ("normal", 1.0): 16}
    return [
        record(
            folder / f"{init}-{lr}",
            lr=lr,
            states=((), tuple(range(killed))),
            facts={"init": init},
        )
        for (init, lr), killed in dead.items()
    ]


def test_the_command_shows_what_the_runs_say_and_what_they_cannot(tmp_path: Path) -> None:
    done = reludiag_command("compare", *grid(tmp_path), "--csv", tmp_path / "runs.csv")
    assert (done.code, done.err) == (0, f"wrote {tmp_path / 'runs.csv'}\n")
    assert "6 runs: 3 learning rates, 2 initializations" in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert ["kaiming", "0", "%", "0", "%", "60", "%"] in rows
    assert ["normal", "0", "%", "40", "%", "80", "%"] in rows
    text = " ".join(done.out.replace("│", " ").split())
    assert "6 runs are too few to show whether the learning rate kills units" in text
    assert "kaiming up to 0.1; normal up to 0.01" in text
    with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
        assert [line["new"] for line in csv.DictReader(file)] == ["0", "0", "12", "0", "8", "16"]


def test_the_commands_json_is_one_document_and_its_csv_one_table(tmp_path: Path) -> None:
    paths = grid(tmp_path)
    document = json.loads(reludiag_command("compare", *paths, "--json").out)
    assert document["schema_version"] == 1
    assert document["totals"]["runs"] == 6
    strict = json.loads(reludiag_command("compare", *paths, "--json", "--safe", 0.9).out)
    assert [item["highest_safe"] for item in strict["safe"]] == [1.0, 1.0]
    table = reludiag_command("compare", *paths, "--csv", "-").out
    assert len(list(csv.DictReader(io.StringIO(table)))) == 6


def test_the_commands_page_is_one_file_with_the_heat_maps(tmp_path: Path) -> None:
    paths = grid(tmp_path)
    done = reludiag_command("compare", *paths, "--html", tmp_path / "runs.html")
    assert (done.code, done.err) == (0, f"wrote {tmp_path / 'runs.html'}\n")
    page = (tmp_path / "runs.html").read_text(encoding="utf-8")
    assert "6 runs are too few to show whether the learning rate kills units" in page
    assert len(page) < 100_000
    assert "6 runs" in done.out  # the report on the terminal is there all the same
    assert reludiag_command("compare", *paths, "--html", "-").out == page


def test_a_file_that_is_no_recording_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no")
    done = reludiag_command("compare", tmp_path / "x")
    assert done.code == 3
    assert "is not a recording" in done.sentence

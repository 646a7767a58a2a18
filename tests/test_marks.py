"""The user's own marks: what died from one to the next, exact on a probe, in every report."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import reludiag
from reludiag.diagnosis.from_json import open_diagnosis

PROBE = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))


def layer() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def stream(
    tasks: Sequence[tuple[str, int]], length: int = 5, **settings: Any
) -> reludiag.Diagnosis:
    """A run over tasks of so many steps, each with a name, and a number of units that are dead at
    the end of it."""
    model = layer()
    with torch.no_grad():
        model[0].bias.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    settings = {"every": 4, "probe": PROBE, "warn_over": None, **settings}
    with reludiag.Monitor(model, optimizer, **settings) as monitor:
        for name, dead in tasks:
            monitor.mark(name)
            for step in range(length):
                optimizer.zero_grad()
                model(PROBE).sum().backward()
                optimizer.step()
                if step == length - 1:
                    with torch.no_grad():
                        model[0].bias[:dead], model[0].bias[dead:] = -100.0, 1.0
    return monitor.diagnose()


def rows(diagnosis: reludiag.Diagnosis) -> list[tuple[Any, ...]]:
    table = diagnosis.marks.astype(object).where(diagnosis.marks.notna(), None)
    return list(table.itertuples(index=False, name=None))


def test_deaths_between_marks_are_exact_on_a_probe() -> None:
    diagnosis = stream([("one", 2), ("two", 5), ("three", 3)])
    assert rows(diagnosis) == [
        (0, "one", 5, 2, 2, 0), (5, "two", 10, 5, 3, 0), (10, "three", 15, 3, 0, 2)
    ]  # fmt: skip
    assert diagnosis.timeline["step"].tolist() == [0, 4, 5, 8, 10, 12, 15]


def test_without_a_probe_a_window_counts_for_the_mark_that_falls_into_it() -> None:
    diagnosis = stream([("one", 2), ("two", 2), ("three", 2)], length=6, probe=None, stats_every=1)
    assert diagnosis.timeline["step"].tolist() == [0, 4, 8, 12, 16, 18]
    assert diagnosis.marks["step"].tolist() == [0, 6, 12]
    assert diagnosis.marks["until"].tolist() == [6, 12, 18]
    assert diagnosis.marks["died"].tolist() == [0, 2, 0]
    assert diagnosis.marks["dead"].tolist() == [0, 2, 2]


def test_what_comes_before_the_first_mark_is_a_row_of_its_own() -> None:
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    with reludiag.Monitor(model, optimizer, every=4, probe=PROBE, warn_over=None) as monitor:
        for step in range(8):
            optimizer.zero_grad()
            model(PROBE).sum().backward()
            optimizer.step()
            if step in (2, 5):
                monitor.mark(f"after {step}")
    diagnosis = monitor.diagnose()
    assert [row[:3] for row in rows(diagnosis)] == [
        (0, None, 3), (3, "after 2", 6), (6, "after 5", 8)
    ]  # fmt: skip
    assert "before the first mark" in str(diagnosis)


def test_marks_of_the_same_step_are_all_kept() -> None:
    diagnosis = stream([("one", 0), ("two", 2)], length=0)
    assert diagnosis.marks["mark"].tolist() == ["one", "two"]


def test_every_report_shows_the_marks(tmp_path: Path) -> None:
    diagnosis = stream([("task <1>", 2), ("task <2>", 7)], path=tmp_path / "run.reludiag")
    pd.testing.assert_frame_equal(reludiag.load(tmp_path / "run.reludiag").marks, diagnosis.marks)
    page, markdown, document = (tmp_path / f"run.{end}" for end in ("html", "md", "json"))
    for path in (page, markdown, document):
        diagnosis.write(path)
    text = " ".join(str(diagnosis).split())
    assert "Between marks" in text
    assert "task <2> 5-10 7 5 0" in text
    sentence = "Over 2 marks, dead units went from 0 to 7; most died after 'task <2>': 5 in steps"
    assert sentence in text
    assert "task &#60;2&#62;" in markdown.read_text()
    assert "Between marks" in page.read_text()
    assert "task &lt;2&gt;" in page.read_text()
    pd.testing.assert_frame_equal(open_diagnosis(document).marks, diagnosis.marks)


def test_a_long_stream_of_tasks_is_shown_in_few_rows(tmp_path: Path) -> None:
    diagnosis = stream([(f"task {n}", n // 8) for n in range(100)], length=1)
    assert len(diagnosis.marks) == 100
    text = str(diagnosis)
    assert "task 0 ... task 8" in text
    assert text.count("task ") < 40
    diagnosis.to_html(tmp_path / "run.html")


def test_nothing_is_shown_without_marks() -> None:
    diagnosis = stream([])
    assert diagnosis.marks.empty
    assert "mark" not in str(diagnosis)


@pytest.mark.parametrize("name", ["", 3, None, "x" * 201, ["task"]])
def test_a_mark_needs_a_name(name: Any) -> None:
    model = layer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            reludiag.Monitor(model, probe=PROBE) as monitor,
            pytest.raises(reludiag.UsageError, match="expected a text"),
        ):
            monitor.mark(name)


def test_a_mark_is_set_inside_of_the_run() -> None:
    model = layer()
    monitor = reludiag.Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(reludiag.UsageError, match=r"mark\(\) was called before the run"):
        monitor.mark("early")


def test_marks_after_the_step_that_a_run_goes_on_from_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    stream([("one", 0), ("two", 0), ("three", 0)], path=path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnosis = stream([("again", 0)], path=path, resume=8)
    assert diagnosis.marks["mark"].tolist() == ["one", "two", "again"]
    assert diagnosis.marks["step"].tolist() == [0, 5, 8]

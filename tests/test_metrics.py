"""What the user logs in a run: kept without waiting, in bounded room, and shown in every report."""

import gc
import math
import sqlite3
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import reludiag
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.recording import read_recording

PROBE = torch.randn(32, 4, generator=torch.Generator().manual_seed(5))


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


class Run:
    """A monitored training of which each test logs something."""

    def __init__(self, **settings: Any) -> None:
        self.model = mlp()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        settings = {"every": 4, "probe": PROBE, "warn_over": None, **settings}
        self.monitor = reludiag.Monitor(self.model, self.optimizer, **settings)

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.model(PROBE).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss


def rows(diagnosis: reludiag.Diagnosis, name: str) -> list[tuple[Any, ...]]:
    table = diagnosis.metrics[diagnosis.metrics["metric"] == name]
    return [tuple(row) for row in table.drop(columns="metric").itertuples(index=False)]


@pytest.mark.parametrize(
    "kind",
    [float, np.float32, np.float64, np.asarray, torch.tensor, lambda x: torch.tensor([x])],
    ids=["float", "float32", "float64", "array", "tensor", "one element"],
)
def test_each_window_has_the_last_value_and_the_mean(kind: Any) -> None:
    run = Run()
    with run.monitor as monitor:
        monitor.log(loss=kind(8.0))
        for step in range(1, 11):
            run.step()
            monitor.log(loss=kind(float(step)))
    assert rows(monitor.diagnose(), "loss") == [
        (0, 0, 8.0, 8.0, 1), (4, 4, 4.0, 2.5, 4), (8, 8, 8.0, 6.5, 4), (10, 12, 10.0, 9.5, 2)
    ]  # fmt: skip


def test_a_value_is_of_the_steps_that_were_taken_when_it_was_logged() -> None:
    run = Run()
    with run.monitor as monitor:
        for step in range(8):
            monitor.log(loss=step)  # before the step
            run.step()
    assert rows(monitor.diagnose(), "loss") == [
        (0, 0, 0.0, 0.0, 1), (4, 4, 4.0, 2.5, 4), (7, 8, 7.0, 6.0, 3)
    ]  # fmt: skip


def test_a_tensor_that_changes_later_keeps_its_value_and_no_graph() -> None:
    run = Run()
    total = torch.zeros(())
    with run.monitor as monitor:
        for _ in range(4):
            total += 1
            monitor.log(total=total)
            loss = run.step()
            monitor.log(loss=loss)
            graph = weakref.ref(loss)
            del loss
        gc.collect()
        assert graph() is None
    assert rows(monitor.diagnose(), "total") == [(0, 0, 1.0, 1.0, 1), (3, 4, 4.0, 3.0, 3)]


def test_a_metric_may_come_from_several_kinds_and_modes() -> None:
    run = Run()
    with run.monitor as monitor:
        run.step()
        with torch.inference_mode():
            monitor.log(x=torch.tensor(1.0))
        monitor.log(x=torch.tensor(2.0, dtype=torch.bfloat16))
        monitor.log({"x": True})
        with torch.no_grad():
            monitor.log(x=nn.Parameter(torch.tensor(4.0)))
        monitor.log(x=torch.tensor(5))
    assert rows(monitor.diagnose(), "x") == [(1, 4, 5.0, 13 / 5, 5)]


def test_values_that_are_not_finite_are_kept_as_such(tmp_path: Path) -> None:
    run = Run(path=tmp_path / "run.reludiag")
    with run.monitor as monitor:
        run.step()
        monitor.log(up=math.inf, down=torch.tensor(-math.inf), none=math.nan)
        run.step()
        monitor.log(up=1.0)
    loaded = reludiag.load(tmp_path / "run.reludiag")
    last = loaded.metrics.set_index("metric")[["last", "mean"]]
    assert last.loc["up"].tolist() == [1.0, math.inf]
    assert last.loc["down"].tolist() == [-math.inf, -math.inf]
    assert last.loc["none"].isna().all()
    assert "NaN" in str(loaded)
    assert "inf" in str(loaded)


def test_a_long_run_has_bounded_memory_and_a_bounded_file() -> None:
    run = Run(every=1_000)
    run.model.requires_grad_(False)  # its steps cost nothing
    with run.monitor as monitor:
        for _ in range(10_000):
            run.optimizer.step()
            monitor.log(loss=1.0, other=2.0)
        assert len(monitor._metrics._windows) <= 2 * 2
    assert len(monitor.diagnose().metrics) == 2 * 10
    assert monitor.diagnose().metrics["count"].sum() == 2 * 10_000


@pytest.mark.parametrize(
    "value", ["0.3", None, [1.0], 1j, torch.zeros(3), torch.zeros(3, 2), np.zeros(2), {"a": 1},
              torch.zeros((), device="meta"), torch.zeros((), dtype=torch.complex64)]
)  # fmt: skip
def test_what_is_no_number_is_refused_by_its_name(value: Any) -> None:
    run = Run()
    with run.monitor as monitor:
        run.step()
        with pytest.raises(reludiag.UsageError, match=r"'accuracy'.* expected"):
            monitor.log(loss=1.0, accuracy=value)
    assert monitor.diagnose().metrics.empty  # all or nothing


@pytest.mark.parametrize("given", [0.3, "loss", [1.0], {"": 1.0}, {7: 1.0}, {"x" * 201: 1.0}])
def test_a_metric_needs_a_name(given: Any) -> None:
    run = Run()
    with run.monitor as monitor, pytest.raises(reludiag.UsageError, match="expected"):
        monitor.log(given)


def test_a_metric_is_logged_inside_of_the_run() -> None:
    run = Run()
    with pytest.raises(reludiag.UsageError, match=r"log\(\) was called before the run"):
        run.monitor.log(loss=1.0)
    with run.monitor as monitor:
        run.step()
    with pytest.warns(RuntimeWarning, match="after the run and is not recorded") as caught:
        monitor.log(loss=1.0)
    assert caught[0].filename == __file__


def test_after_an_error_of_its_own_nothing_is_logged_and_the_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run()
    with run.monitor as monitor, pytest.warns(RuntimeWarning, match="watching stopped"):
        monkeypatch.setattr(monitor._writer, "write_metrics", lambda *_: 1 / 0)
        for _ in range(9):
            monitor.log(loss=run.step())
    assert monitor.diagnose().head.status.startswith("not watched")


def logged(tmp_path: Path, names: int = 2) -> reludiag.Diagnosis:
    run = Run(path=tmp_path / "run.reludiag")
    with run.monitor as monitor:
        for step in range(9):
            run.step()
            monitor.log({f"metric <{n}>": step + n for n in range(names)})
    return reludiag.load(tmp_path / "run.reludiag")


def test_every_report_shows_what_was_logged(tmp_path: Path) -> None:
    diagnosis = logged(tmp_path)
    page, markdown, document = (tmp_path / f"run.{end}" for end in ("html", "md", "json"))
    for path in (page, markdown, document):
        diagnosis.write(path)
    assert "What was logged" in str(diagnosis)
    assert "metric <1>" in str(diagnosis)
    assert "1.5" in str(diagnosis).split("What was logged")[1]
    assert "metric &#60;1&#62;" in markdown.read_text()
    assert 'id="metrics"' in page.read_text()
    assert "Mean metric &lt;1&gt;" in page.read_text()
    again = open_diagnosis(document)
    assert again.metrics.equals(diagnosis.metrics)
    diagnosis.to_csv(tmp_path / "run.csv")
    assert "metric" not in (tmp_path / "run.csv").read_text()


def test_more_metrics_than_a_table_has_room_for_are_told(tmp_path: Path) -> None:
    diagnosis = logged(tmp_path, names=15)
    assert "11 more metrics: the page and the JSON have all." in str(diagnosis)
    diagnosis.to_html(tmp_path / "run.html")
    assert "Drawn are the first 12 of 15 metrics" in (tmp_path / "run.html").read_text()


def test_nothing_is_shown_where_nothing_was_logged(tmp_path: Path) -> None:
    diagnosis = logged(tmp_path, names=0)
    assert diagnosis.metrics.empty
    assert "logged" not in str(diagnosis)
    diagnosis.to_html(tmp_path / "run.html")
    assert 'id="metrics"' not in (tmp_path / "run.html").read_text()


def test_an_older_recording_has_no_metrics_and_opens(tmp_path: Path) -> None:
    logged(tmp_path)
    path = tmp_path / "run.reludiag"
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE metric")
        db.execute("DROP TABLE mark")
        db.execute("PRAGMA user_version = 7")
    db.close()
    assert reludiag.load(path).metrics.empty
    assert read_recording(path).metrics == ()


def test_logging_changes_nothing_in_the_training() -> None:
    def weights(logs: bool) -> dict[str, torch.Tensor]:
        run = Run()
        with run.monitor as monitor:
            for _ in range(6):
                loss = run.step()
                if logs:
                    monitor.log(loss=loss)
        return run.model.state_dict()

    with_logs, without = weights(True), weights(False)
    assert all(torch.equal(with_logs[name], without[name]) for name in without)

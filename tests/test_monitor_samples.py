"""What a Monitor counts as a sample: groups of a probe's rows, and rows that training routes."""

import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reludiag
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.measure.binomial import upper_bound
from reludiag.reports.run.document import document
from reludiag.reports.run.summary import next_steps

ROWS, SERIES = 24, 8


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    with torch.no_grad():
        model[0].bias[:2] = torch.tensor([-100.0, -2.0])
    return model.double()


def windows() -> list[dict[str, Tensor]]:
    """Two batches of windows of series, of which some are in both."""
    torch.manual_seed(1)
    numbers = torch.arange(ROWS) // 3
    x = torch.randn(2, ROWS, 3, dtype=torch.float64)
    return [{"input": x[0], "series": numbers}, {"input": x[1], "series": numbers + SERIES - 2}]


def train(model: nn.Module, batches: Callable[[], Any], steps: int, **settings: Any) -> Any:
    """The Diagnosis of a training on these batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.pop("lr", 1e-3))
    with reludiag.Monitor(model, optimizer, warn_over=None, **settings) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            model(batches()).sum().backward()
            optimizer.step()
    return monitor.diagnose()


def train_on_probe(model: nn.Module, probe: Any, **settings: Any) -> Any:
    x = torch.randn(ROWS, 3, dtype=torch.float64)
    return train(model, lambda: x, 4, every=2, probe=probe, **settings)


@pytest.mark.parametrize("groups", ["series", lambda batch: batch["series"]])
def test_rows_of_one_group_of_the_probe_are_one_sample(groups: Any) -> None:
    model, probe = network(), windows()
    diagnosis = train_on_probe(model, probe, groups=groups)
    numbers = torch.cat([batch["series"] for batch in probe])
    with torch.no_grad():
        first = model[1](model[0](torch.cat([batch["input"] for batch in probe])))
        second = model[3](model[2](first))
    for site, output in (("1", first), ("3", second)):
        units = diagnosis.units[diagnosis.units["site"] == site]
        fired = [len(set(numbers[output[:, unit] > 0].tolist())) for unit in range(output.shape[1])]
        assert units["fired"].tolist() == fired
        assert units["samples"].unique().tolist() == [2 * SERIES - 2]
        bounds = [float(upper_bound(count, 2 * SERIES - 2)) for count in fired]
        assert units["firing_rate_upper"].tolist() == pytest.approx(bounds)
    assert diagnosis.head.samples == 2 * SERIES - 2


def test_a_monitor_says_of_groups_what_a_scan_says(tmp_path: Path) -> None:
    model, probe = network(), windows()
    train_on_probe(model, probe, groups="series", path=tmp_path / "run.reludiag")
    recorded = reludiag.load(tmp_path / "run.reludiag")
    scanned = reludiag.scan(model, probe, groups="series")
    columns = ["site", "unit", "verdict", "samples", "fired", "firing_rate_upper", "note"]
    assert recorded.units[columns].equals(scanned.units[columns])
    for diagnosis in (recorded, scanned):
        assert f"14 groups of {2 * ROWS} rows" in diagnosis.head.evidence
        assert "Rows with the same `series` count as one sample." in diagnosis.head.notes


def test_graphs_of_a_probe_that_are_numbered_are_samples_without_groups() -> None:
    probe = {"input": torch.randn(20, 3, dtype=torch.float64), "batch": torch.arange(20) // 5}
    diagnosis = train_on_probe(network(), probe)
    assert set(diagnosis.units["samples"]) == {4}
    assert "a fixed probe of 4 groups of 20 rows in eval mode" in diagnosis.head.evidence
    assert "Rows with the same `batch` count as one sample." in diagnosis.head.notes


@pytest.mark.parametrize("groups", ["nothing", lambda batch: torch.arange(3)])
def test_groups_that_do_not_fit_the_probe_are_the_error_of_a_scan(groups: Any) -> None:
    with pytest.raises(reludiag.DataError) as scanned:
        reludiag.scan(network(), windows(), groups=groups)
    with pytest.raises(reludiag.DataError) as monitored:
        train_on_probe(network(), windows(), groups=groups)
    assert str(monitored.value) == str(scanned.value)


def test_groups_without_a_probe_are_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(reludiag.UsageError, match="Pass a probe"):
        reludiag.Monitor(network(), path=tmp_path / "run.reludiag", groups="series")
    assert not list(tmp_path.iterdir())


def test_a_function_of_groups_is_called_at_snapshots_only() -> None:
    calls, done = list[int](), [0]

    def series(batch: Any) -> Any:
        calls.append(done[-1])
        return batch["series"]

    model, x = network(), torch.randn(ROWS, 3, dtype=torch.float64)
    with reludiag.Monitor(model, every=5, probe=windows(), groups=series) as monitor:
        for step in range(1, 11):
            done.append(step)
            model(x)
            monitor.step()
    assert calls == [0, 0, 5, 5, 10, 10]


class Graph(nn.Module):
    """Each node sees its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        nn.init.constant_(self.layer.bias, -100.0)

    def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
        return torch.relu(self.layer(matrix @ x))


def test_a_bound_of_a_probe_whose_rows_may_depend_on_each_other_says_so(tmp_path: Path) -> None:
    batch = {"x": torch.randn(9, 3), "matrix": torch.rand(9, 9)}
    model, path = Graph(), tmp_path / "run.reludiag"
    with reludiag.Monitor(model, probe=batch, path=path) as monitor:
        monitor.step()
    for diagnosis in (monitor.diagnose(), reludiag.load(path)):
        assert any("if rows are independent" in line for line in next_steps(diagnosis))


# Rows that training routes


class Routed(nn.Module):
    """Rows pass one layer, and `run` says which of them another."""

    def __init__(self, run: Callable[["Routed", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.first = nn.Sequential(nn.Linear(3, 6), nn.ReLU())
        self.late = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        with torch.no_grad():
            self.first[0].bias.fill_(9.0)
            self.late[0].bias.fill_(9.0)
            self.late[0].bias[0] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.first(x), x[:, 0] > 0)


def by_mask(model: Routed, h: Tensor, chosen: Tensor) -> Tensor:
    y = torch.zeros_like(h)
    y[chosen] = model.late(h[chosen])
    return y


def by_number(model: Routed, h: Tensor, chosen: Tensor) -> Tensor:
    rows = chosen.nonzero()[:, 0]
    return torch.zeros_like(h).index_add(0, rows, model.late(h.index_select(0, rows)))


def by_order(model: Routed, h: Tensor, chosen: Tensor) -> Tensor:
    order, count = (~chosen).long().argsort(stable=True), int(chosen.sum())
    few, rest = h[order].split([count, len(h) - count])
    return torch.cat([model.late(few), rest])


UNTOLD = "In training, a forward pass counts as one sample at 'late.1'"


def batch_of(rows: int) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        x = torch.randn(rows, 3)
        x[:2, 0] = x[:2, 0].abs() + 0.1  # a pass without a row would not call the site
        return x

    return draw


@pytest.mark.parametrize("run", [by_mask, by_number, by_order])
@pytest.mark.parametrize(("every", "steps"), [(10, 20), (100, 100), (20, 25)])
def test_a_pass_is_one_sample_where_training_routes_rows_and_the_report_says_so(
    run: Any, every: int, steps: int
) -> None:
    diagnosis = train(Routed(run), batch_of(16), steps, every=every, lr=0.0)
    passes = steps if steps == 25 else every  # a short last window is joined to the one before
    assert diagnosis.head.samples == 16 * passes
    assert f"the last on {16 * passes:,} training samples" in diagnosis.head.evidence
    sites = diagnosis.sites.set_index("site")["samples"]
    assert sites.to_dict() == {"first.1": 16 * passes, "late.1": passes}
    assert diagnosis.head.notes[0].startswith(UNTOLD)
    units = diagnosis.units.set_index("site")["note"]
    assert set(units["late.1"]) == {"one sample a pass"} and units["first.1"].isna().all()
    said = f"{diagnosis} {' '.join(next_steps(diagnosis))} {document(diagnosis)}"
    assert "reached" not in " ".join(said.replace("│", " ").split())


def test_passes_are_counted_so_while_nothing_is_left_to_learn() -> None:
    model = Routed(by_mask)
    nn.init.constant_(model.late[0].bias, 9.0)
    diagnosis = train(model, batch_of(16), 128, every=64, lr=0.0)
    assert diagnosis.dead == 0 and diagnosis.head.samples == 16 * 64
    assert list(diagnosis.sites["samples"]) == [16 * 64, 64]
    assert diagnosis.head.per_pass == ("late.1",)


def test_a_part_of_the_rows_is_not_taken_for_all_while_nothing_is_left_to_learn() -> None:
    model = Routed(lambda model, h, _: model.late(h[: len(h) // 2]))
    nn.init.constant_(model.late[0].bias, 9.0)
    sites = train(model, batch_of(16), 128, every=64, lr=0.0).sites
    assert sites.set_index("site")["samples"].to_dict() == {"first.1": 16 * 64, "late.1": 64}


def test_the_samples_of_a_training_are_known_where_every_site_is_routed() -> None:
    model = Routed(by_mask)
    model.first = nn.Linear(3, 6)
    diagnosis = train(model, batch_of(16), 10, every=10, lr=0.0)
    assert diagnosis.head.samples == 160 and list(diagnosis.sites["samples"]) == [10]
    assert diagnosis.head.notes[0].startswith(UNTOLD)
    worst = [line for line in next_steps(diagnosis) if line.startswith("The worst site")]
    assert "1 of 6 units dead in 10 forward passes." in worst[0]
    assert "silent on" not in " ".join(next_steps(diagnosis))


@pytest.mark.parametrize("model", [Routed(by_mask), network().float()])
def test_nothing_is_said_of_passes_where_each_has_one_row(model: nn.Module) -> None:
    diagnosis = train(model, lambda: torch.rand(1, 3), 60, every=20, lr=0.0)
    assert diagnosis.head.samples == 20 and diagnosis.head.per_pass == ()
    assert "one sample" not in f"{diagnosis}{diagnosis.units['note'].tolist()}"


def test_a_branch_that_few_batches_take_is_reached_by_their_samples() -> None:
    model = Routed(lambda model, h, _: model.late(h) if len(h) == 5 else h)
    sizes = iter([5, *[16] * 19])
    diagnosis = train(model, lambda: torch.randn(next(sizes), 3), 20, every=20, lr=0.0)
    assert diagnosis.head.per_pass == ()
    notes = diagnosis.units.set_index("site")["note"]
    assert set(notes["late.1"]) == {f"reached by 5 of {19 * 16 + 5} samples"}


def test_calls_of_a_loop_over_rows_are_one_sample_a_pass_and_said_to_be() -> None:
    model = Routed(lambda model, h, _: torch.stack([model.late(row) for row in h]))
    diagnosis = train(model, lambda: torch.randn(4, 3), 10, every=10, lr=0.0)
    assert diagnosis.head.samples == 40
    assert diagnosis.head.per_pass == ("late.1",)


def test_a_warning_of_deaths_does_not_take_passes_for_samples() -> None:
    model = Routed(by_mask)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with (
        warnings.catch_warnings(record=True) as caught,
        reludiag.Monitor(model, optimizer, every=2) as monitor,
    ):
        warnings.simplefilter("always")
        for step in range(6):
            model(batch_of(16)()).sum().backward()
            optimizer.step()
            if step == 1:
                model.late[0].bias.data.fill_(-100.0)
    assert monitor.diagnose().dead == 6
    (message,) = [str(each.message) for each in caught]
    assert "most in 'late.1', 5 of 6. That is more" in message


def test_a_report_read_from_json_still_says_which_sites_count_passes(tmp_path: Path) -> None:
    diagnosis = train(Routed(by_mask), batch_of(16), 10, every=10, lr=0.0)
    (tmp_path / "run.json").write_text(document(diagnosis, all_units=True))
    assert open_diagnosis(tmp_path / "run.json").head == diagnosis.head


def test_a_recording_without_these_facts_opens_as_before(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    train(Routed(by_mask), batch_of(16), 10, every=10, lr=0.0, path=path)
    keys = ["training_samples", "per_pass", "probe_rows", "probe_groups", "if_independent"]
    with sqlite3.connect(path) as db:
        db.executemany("DELETE FROM run WHERE key = ?", [(key,) for key in keys])
    diagnosis = reludiag.load(path)
    assert diagnosis.head.samples == 160 and diagnosis.head.per_pass == ()
    assert set(diagnosis.units.set_index("site")["note"]["late.1"]) == {"one sample a call"}

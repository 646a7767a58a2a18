"""Names of sites: functions that the model calls are named after what feeds them."""

import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from torch import Tensor, nn

import reludiag
from reludiag.diagnosis.gate import Gate
from reludiag.reports.run.terminal import print_report

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three layers, of which `run` makes a forward."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.fc3 = (nn.Linear(6, 6) for _ in range(3))
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Block(nn.Linear):
    """A layer that rectifies what it makes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def plain(m: Net, x: Tensor) -> Tensor:
    return m.fc3(F.relu(m.fc2(F.relu(m.fc1(x)))))


def names(run: Callable[[Net, Tensor], Tensor], *xs: Tensor, **modules: nn.Module) -> list[str]:
    return list(reludiag.scan(Net(run, **modules), list(xs or [X])).sites["site"])


def test_a_function_that_the_model_calls_is_named_after_what_feeds_it() -> None:
    diagnosis = reludiag.scan(Net(plain), [X])
    assert list(diagnosis.sites["site"]) == ["fc1:relu", "fc2:relu"]
    assert list(diagnosis.sites["alias"]) == ["Net:relu", "Net:relu#1"]
    assert list(diagnosis.sites["key"]) == ["Net:relu|fc1|0", "Net:relu|fc2|0"]


def test_several_functions_after_one_layer_are_told_apart() -> None:
    assert names(lambda m, x: F.relu(m.fc1(x)).clamp(min=0)) == ["fc1:relu", "fc1:clamp"]

    def again(m: Net, x: Tensor) -> Tensor:
        return F.relu(m.fc1(F.relu(m.fc1(x))))

    assert names(again) == ["fc1:relu"]
    turns = reludiag.scan(Net(again), [X], merge_calls=False)
    assert list(turns.sites["site"]) == ["fc1:relu", "fc1:relu#1"]

    def parallel(m: Net, x: Tensor) -> Tensor:
        y = m.fc1(x)
        return F.relu(y) + F.relu(-y)

    assert names(parallel) == ["fc1:relu", "fc1:relu#1"]


def test_the_name_is_of_what_feeds_it_and_not_of_what_ran_last() -> None:
    def crossed(m: Net, x: Tensor) -> Tensor:
        first, second = m.fc1(x), m.fc2(x)
        return F.relu(first) + m.fc3(x) + F.relu6(second)

    assert names(crossed) == ["fc1:relu", "fc2:relu6"]


def test_a_name_that_would_be_another_site_s_is_not_taken() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return F.relu(m.block(x) - 1)

    assert names(run, block=Block(6, 6)) == ["block:relu", "Net:relu"]


def test_a_function_inside_a_module_is_named_after_the_module() -> None:
    diagnosis = reludiag.scan(nn.Sequential(Net(plain), nn.Linear(6, 2)), [X])
    assert list(diagnosis.sites["site"]) == ["0:relu", "0:relu#1"]
    assert diagnosis.sites["alias"].isna().all()


def test_names_do_not_depend_on_which_path_is_taken_first() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return F.relu(m.fc1(x)) if x[0, 0] > 0 else F.relu(m.fc2(x))

    up, down = X.abs(), -X.abs()
    assert sorted(names(run, up, down)) == sorted(names(run, down, up)) == ["fc1:relu", "fc2:relu"]


def test_a_traced_model_has_the_names_of_the_model() -> None:
    traced = torch.fx.symbolic_trace(Net(plain))
    assert list(reludiag.scan(traced, [X]).sites["site"]) == ["fc1:relu", "fc2:relu"]


def test_options_take_both_names() -> None:
    x = torch.randn(16, 5, 6)
    for name in ("fc2:relu", "Net:relu#1"):
        sites = reludiag.scan(Net(plain), [x], unit_axes={name: 1}).sites
        assert list(sites["unit_axis"]) == ["2", "1"]
        (first, second) = Gate.parse([f"{name}=0"]).judge(sites, ())
        assert first.limit is None and second.limit is not None
    # A pattern is one of aliases only if it matches no name.
    checks = Gate.parse(["*:relu=0"]).judge(reludiag.scan(Net(plain), [X]).sites, ())
    assert all(check.limit is not None for check in checks)


def as_version_4(path: Path) -> None:
    """Make of a recording what the version before wrote."""
    db = sqlite3.connect(path)
    db.execute("UPDATE site SET name = alias WHERE alias != ''")
    for table, column in (("site", "key"), ("site", "alias"), ("input", "scale")):
        db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    db.execute("PRAGMA user_version = 4")
    db.commit()
    db.close()


def test_a_recording_of_an_earlier_version_is_compared_by_its_names(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("old.reludiag", "new.reludiag")]
    for index, path in enumerate(paths):
        model = Net(plain)
        with torch.no_grad():
            model.fc2.bias[: 1 + index] = -100.0
        with reludiag.Monitor(model, path=path, probe=X):
            pass
    as_version_4(paths[0])
    old = reludiag.load(paths[0])
    assert list(old.sites["site"]) == ["Net:relu", "Net:relu#1"] and old.structure == ()
    for before, after, site in ((*paths, "fc2:relu"), (*reversed(paths), "Net:relu#1")):
        difference = reludiag.diff(before, after)
        assert list(difference.sites["status"]) == ["compared"] * 2
        changed = difference.units.query("change in ('died', 'revived')")
        assert list(changed["site"]) == [site] and list(changed["unit"]) == [1]


def test_sites_of_one_key_are_compared_whatever_their_names(tmp_path: Path) -> None:
    path = tmp_path / "scan.json"
    reludiag.scan(Net(plain), [X]).to_json(path, all_units=True)
    document = json.loads(path.read_text())
    swap = {"fc1:relu": "fc2:relu", "fc2:relu": "fc1:relu"}
    for row in [*document["sites"], *document["units"]]:
        row["site"] = swap[row["site"]]
    path.write_text(json.dumps(document))
    difference = reludiag.diff(path, reludiag.scan(Net(plain), [X]))
    assert set(difference.units["change"]) == {"unchanged"}
    assert (difference.units["firing_rate_before"] == difference.units["firing_rate_after"]).all()


def test_a_wide_terminal_shows_what_feeds_each_site() -> None:
    model = Net(lambda m, x: m.relu(m.fc2(x)), relu=nn.ReLU())
    diagnosis = reludiag.scan(model, [X])
    for width, shown in ((80, False), (100, True)):
        console = Console(file=io.StringIO(), width=width)
        print_report(diagnosis, console)
        lines = console.file.getvalue().splitlines()
        assert any("Fed by" in line for line in lines) == shown
        assert any(line.split()[:2] == ["relu", "fc2"] for line in lines) == shown

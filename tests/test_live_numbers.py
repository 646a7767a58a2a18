"""The dormant, rare and silent units of each snapshot, as they are told and recorded."""

import contextlib
import copy
import sqlite3
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reludiag
from reludiag import Snapshot
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.loading.checkpoints import read_checkpoint
from reludiag.scanning import scan_checkpoints

PROBE = torch.randn(64, 8, generator=torch.Generator().manual_seed(5)).double()


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
        ).double()


def sgd(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def dormant(x: Tensor) -> list[int]:
    """Sokar et al. 2023, definition 3.1, of activations `[sample, unit]`."""
    score = x.abs().mean(0) / x.abs().mean().clamp(min=1e-300)
    return torch.nonzero(score <= 0.025).flatten().tolist()


def test_dormant_units_on_a_probe_are_those_of_the_definition_at_every_snapshot() -> None:
    model, told, expected = mlp(), list[Snapshot](), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with reludiag.Monitor(
        model, optimizer, every=2, probe=PROBE, on_snapshot=told.append, warn_over=None
    ) as monitor:
        for number in range(21):
            if number % 2 == 0:
                twin = copy.deepcopy(model)
                expected.append([dormant(twin[:2](PROBE)), dormant(twin[:4](PROBE))])
            if number < 20:
                step(model, optimizer, torch.randn(32, 8).double())
    found = [[list(site.dormant_units) for site in snapshot.sites] for snapshot in told]
    assert found == expected and expected[-1] != expected[0]
    timeline = monitor.diagnose().timeline
    assert list(timeline["dormant"]) == [len(units) for pair in expected for units in pair]
    last = told[-1]
    assert last.dormant == sum(map(len, expected[-1]))
    assert last.scalars()["reludiag/dormant"] == last.dormant
    assert last.scalars()["reludiag/dormant_fraction/3"] == len(expected[-1][1]) / 16
    for site in last.sites:
        assert set(site.dead_units) <= set(site.dormant_units) and len(site.dead_units) == site.dead


def test_without_a_probe_they_are_of_the_steps_with_statistics() -> None:
    model, told, batches = mlp(), list[Snapshot](), [torch.randn(32, 8).double() for _ in range(8)]
    optimizer = sgd(model)
    with torch.no_grad():
        model[0].weight[:3] *= 0.01
        model[0].bias[:3] *= 0.01
    settings = {"every": 4, "stats_every": 2, "warn_over": None, "on_snapshot": told.append}
    with reludiag.Monitor(model, optimizer, **settings):
        for batch in batches:
            step(model, optimizer, batch)
    # Of each window of four, the first and the third step.
    counted = model[:2](torch.cat([batches[4], batches[6]]))
    assert list(told[-1].sites[0].dormant_units) == dormant(counted)
    assert set(dormant(counted)) >= {0, 1, 2}


def test_a_rare_unit_fired_and_is_not_dead() -> None:
    model, told = nn.Sequential(nn.Linear(1, 3), nn.ReLU()), list[Snapshot]()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, -0.9995, -2.0]))
    probe = torch.linspace(0, 1, 2001).unsqueeze(1)
    with reludiag.Monitor(model, sgd(model), probe=probe, on_snapshot=told.append, every=1) as m:
        step(model, m._optimizers[0], probe)
    assert (told[0].rare, told[0].dead, told[0].dormant) == (1, 1, 2)
    timeline = m.diagnose().timeline
    assert list(timeline["rare"]) == [1, 1] and list(timeline["dead"]) == [1, 1]


class Fading(nn.Module):
    """Unit 0 fires while the first input is positive, unit 1 always, unit 2 never."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu, self.out = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
            self.fc.bias.copy_(torch.tensor([0.0, 5.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.relu(self.fc(x)))


def fading(fires: list[bool], every: int, probe: Tensor | None = None) -> list[int]:
    """`since_fired` after steps of eight samples each, in which unit 0 fires or not."""
    model = Fading()
    optimizer = sgd(model)
    with reludiag.Monitor(model, optimizer, every=every, probe=probe, warn_over=None) as monitor:
        for fire in fires:
            x = torch.rand(8, 2) + 0.1
            x[:, 0] *= 1 if fire else -1
            step(model, optimizer, x)
    return list(monitor.diagnose().units["since_fired"])


@pytest.mark.parametrize(
    ("fires", "every", "expected"),
    [
        ([True] * 8, 2, [0, 0, 64]),
        ([True] * 4 + [False] * 4, 2, [32, 0, 64]),
        ([True] * 3 + [False] * 5, 2, [32, 0, 64]),  # it fired in the second window
        ([False] * 8, 2, [64, 0, 64]),  # the initial state is of the first window
        ([True, *[False] * 8], 4, [40, 0, 72]),  # the last window takes in the one before
        ([False] * 7 + [True], 2, [0, 0, 64]),
        ([False], 2, [8, 0, 8]),
    ],
)
def test_since_fired_counts_the_samples_of_the_windows_since(
    fires: list[bool], every: int, expected: list[int]
) -> None:
    assert fading(fires, every) == expected


def test_on_a_probe_since_fired_counts_its_samples_at_every_snapshot_since() -> None:
    silent = torch.tensor([[-1.0, 1.0]]).repeat(5, 1)
    assert fading([True] * 4, 2, silent) == [15, 0, 15]


def test_since_fired_is_not_known_of_what_cannot_die_or_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 3), nn.ReLU())
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([float("nan"), -1000.0, 1000.0]))
    with reludiag.Monitor(model, probe=torch.randn(4, 2), warn_over=None) as monitor:
        nn.init.ones_(model[0].bias)
        monitor.step()
    units = monitor.diagnose().units.set_index("site")["since_fired"]
    assert units["1"].isna().all()
    assert units["3"].isna().tolist() == [True, False, False]
    assert units["3"].tolist()[1:] == [8, 0]


def test_a_recording_of_an_older_version_does_not_know_them(tmp_path: Path) -> None:
    path, model = tmp_path / "run.reludiag", mlp()
    optimizer = sgd(model)
    with reludiag.Monitor(model, optimizer, path=path, probe=PROBE, every=1):
        step(model, optimizer, PROBE)
    with contextlib.closing(sqlite3.connect(path)) as db:
        for column in ("rare", "dormant"):
            db.execute(f"ALTER TABLE state DROP COLUMN {column}")
        db.execute("PRAGMA user_version = 5")
        db.commit()
    diagnosis = reludiag.load(path)
    assert diagnosis.timeline["dormant"].isna().all() and diagnosis.timeline["rare"].isna().all()
    assert set(diagnosis.units["since_fired"]) <= {0, 128}
    diagnosis.to_json(tmp_path / "run.json")
    assert open_diagnosis(tmp_path / "run.json").timeline["dormant"].isna().all()


def test_several_checkpoints_have_them_too(tmp_path: Path) -> None:
    model, paths, counts = mlp(), [], []
    for number in range(2):
        paths.append(tmp_path / f"{number}.pt")
        torch.save(model.state_dict(), paths[-1])
        counts += [len(dormant(model[:2](PROBE))), len(dormant(model[:4](PROBE)))]
        with torch.no_grad():
            model[0].weight[:5] *= 1e-4
            model[0].bias[:5] *= 1e-4
    checkpoints = [read_checkpoint(path) for path in paths]
    diagnosis = scan_checkpoints(mlp(), checkpoints, lambda: [PROBE])
    assert list(diagnosis.timeline["dormant"]) == counts and counts[2] >= 5
    assert diagnosis.units["since_fired"].isna().all()


def test_a_target_network_in_training_mode_is_watched_beside_the_trained_one() -> None:
    online = mlp()
    target = copy.deepcopy(online).requires_grad_(False)
    with torch.no_grad():
        target[0].bias[:2] = -100.0
    optimizer, x = sgd(online), torch.randn(32, 8).double()
    both = nn.ModuleDict({"online": online, "target": target})
    with reludiag.Monitor(both, optimizer, every=2, warn_over=None) as monitor:
        for _ in range(4):
            with torch.no_grad():
                goal = target(x)
            optimizer.zero_grad()
            (online(x) - goal).square().mean().backward()
            optimizer.step()
    sites = monitor.diagnose().sites.set_index("site")
    assert set(sites["samples"]) == {64}
    assert sites["dead"].to_dict() == {"online.1": 0, "online.3": 0, "target.1": 2, "target.3": 0}

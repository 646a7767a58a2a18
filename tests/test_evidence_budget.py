"""The evidence of deaths takes a bounded share of a run's time, and what it left out is said."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reludiag
from reludiag.evidence.budget import ALLOWANCE, Budget
from reludiag.recording import read_recording
from reludiag.recording.observations import Death

PROBE = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))


class Time:
    """A clock that goes on only if it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def spend(budget: Budget, time: Time, seconds: float) -> bool:
    """Whether something that takes so long was allowed, and so done."""
    if not budget.allows():
        return False
    with budget.spending():
        time.now += seconds
    return True


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("cost", [0.1, 1.0, 4.0])
def test_after_the_allowance_at_most_the_share_of_the_time_is_spent(
    share: float, cost: float
) -> None:
    time = Time()
    budget = Budget(share, time)
    budget.begin()
    begun, spent = time.now, 0.0
    for _ in range(20_000):
        time.now += 0.2
        spent += cost * spend(budget, time, cost)
        assert spent <= max(ALLOWANCE, share * (time.now - begun)) + 1e-6
    assert spent >= share * (time.now - begun) - cost - 1e-6 or spent >= ALLOWANCE - cost


def test_one_examination_is_made_however_long_it_takes() -> None:
    time = Time()
    budget = Budget(0.05, time)
    budget.begin()
    assert spend(budget, time, 100.0)
    assert not spend(budget, time, 100.0)
    time.now += 4000.0
    assert spend(budget, time, 100.0)


def test_a_share_of_one_is_no_bound() -> None:
    time = Time()
    budget = Budget(1.0, time)
    budget.begin()
    assert all(spend(budget, time, 50.0) for _ in range(100))


class Slow(nn.Module):
    """Each pass in eval mode takes a second, and no other time passes."""

    def __init__(self, time: Time) -> None:
        super().__init__()
        self.time = [time]  # not copied along with the model
        self.fc, self.relu, self.out = nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.time[0].now += 1.0
        return self.out(self.relu(self.fc(x)))

    def __deepcopy__(self, memo: object) -> nn.Module:
        twin = Slow(Time())
        twin.load_state_dict(self.state_dict())
        return twin


def killing(
    monkeypatch: pytest.MonkeyPatch, path: Path, seconds: float = 0.0, **settings: object
) -> list[Death]:
    """A unit dies in each of 30 windows, between which so many seconds pass."""
    time = Time()
    monkeypatch.setattr("reludiag.evidence.budget.process_time", time)
    torch.manual_seed(0)
    model = Slow(time)
    nn.init.constant_(model.fc.bias, 3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(
        model, optimizer, path=path, every=1, probe=PROBE, warn_over=None, **settings
    ):
        for unit in range(30):
            optimizer.zero_grad()
            model(PROBE).square().mean().backward()
            with torch.no_grad():
                model.fc.weight.grad.zero_()
                model.fc.bias.grad.zero_()
                model.fc.weight.grad[unit] = 10.0  # a large update, for which to blame the rate
                model.fc.bias.grad[unit] = 1000.0
            time.now += seconds
            optimizer.step()
    return list(read_recording(path).observations.deaths)


def test_the_first_deaths_of_a_run_are_examined_and_later_ones_are_said_to_be_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deaths = killing(monkeypatch, tmp_path / "run.reludiag")
    assert len(deaths) == 30 and deaths[0].examined and not deaths[-1].examined
    missed = [death for death in deaths if not death.examined]
    assert all(death.drift is None and death.critical_fraction != 0 for death in missed)
    diagnosis = reludiag.load(tmp_path / "run.reludiag")
    units = diagnosis.units.set_index("unit")
    assert set(units.loc[[death.unit for death in missed], "cause"]) == {"undetermined"}
    assert set(units.loc[[d.unit for d in deaths if d.examined], "cause"]) == {"learning_rate"}
    assert units.loc[[death.unit for death in missed], "critical_lr"].isna().all()
    assert any(
        note.startswith(f"Of {len(missed)} of 30 deaths no evidence was collected")
        and "evidence=0.2 allows more" in note
        for note in diagnosis.head.notes
    )
    (cause,) = [c for c in diagnosis.causes if c.site == "relu"]
    assert cause.kind == "undetermined" and not cause.identifiable
    assert f"Of the deaths of {len(missed)} units of 'relu' no evidence" in cause.sentence
    assert "larger `evidence`" in cause.advice


def test_evidence_is_collected_again_when_there_is_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deaths = killing(monkeypatch, tmp_path / "run.reludiag", seconds=100.0)
    flags = [death.examined for death in deaths]
    assert flags[0] and True in flags[flags.index(False) :]
    examined = [death for death in deaths if death.examined]
    assert all(death.drift is not None and death.previous == death.step - 1 for death in examined)


@pytest.mark.parametrize("evidence", [1, 1.0])
def test_all_deaths_are_examined_if_all_the_time_is_given(
    evidence: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deaths = killing(monkeypatch, tmp_path / "run.reludiag", evidence=evidence)
    assert len(deaths) == 30 and all(death.examined for death in deaths)
    causes = reludiag.load(tmp_path / "run.reludiag").units["cause"]
    assert set(causes[:30]) == {"learning_rate"}


@pytest.mark.parametrize("evidence", [False, 0, 0.0])
def test_without_evidence_no_death_is_examined(
    evidence: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert killing(monkeypatch, tmp_path / "run.reludiag", evidence=evidence) == []
    diagnosis = reludiag.load(tmp_path / "run.reludiag")
    assert diagnosis.dead >= 30
    assert "Deaths were not examined (evidence=False)." in diagnosis.head.notes


@pytest.mark.parametrize("evidence", [-0.1, 1.5, "5%", None, float("nan")])
def test_a_share_that_makes_no_sense_is_refused(evidence: object) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(reludiag.UsageError, match="from 0 to 1"):
        reludiag.Monitor(model, evidence=evidence)

"""A Monitor that watched no training says so, when it ends and first in every report."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import reludiag
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.diagnosis.gate import Gate
from reludiag.monitoring.follow import Follower
from reludiag.reports.live import frame
from reludiag.reports.run.markdown import markdown
from tests.test_watch import text

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
Loop = Callable[[nn.Module, torch.optim.Optimizer, reludiag.Monitor], None]


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))


def update(model: nn.Module, scale: float = 1.0) -> None:
    model.zero_grad()
    (scale * functional.softplus(model(X)).sum()).backward()


def another_optimizer(model: nn.Module, _: object, __: object) -> None:
    other = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(6):
        update(model)
        other.step()


def scaler_that_skips(model: nn.Module, optimizer: torch.optim.Optimizer, _: object) -> None:
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(6):
        model.zero_grad()
        scaler.scale(model(X).sum() * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()


def endless_accumulation(model: nn.Module, _: object, __: object) -> None:
    for _ in range(6):
        functional.softplus(model(X)).sum().backward()


def copy_of_the_model(model: nn.Module, optimizer: torch.optim.Optimizer, _: object) -> None:
    twin = copy.deepcopy(model)
    for _ in range(6):
        update(twin)
        optimizer.step()


def frozen_model(model: nn.Module, optimizer: torch.optim.Optimizer, _: object) -> None:
    model.requires_grad_(False)
    for _ in range(6):
        model(X)
        optimizer.step()


def eval_mode(model: nn.Module, optimizer: torch.optim.Optimizer, _: object) -> None:
    model.eval()
    for _ in range(6):
        update(model)
        optimizer.step()


def replica_of(module: nn.Module) -> nn.Module:
    """As `nn.DataParallel` makes one on each GPU."""
    replica = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        replica._modules[name] = replica_of(child)
    for name, parameter in module.named_parameters(recurse=False):
        setattr(replica, name, parameter.view_as(parameter))
    return replica


def replicas(model: nn.Module, optimizer: torch.optim.Optimizer, _: object) -> None:
    for _ in range(6):
        model.zero_grad()
        functional.softplus(replica_of(model)(X)).sum().backward()
        optimizer.step()


UNWATCHED: list[tuple[str, Loop, bool, bool, str]] = [
    # name, loop, with an optimizer, with a probe, words
    ("no optimizer", another_optimizer, False, True, "no step was counted"),
    ("no optimizer, no probe", another_optimizer, False, False, "no step was counted"),
    ("a stale optimizer", another_optimizer, True, True, "but the weights changed"),
    ("a stale optimizer, no probe", another_optimizer, True, False, "but the weights changed"),
    ("skipped steps", scaler_that_skips, True, True, "the gradients are not finite"),
    ("endless accumulation", endless_accumulation, True, True, "gradient accumulation"),
    ("a copy", copy_of_the_model, True, True, "no weight of the model changed"),
    ("a copy, no probe", copy_of_the_model, True, False, "the model ran no forward pass"),
    ("replicas, no probe", replicas, True, False, "the model ran no forward pass"),
    ("frozen", frozen_model, True, True, "no weight of the model changed"),
    ("frozen, no probe", frozen_model, True, False, "no weight of the model changed"),
    (
        "eval mode, no probe",
        eval_mode,
        True,
        False,
        "was called in evaluation mode",
    ),
]


def run(
    loop: Loop, path: Path, optimizer: bool = True, probe: bool = True
) -> tuple[reludiag.Diagnosis, list[str]]:
    """The Diagnosis, and the warnings of reludiag."""
    model = network()
    given = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with reludiag.Monitor(
            model, given if optimizer else None, path=path, every=2, probe=X if probe else None
        ) as monitor:
            loop(model, given, monitor)
    messages = [str(w.message) for w in caught]
    return reludiag.load(path), [m for m in messages if m.startswith("reludiag")]


@pytest.mark.parametrize(
    ("loop", "optimizer", "probe", "words"),
    [case[1:] for case in UNWATCHED],
    ids=[case[0] for case in UNWATCHED],
)  # fmt: skip
def test_nothing_watched_is_said_in_place_of_no_deaths(
    loop: Loop, optimizer: bool, probe: bool, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.reludiag"
    diagnosis, told = run(loop, path, optimizer, probe)
    assert told[-1].startswith("reludiag: Nothing was watched: ") and words in told[-1]
    assert not diagnosis.watched and diagnosis.judged_units == 0
    assert diagnosis.head.notes[0] == told[-1].removeprefix("reludiag: ")
    diagnosis.to_json(tmp_path / "run.json")
    assert not open_diagnosis(tmp_path / "run.json").watched
    page = " ".join(diagnosis._repr_html_().split())
    pages = [str(diagnosis), markdown(diagnosis, []), text(Follower(path).look()), page]
    for shown in pages:
        assert "Nothing was watched" in " ".join(shown.split()) or "nothing was watched" in shown
        assert "No unit is dead" not in shown and "None of 16 units is dead" not in shown
    assert all("0 of 16 units dead" not in shown for shown in pages[:3])
    assert any(c.fails for c in Gate.parse(["60%"]).judge(diagnosis.sites, diagnosis.unjudged))
    assert any(c.fails for c in Gate.parse(["*=60%"]).judge(diagnosis.sites, diagnosis.unjudged))
    assert frame(Follower(path).look(), 20) is not None


def test_replicas_of_data_parallel_raise_nothing_and_are_named(tmp_path: Path) -> None:
    diagnosis, _ = run(replicas, tmp_path / "run.reludiag", probe=False)
    assert any("nn.DataParallel" in note for note in diagnosis.head.notes)
    diagnosis, told = run(replicas, tmp_path / "probed.reludiag", probe=True)
    assert diagnosis.watched and told == []


def test_a_run_without_a_step_that_was_interrupted_warns_of_nothing(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise KeyError("data")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError):
            run(fail, tmp_path / "run.reludiag")
    diagnosis = reludiag.load(tmp_path / "run.reludiag")
    assert "Nothing was watched: the run ended before its first step." in diagnosis.head.notes


def test_a_run_that_has_not_stepped_yet_is_not_called_unwatched(tmp_path: Path) -> None:
    seen = []
    run(lambda *_: seen.append(reludiag.load(tmp_path / "run.reludiag")), tmp_path / "run.reludiag")
    assert seen[0].watched


class OldStyle(torch.optim.Optimizer):
    """It replaces and changes only `.data`, which no version counts."""

    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, {"lr": 0.01})

    def step(self, closure: object = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.data = parameter.data - 0.01 * parameter.grad


def by_hand(model: nn.Module, _: object, monitor: reludiag.Monitor) -> None:
    optimizer = OldStyle(model.parameters())
    for _ in range(6):
        update(model)
        optimizer.step()
        monitor.step()


def without_a_rate(model: nn.Module, optimizer: torch.optim.Optimizer, _: object) -> None:
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(6):
        update(model)
        optimizer.step()


def last_layer_only(model: nn.Module, optimizer: torch.optim.Optimizer, _: object) -> None:
    model[0].requires_grad_(False)
    for _ in range(6):
        update(model)
        optimizer.step()


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize(
    ("loop", "optimizer"), [(by_hand, False), (without_a_rate, True), (last_layer_only, True)]
)
def test_a_training_that_was_watched_is_not_accused(
    loop: Loop, optimizer: bool, probe: bool, tmp_path: Path
) -> None:
    diagnosis, told = run(loop, tmp_path / "run.reludiag", optimizer, probe)
    assert told == [] and diagnosis.watched
    assert "No unit is dead." in str(diagnosis)


def test_of_a_run_that_was_not_watched_no_cause_is_named() -> None:
    """Its first snapshot without a probe is of trained weights, which no draw has made."""
    model = network()
    with torch.no_grad():
        model[0].bias[:6] = -50.0  # type: ignore[union-attr, operator]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with pytest.warns(RuntimeWarning, match="Nothing was watched"):  # noqa: SIM117
        with reludiag.Monitor(model) as monitor:
            for _ in range(20):
                update(model)
                optimizer.step()
    diagnosis = monitor.diagnose()
    shown = str(diagnosis)
    assert not diagnosis.causes and "dead at step 0" not in shown
    assert "nothing was watched" in shown and "units dead (" not in shown


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, 0.1, "sgd"])
def test_what_is_no_optimizer_is_refused(optimizer: object) -> None:
    with pytest.raises(reludiag.ReludiagError, match="expected a torch"):
        reludiag.Monitor(network(), optimizer)  # type: ignore[arg-type]

"""BatchNorm judged on running statistics and on those of the batch, and where the two disagree."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reludiag
from reludiag.causes.explain import explain
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.measure.batch_statistics import on_batch_statistics
from reludiag.recording import read_recording
from reludiag.testing import assert_alive
from tests.test_causes import dying, run_of

X = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def network(momentum: float = 0.1, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs in (12, 24):
        layers += [nn.Linear(inputs, 24), nn.BatchNorm1d(24, momentum=momentum), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(24, 2))


def of_other_data(model: nn.Module) -> None:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.running_mean.add_(torch.linspace(-2, 6, 24))  # type: ignore[union-attr]


def silenced(model: nn.Module) -> None:
    """Units whose running statistics do not know yet that their input moved."""
    with torch.no_grad():
        model[1].bias[:20] = -8.0  # type: ignore[index, union-attr, operator]
        model[0].bias[:20] += 40.0  # type: ignore[index, union-attr, operator]


def silent(model: nn.Module, site: int, training: bool, x: Tensor = X) -> set[int]:
    """By brute force, in float64."""
    model.train(training)
    with torch.no_grad():
        dead = (model.double()[: site + 1](x.double()) <= 0).all(0)  # type: ignore[index, operator]
    model.float()
    return set(torch.nonzero(dead).flatten().tolist())


def monitored(
    model: nn.Module, steps: int = 20, x: Tensor = X, edit: Any = None, **settings: Any
) -> reludiag.Monitor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with reludiag.Monitor(model, optimizer, **{"every": 5, "probe": x, **settings}) as monitor:
        for step in range(steps):
            if edit is not None and step == 7:
                edit(model)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), Y).backward()
            optimizer.step()
    return monitor


def test_units_that_only_running_statistics_silence_are_not_born_dead_and_name_the_cause() -> None:
    model = network(momentum=1e-4)
    of_other_data(model)
    diagnosis = monitored(model).diagnose()
    cause = diagnosis.causes[0]
    assert (cause.kind, cause.identifiable) == ("batchnorm_statistics", True)
    assert "fire on batch statistics: the running statistics of BatchNorm do not fit" in (
        cause.sentence
    )
    assert "update_bn" in cause.advice
    assert "momentum of BatchNorm from 0.0001 to 0.1" in cause.advice
    assert diagnosis.sites[["born_dead", "died"]].to_numpy().sum() == 0
    assert "fire on batch statistics" in diagnosis.head.notes[0]
    dead = diagnosis.units[diagnosis.units["verdict"] == "dead"]
    for site in ("2", "5"):
        mine = set(dead.loc[dead["site"] == site, "unit"])
        assert mine == silent(model, int(site), training=False)
        assert diagnosis.only_in_eval[site] == len(mine - silent(model, int(site), training=True))


@pytest.mark.parametrize("shift", [20.0, 100.0])
def test_few_steps_on_shifted_data_are_the_statistics_and_neither_input_nor_weights(
    shift: float,
) -> None:
    cause = monitored(network(), steps=6, x=X + shift).diagnose().causes[0]
    assert (cause.kind, cause.identifiable) == ("batchnorm_statistics", True)
    assert "train for more steps" in cause.advice


def test_dead_units_that_lagging_statistics_hide_are_said_first() -> None:
    model = network(momentum=1e-4)
    diagnosis = monitored(model, edit=silenced).diagnose()
    cause = diagnosis.causes[0]
    assert silent(model, 2, training=False) == set()
    hidden = len(silent(model, 2, training=True))
    assert hidden == 20 and diagnosis.only_in_training == {"2": hidden}
    assert (cause.kind, cause.identifiable) == ("batchnorm_statistics", False)
    assert cause.sentence.startswith("20 of 48 units that fire in eval mode are dead on batch")
    assert any("20 units that fire in eval mode" in note for note in diagnosis.head.notes[:2])


def test_a_healthy_network_with_batch_norm_has_no_cause_and_dies_of_what_it_died_before() -> None:
    assert monitored(network(), steps=40).diagnose().causes[0].kind == "none"
    model = network()
    with torch.no_grad():
        model[4].bias.fill_(-9.0)  # type: ignore[union-attr, operator]
    assert monitored(model).diagnose().causes[0].kind == "initialization"


def test_units_that_died_on_both_statistics_died_at_that_step() -> None:
    def low(model: nn.Module) -> None:
        with torch.no_grad():
            model[4].bias[:10] = -9.0  # type: ignore[index, union-attr, operator]

    model = network(momentum=1e-4)
    of_other_data(model)
    units = monitored(model, edit=low).diagnose().units.query("site == '5' and unit < 10")
    assert (units["died_step"] == 10).all()
    assert (units["cause"] != "batchnorm_statistics").all()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_second_judgement_leaves_no_trace_in_the_training(momentum: float | None) -> None:
    def trained(**settings: Any) -> nn.Module:
        model = network()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.momentum = momentum
        model[4].eval()  # a frozen one stays frozen
        monitored(model, **settings)
        return model

    first, second = trained(), trained(probe=None, evidence=False)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [m.training for m in first.modules()] == [m.training for m in second.modules()]


def test_batch_statistics_are_those_of_training_and_are_undone_after_an_error() -> None:
    model = network().eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    buffers = [*model.buffers()]
    with pytest.raises(ValueError, match="more than 1 value"), on_batch_statistics(model):
        here = model(X)
        model(X[:1])
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert not model.training
    assert torch.equal(here, model.train()(X))


def test_a_probe_of_one_sample_has_no_batch_statistics_and_is_recorded_all_the_same() -> None:
    model = network()
    monitor = monitored(model, probe=[X[:1]])
    diagnosis = monitor.diagnose()
    assert diagnosis.head.status == "complete" and not diagnosis.only_in_eval
    assert any("they lag behind" in note for note in diagnosis.head.notes)


def test_a_model_without_running_statistics_is_run_once(tmp_path: Path) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for norm, passes in ((nn.BatchNorm1d(8), 2), (nn.BatchNorm1d(8, track_running_stats=False), 1)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 8), norm, nn.ReLU())
        calls = 0
        model[0].register_forward_hook(count)
        with reludiag.Monitor(model, probe=X, every=1, path=tmp_path / f"{passes}") as monitor:
            calls = 0
            monitor.step()
        assert calls == passes
    (site,) = read_recording(tmp_path / "2").sites
    assert [*site.on_batch] == [0, 1]
    assert not read_recording(tmp_path / "1").sites[0].on_batch


def test_of_snapshots_that_were_not_judged_twice_a_unit_stays_as_it_was() -> None:
    model = network(momentum=1e-4)
    of_other_data(model)
    monitor = monitored(model)
    assert monitor._writer is not None
    run = monitor._writer.read()
    site = run.sites[0]
    both = site.only_in_eval[-1]
    site.on_batch.pop(len(run.steps) - 1)  # type: ignore[attr-defined]
    del site.__dict__["only_in_eval"]
    assert np.array_equal(site.only_in_eval[-1], both) and both.any()


def test_a_network_that_was_never_trained_is_alive_by_its_weights() -> None:
    model = network()
    shifted = [X[:128] + 4, X[128:] + 4]
    assert silent(model, 2, training=False, x=X + 4)
    model = network()
    diagnosis = assert_alive(model, shifted)
    assert diagnosis.dead == sum(diagnosis.only_in_eval.values()) > 0
    assert "the running statistics of BatchNorm have seen no data" in diagnosis.head.notes[0]
    with torch.no_grad():
        model[4].bias[:3] = -40.0  # type: ignore[index, union-attr, operator]
    with pytest.raises(AssertionError, match="3 of 48 units"):
        assert_alive(model, shifted)


def test_a_trained_network_on_other_data_is_not_alive_in_eval_mode() -> None:
    model = network()
    model(X)
    with pytest.raises(AssertionError, match="do not fit the data"):
        assert_alive(model, [X + 10])
    diagnosis = reludiag.scan(model, iter([X + 10]))  # read only once
    assert diagnosis.dead and diagnosis.dead == sum(diagnosis.only_in_eval.values())
    assert not reludiag.scan(model, [X + 10], train_mode=True).only_in_eval
    assert not reludiag.scan(model, [X]).only_in_eval


def test_a_json_report_tells_what_only_one_of_the_statistics_silences(tmp_path: Path) -> None:
    """One of an older version does not, and is opened all the same."""
    model = network(momentum=1e-4)
    of_other_data(model)
    one = monitored(model).diagnose()
    other = monitored(network(momentum=1e-4), edit=silenced).diagnose()
    assert one.only_in_eval and other.only_in_training
    for diagnosis in (one, other):
        diagnosis.to_json(tmp_path / "run.json")
        opened = open_diagnosis(tmp_path / "run.json")
        assert opened.only_in_eval == diagnosis.only_in_eval
        assert opened.only_in_training == diagnosis.only_in_training
    content = json.loads((tmp_path / "run.json").read_text())
    del content["only_in_eval"], content["only_in_training"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert not open_diagnosis(tmp_path / "old.json").only_in_training


@pytest.mark.parametrize(
    ("momentum", "died", "sure"),
    [
        (1e-3, 0, True),  # the statistics are still those that the run began with
        (0.1, 0, False),  # they follow the data: something moves them fast
        (1e-3, 30, False),  # what killed as many in training may have done it
    ],
)
def test_running_statistics_are_surely_the_cause_only_where_they_are_old(
    momentum: float, died: int, sure: bool
) -> None:
    run = run_of(dying(20, {5: 40 + died}), [(1, 0.1)])
    fires = (np.arange(100) < 40) | (np.arange(100) >= 40 + died)
    site = replace(run.sites[0], on_batch=dict.fromkeys(range(21), fires))
    facts = {**run.facts, "batch_norms": {"momentum": momentum}}
    cause = explain(replace(run, facts=facts, sites=(site,))).causes[0]
    assert (cause.kind, cause.identifiable) == ("batchnorm_statistics", sure)

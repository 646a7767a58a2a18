"""The benchmark of causes holds what it promises: proofs, its own count, and what it follows.

How right reludiag is, is for the benchmark to say: nothing here depends on it.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.deadbench.__main__ import select
from benchmarks.deadbench.advice import follow
from benchmarks.deadbench.judging import judge
from benchmarks.deadbench.loop import in_eval_mode, lost_units, train, untrained
from benchmarks.deadbench.proof import prove
from benchmarks.deadbench.scores import cells, summary
from benchmarks.deadbench.tasks import mlp
from benchmarks.deadbench.training import CAUSES, Group, Settings, Training, no_edit, trainings
from benchmarks.deadbench.trainings.initialization import low_norm
from reludiag.causes.cause import Change

NEW_FILE = """
from benchmarks.deadbench.training import Settings, Training
TRAININGS = [Training({name!r}, Settings(lr=10.0), {{{cause!r}: {{"lr": 0.1}}}})]
"""
EVERY = {training.name: training for training in trainings()}


def write_training(folder: Path, name: str, cause: str = "learning_rate") -> None:
    number = len([*folder.iterdir()])
    (folder / f"new_{number}.py").write_text(NEW_FILE.format(name=name, cause=cause))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_training_of_a_new_file_is_found(tmp_path: Path) -> None:
    write_training(tmp_path, "mine")
    assert [(each.name, each.cause) for each in trainings(tmp_path)] == [("mine", "learning_rate")]


def test_two_trainings_of_one_name_are_refused(tmp_path: Path) -> None:
    write_training(tmp_path, "mine")
    write_training(tmp_path, "mine")
    with pytest.raises(ValueError, match="'mine'"):
        trainings(tmp_path)


def test_a_cause_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    write_training(tmp_path, "mine", cause="bad luck")
    with pytest.raises(ValueError, match="bad luck"):
        trainings(tmp_path)


def test_there_are_trainings_of_every_cause() -> None:
    causes = [training.cause for training in EVERY.values()]
    assert {*causes} == {*CAUSES} - {"undetermined"}
    assert causes.count("none") >= 6


def test_the_parts_are_all_trainings_once() -> None:
    parts = [each for i in (1, 2, 3) for each in select([*EVERY.values()], "", (i, 3))]
    assert sorted(each.name for each in parts) == sorted(EVERY)


@pytest.mark.parametrize("name", ["SGD too high, clipped", "biases of -3, SGD"])
def test_a_cause_is_proved_by_its_own_counterfactual(name: str) -> None:
    training = EVERY[name]
    faulty = train(training.settings, 0)
    proof = prove(training, 0, faulty)
    assert proof.proved == {training.cause}
    assert proof.without[training.cause].at() < 0.3 * faulty.at()


def test_a_change_that_saves_no_unit_proves_nothing() -> None:
    training = Training("wrong", Settings(lr=10.0, clip=1.0), {"input": {"batch": 63}})
    proof = prove(training, 0, train(training.settings, 0))
    assert not proof.proved
    assert "without input" in proof.reason


def test_a_training_that_kills_no_unit_proves_nothing() -> None:
    training = Training("mild", Settings(steps=20), {"learning_rate": {"lr": 0.01}})
    assert prove(training, 0, train(training.settings, 0)).reason.endswith("lost")


def test_a_training_with_deaths_is_not_healthy() -> None:
    training = Training("not healthy", Settings(lr=10.0, clip=1.0))
    assert not prove(training, 0, train(training.settings, 0)).proved


def test_a_seed_gives_the_same_training_again() -> None:
    settings = EVERY["one broken sample"].settings
    first, again = train(settings, 1), train(settings, 1)
    assert (first.lost, first.loss) == (again.lost, again.loss)


def test_a_run_is_judged_and_summed_up() -> None:
    training = EVERY["biases of -3, SGD"]
    row = judge(training, 0)
    assert row.answer.outcome.lost == train(training.settings, 0).lost  # the Monitor changes none
    assert row.effects["true fix"].works
    assert training.name in cells(training, [row])
    assert "| proved |" in summary([row], {})


def test_what_never_fires_or_is_not_finite_is_lost() -> None:
    model = mlp(4, (6,), 2)
    with torch.no_grad():
        model[0].bias[:2] = -100
        model[0].bias[2] = torch.nan
        model[0].bias[3:] = 100
    lost, nonfinite = lost_units(model, torch.randn(50, 4))
    assert lost == {"": 0.5, "1": 0.5}
    assert nonfinite == pytest.approx(1 / 6)


def test_counting_leaves_every_module_in_its_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3).eval(), nn.Linear(3, 2), nn.ReLU())
    with in_eval_mode(model):
        assert not model.training
    assert [module.training for module in model.modules()] == [True, False, True, True]


def followed(*changes: Change) -> Settings:
    every = follow(changes)
    assert every.change is not None and every.left == ()
    return every.change(Settings())


def test_an_advice_on_the_rate_is_followed_in_the_groups_that_it_names() -> None:
    groups = (Group("weight"), Group())
    every = follow([Change("lr", "lower", ("0/1",), 0.4, 0.1)])
    assert every.change is not None
    changed = every.change(Settings(lr=1.0, groups=groups))
    assert [group.rate for group in changed.groups] == pytest.approx([1.0, 0.25])
    assert followed(Change("lr", "lower")).groups[0].rate == pytest.approx(0.1)


def test_an_advice_on_some_steps_leaves_the_others() -> None:
    schedule = followed(Change("lr", "lower", ("0/0",), 0.4, 0.1, (11, 20))).schedule
    assert [schedule(step) for step in (9, 10, 19, 20)] == [1.0, 0.25, 0.25, 1.0]


def test_an_advice_on_two_layers_is_followed() -> None:
    every = follow([Change("init.bias", "start", ("0", "2"), -3.0, 0.0), Change("song", "sing")])
    assert every.change is not None and every.left == ("sing",)
    biases = untrained(every.change(Settings()), 0)
    assert [int(biases[layer].bias.count_nonzero()) for layer in (0, 2, 4)] == [0, 0, 64]


def test_an_advice_on_the_draw_of_layers_is_followed() -> None:
    model = untrained(followed(Change("init", "draw", ("0", "2"), after="kaiming_normal")), 0)
    assert [int(model[layer].bias.count_nonzero()) for layer in (0, 2, 4, 6)] == [0, 0, 64, 10]
    assert model[0].weight.var() > 1.5 / 64  # He's 2/64; PyTorch's is a sixth of it


def test_an_advice_on_a_norm_is_followed() -> None:
    every = follow([Change("init", "start", ("1",), after="norm")])
    assert every.change is not None
    network = partial(mlp, 64, (64, 64), 10, nn.BatchNorm1d)
    model = untrained(every.change(Settings(network=network, init=(partial(low_norm, -4.0),))), 0)
    assert [model[norm].bias.mean().item() for norm in (1, 4)] == [0.0, -4.0]


def test_an_advice_on_the_gradients_or_on_an_edit_is_followed() -> None:
    assert followed(Change("clip_grad_norm", "clip", after=0.5)).clip == 0.5
    edited = follow([Change("edits", "leave out", ("0",), after="none")])
    assert edited.change is not None
    assert edited.change(EVERY["weights rounded down"].settings).edit is no_edit


def test_an_advice_that_changes_no_setting_is_not_followed() -> None:
    assert follow((), "stand on one leg").change is None
    assert follow((), "stand on one leg").left == ("stand on one leg",)
    assert follow(()).left == ()

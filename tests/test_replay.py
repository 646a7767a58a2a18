"""Replay: the cause that a counterfactual names, where it is known."""

import contextlib
import json
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from reludiag_cli.app import main
from torch import nn

import reludiag
from reludiag.experiments.analysis.counterfactual import answer, arms_of
from reludiag.experiments.queue.queue import Cell, Result
from reludiag.experiments.queue.sqlite_queue import SqliteQueue
from reludiag.experiments.replay import replay_of
from reludiag.experiments.trial_table import trials_table
from reludiag.process import this_process
from reludiag.recording import read_recording

pytestmark = pytest.mark.usefixtures("forked_workers")

# Digits, each pixel standardised; an MLP of three hidden layers; Adam, 8 epochs of batches of 64.
DIGITS = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

torch.set_num_threads(1)
_data = load_digits()
X = torch.tensor(_data.data, dtype=torch.float32)
X = (X - X.mean(0)) / X.std(0).where(X.std(0) > 0, 1)
Y = torch.tensor(_data.target)


def fit(trial, lr, bias=0.0, shift=0.0):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                          nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.bias.fill_(bias)
        for layer in layers[1:3]:
            layer.weight += shift
    trial.init(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.lr(lr))
    with trial.monitor(model, optimizer, probe=X):
        for _ in range(8):
            for chosen in torch.randperm(len(X)).split(64):
                optimizer.zero_grad()
                cross_entropy(model(X[chosen]), Y[chosen]).backward()
                optimizer.step()
    with torch.no_grad():
        return {"accuracy": (model(X).argmax(1) == Y).float().mean()}


def fast(trial): return fit(trial, 0.1)
def control(trial): return fit(trial, 1e-3)
def biased(trial): return fit(trial, 1e-3, bias=-3.0)
def shifted(trial): return fit(trial, 1e-3, shift=-0.3)
def biased_and_fast(trial): return fit(trial, 0.1, bias=-3.0)
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("replay") / "digits.py"
    file.write_text(DIGITS)
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "kind", "dominant", "factual"),
    [
        ("fast", "learning_rate", None, 0.575),
        ("biased", "initialization", None, 0.274),
        ("shifted", "initialization", None, 0.667),
        ("biased_and_fast", "both", "learning_rate", 0.573),
        ("control", "none", None, 0.007),
    ],
)
def test_the_cause_that_was_built_in_is_named(
    digits: str, train: str, kind: str, dominant: str | None, factual: float
) -> None:
    found = reludiag.replay(f"{digits}:{train}", lr_scale=0.1, init="kaiming", seeds=2, workers=1)
    assert (found.answer.kind, found.answer.dominant) == (kind, dominant), str(found)
    assert found.answer.agreeing == found.answer.seeds == 2
    assert found.arm("factual").dead == pytest.approx(factual, abs=0.08)
    assert found.trials["recording"].eq("").all()


@pytest.mark.slow
def test_two_factual_runs_of_a_seed_have_the_same_dead_units(digits: str, tmp_path: Path) -> None:
    trials = [
        reludiag.sweep(f"{digits}:fast", seeds=[7], path=tmp_path / name) for name in ("a", "b")
    ]
    runs = [read_recording(Path(table["recording"].iloc[0])) for table in trials]
    assert sum(site.dead[-1].sum() for site in runs[0].sites) > 50
    for first, second in zip(runs[0].sites, runs[1].sites, strict=True):
        assert np.array_equal(first.dead, second.dead)
    assert trials[0]["metric.accuracy"].equals(trials[1]["metric.accuracy"])


@pytest.mark.slow
def test_the_command_prints_the_answer_and_its_runs(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "runs.csv"
    monkeypatch.setattr(
        "sys.argv",
        [
            "reludiag",
            "replay",
            f"{digits}:fast",
            "--seeds",
            "1",
            "--workers",
            "1",
            "--json",
            "--csv",
            str(csv),
        ],
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    document = json.loads(capsys.readouterr().out)
    assert document["answer"]["kind"] == "learning_rate"
    assert document["lr"] == 0.1
    assert document["suspects"] == ["learning_rate"]  # and so nothing else is varied
    assert [arm["name"] for arm in document["arms"]] == ["factual", "lr"]
    assert list(pd.read_csv(csv)["arm"]) == ["factual", "lr"]


NORMALIZED = """
import torch
from torch import nn


def train(trial):
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    trial.init(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr(0.1))
    with trial.monitor(model, optimizer, probe=x):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
"""


def test_a_batch_norm_that_was_judged_in_eval_mode_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "normed.py").write_text(NORMALIZED)
    spec = f"{tmp_path / 'normed.py'}:train"
    told = "On the probe, BatchNorm uses its running statistics"
    found = reludiag.replay(spec, lr_scale=0.5, seeds=1, workers=1)
    assert sum(note.startswith(told) for note in found.notes) == 1
    trials = reludiag.sweep(spec, lr=[0.1], seeds=2, path=tmp_path / "sweep", workers=1)
    assert [note for note in reludiag.effects(trials).notes if note.startswith(told)]


NONE: dict[str, int] = {}
BORN = {"factual": 28, "lr": 28}


def trials(
    seeds: int = 2,
    status: str = "complete",
    born: dict[str, int] = NONE,
    loss: dict[str, float] | None = None,
    metric: str = "loss",
    **dead: object,
) -> pd.DataFrame:
    """100 units; the dead of each arm, for each seed if it is a list; and a metric of each arm."""
    rows = [
        {
            "arm": arm, "seed": seed, "lr": 0.1, "status": status if count is None else "complete",
            "units": 100, "born": born.get(arm, 0), "new": count, "dead": count, "error": "",
            "recording": "",
        }
        for arm, counts in dead.items()
        for seed, count in enumerate(counts if isinstance(counts, list) else [counts] * seeds)
    ]  # fmt: skip
    table = pd.DataFrame(rows).astype({"dead": "Int64", "new": "Int64"})
    if loss is not None:
        table[f"metric.{metric}"] = table["arm"].map(loss)
    return table


@pytest.mark.parametrize(
    ("dead", "born", "kind", "dominant"),
    [
        ({"factual": 58, "lr": 4, "init": 58, "both": 1}, NONE, "learning_rate", None),
        ({"factual": 27, "lr": 30, "init": 1, "both": 1}, BORN, "initialization", None),
        ({"factual": 57, "lr": 18, "init": 58, "both": 2}, BORN, "both", "learning_rate"),
        ({"factual": 57, "lr": 18, "init": 58, "both": 2}, NONE, "learning_rate", None),
        ({"factual": 57, "lr": 18, "init": 30, "both": 2}, NONE, "both", "learning_rate"),
        ({"factual": 57, "lr": 57, "init": 25, "both": 2}, NONE, "both", "initialization"),
        ({"factual": 57, "lr": 50, "init": 52, "both": 2}, NONE, "both", None),
        ({"factual": 57, "lr": 2, "init": 3, "both": 2}, NONE, "either", None),
        ({"factual": 57, "lr": 40, "init": 56, "both": 39}, NONE, "neither", None),
        ({"factual": 5, "lr": 0, "init": 0, "both": 0}, NONE, "none", None),
        ({"factual": 57, "lr": 2}, NONE, "learning_rate", None),
        ({"factual": 57, "init": 57}, NONE, "neither", None),
        ({"factual": 57, "lr": None, "init": 2, "both": None}, NONE, "initialization", None),
    ],
)
def test_the_arms_decide(
    dead: dict[str, object], born: dict[str, int], kind: str, dominant: str | None
) -> None:
    table = trials(**dead, born=born, status="crashed")
    assert (answer(table).kind, answer(table).dominant) == (kind, dominant)
    said = replay_of(table, "train", 0.1, "kaiming")
    assert said.sentence.endswith(".")
    assert "None" not in f"{said.sentence} {said.advice} {said.notes}"
    str(said)


def test_a_learning_rate_that_still_kills_is_told_to_be_too_high() -> None:
    found = replay_of(trials(factual=88, lr=28, init=88, both=7), "train", 0.1, "kaiming")
    assert (
        "28.0 % with the learning rate lowered to 0.01, which is still too high" in found.sentence
    )
    assert found.advice == "Use a learning rate below 0.01."


def test_a_run_that_diverges_is_no_run_without_deaths() -> None:
    table = trials(factual=None, lr=3, init=None, both=3, status="diverged")
    found = replay_of(table, "train", 0.1, "kaiming")
    assert found.answer.kind == "divergence"
    assert "with the learning rate lowered to 0.01" in found.sentence
    assert found.arm("factual").dead is None


def test_seeds_that_disagree_are_told() -> None:
    table = trials(factual=[60, 60, 60], lr=[1, 2, 38], init=[60, 60, 60], both=[1, 2, 3])
    found = replay_of(table, "train", 0.1, "kaiming")
    assert found.answer.kind == "learning_rate"
    assert found.answer.agreeing == 2
    assert "2 of 3 seeds" in " ".join(found.notes)


def test_only_completed_runs_count_and_only_the_same_seeds_are_compared() -> None:
    table = trials(factual=[50, None], lr=[10, 20], status="crashed")
    factual, lowered = arms_of(table)
    assert (factual.dead, factual.counted, factual.crashed) == (0.5, 1, 1)
    assert lowered.dead == pytest.approx(0.15)
    assert lowered.prevented == pytest.approx(0.8)


def test_changing_nothing_is_refused() -> None:
    with pytest.raises(reludiag.UsageError, match="nothing would be changed"):
        reludiag.replay("any.py:train", lr_scale=1, init="default")


def test_the_report_fits_80_columns_and_says_what_was_run() -> None:
    table = trials(factual=58, lr=4, init=58, both=1)
    text = str(replay_of(table, "path/digits.py:train", 0.1, "kaiming"))
    assert max(map(len, text.splitlines())) <= 80
    assert "The learning rate 0.1 killed them: 58.0 %" in text
    assert "lr x 0.1" in text and "init kaiming" in text


def births(**arms: tuple[int, int] | None) -> pd.DataFrame:
    """100 units; (born dead, dead at the end) of each arm, None where it diverged."""
    rows = [
        {
            "arm": arm, "seed": 0, "lr": 1e-3, "status": "complete" if counts else "diverged",
            "units": 100, "born": counts and counts[0], "dead": counts and counts[1],
            "new": counts and max(counts[1] - counts[0], 0), "error": "", "recording": "",
        }
        for arm, counts in arms.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).astype(dict.fromkeys(("born", "new", "dead"), "Int64"))


@pytest.mark.parametrize(
    ("arms", "kind"),
    [
        ({"factual": (73, 73), "lr": (73, 72), "init": (17, 21), "both": (17, 21)},
         "initialization"),
        ({"factual": (73, 73), "lr": (73, 72), "init": (17, 32), "both": (17, 30)},
         "initialization"),
        ({"factual": (17, 60), "lr": (17, 18), "init": (17, 60), "both": (17, 18)},
         "learning_rate"),
        ({"factual": (17, 60), "lr": (17, 18)}, "learning_rate"),
        ({"factual": (73, 73), "lr": (73, 72), "init": (65, 65), "both": (65, 65)}, "neither"),
        ({"factual": (17, 17), "lr": (17, 17), "init": (16, 16), "both": (16, 16)}, "neither"),
        ({"factual": (73, 73), "lr": (73, 72)}, "neither"),
        ({"factual": (60, 73), "lr": (60, 62), "init": (5, 30), "both": (5, 6)}, "both"),
    ],
)  # fmt: skip
def test_a_change_is_judged_by_the_deaths_that_can_be_prevented(
    arms: dict[str, tuple[int, int]], kind: str
) -> None:
    table = births(**arms)
    assert answer(table).kind == kind
    str(replay_of(table, "train", 0.1, "kaiming"))


@pytest.mark.parametrize("arms", [
    {"factual": (73, 73), "lr": (73, 72)},
    {"factual": (73, 73), "lr": (73, 72), "init": (65, 65), "both": (65, 65)},
    {"factual": (73, 73), "lr": (73, 72), "init": (17, 32), "both": (17, 30)},
    {"factual": (0, 57), "init": (0, 57)},
])  # fmt: skip
def test_no_smaller_learning_rate_is_advised_where_it_prevents_nothing(
    arms: dict[str, tuple[int, int]],
) -> None:
    advice = replay_of(births(**arms), "train", 0.1, "kaiming").advice
    assert "learning rate" not in advice and "--lr-scale" not in advice


def test_births_that_no_scheme_was_tried_against_are_told_apart() -> None:
    found = replay_of(births(factual=(60, 75), lr=(60, 60)), "train", 0.1, None)
    assert "killed the units not born dead" in found.sentence
    assert "--init kaiming" in found.advice


@pytest.mark.parametrize("arms", [
    {"factual": (0, 57), "lr": None},
    {"factual": (0, 57), "lr": None, "init": (0, 56), "both": None},
    {"factual": (0, 57), "lr": (0, 57), "init": None, "both": None},
    {"factual": (0, 57), "lr": (0, 20), "init": None, "both": None},
    {"factual": (0, 57), "lr": None, "init": (0, 30), "both": (0, 2)},
])  # fmt: skip
def test_a_change_whose_runs_are_all_lost_cannot_be_told(
    arms: dict[str, tuple[int, int] | None],
) -> None:
    found = replay_of(births(**arms), "train", 0.1, "kaiming")
    assert found.answer.kind == "undetermined"
    assert found.sentence.startswith("It is unknown what ")
    assert "57.0 % of the units are dead" in found.sentence


def test_a_lost_change_is_noted_in_grammar_where_another_is_the_cause() -> None:
    found = replay_of(
        births(factual=(50, 57), lr=None, init=(0, 1), both=None), "t", 0.1, "kaiming"
    )
    assert found.answer.kind == "initialization"
    assert "Of 1 run of lr, 1 diverged: what it prevents is unknown." in found.notes


@pytest.mark.parametrize(
    ("given", "arms"),
    [
        ({"lr_scale": 0.04}, {(1.0, "default"), (0.04, "default")}),
        ({"init": "kaiming"}, {(1.0, "default"), (1.0, "kaiming")}),
        (
            {"lr_scale": 0.1, "init": "kaiming"},
            {(1.0, "default"), (0.1, "default"), (1.0, "kaiming"), (0.1, "kaiming")},
        ),
        ({}, {(1.0, "default")}),  # its report says what to change
    ],
)
@pytest.mark.parametrize("by_command", [False, True])
def test_only_what_is_given_is_changed(
    given: dict[str, object],
    arms: set[tuple[float, str]],
    by_command: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned: list[Cell] = []

    def planning(_: object, cells: list[Cell], *__: object) -> None:
        planned.extend(cells)
        raise reludiag.UsageError("planned")

    monkeypatch.setattr("reludiag.experiments.replay.run_cells", planning)
    if by_command:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        monkeypatch.setattr("sys.argv", ["reludiag", "replay", "any.py:train", *options])
        with pytest.raises(SystemExit):
            main()
    else:
        with pytest.raises(reludiag.UsageError, match="planned"):
            reludiag.replay("any.py:train", **given)
    assert {(cell.lr_scale, cell.init) for cell in planned} == arms


def test_a_run_that_diverged_has_no_dead_fraction() -> None:
    results = [
        (Cell(0, 0), Result("diverged", units=10, dead=4, nonfinite=6, dead_fraction=0.4)),
        (Cell(1, 0), Result("complete", units=10, dead=4, nonfinite=0, dead_fraction=0.4)),
    ]
    fractions = trials_table(results)["dead_fraction"]
    assert fractions.isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("dead", "kind", "advice"),
    [
        ({"factual": 50, "weight_decay=0": 1}, "weight_decay", "Set weight_decay to 0."),
        ({"factual": 50, "weight_decay=0": 49, "input": 1, "both": 1}, "input",
         "Subtract the mean of each feature from the input."),
        ({"factual": 50, "momentum=0": 2, "l1=0": 48, "weight_decay=0": 3, "both": 0}, "either",
         "Set momentum to 0, or set weight_decay to 0."),
        ({"factual": 50, "momentum=0": 30, "l1=0": 48, "eps=0.1": 50, "both": 2}, "both",
         "Change all of them: set momentum to 0, and set l1 to 0, and set eps to 0.1."),
        ({"factual": 50, "momentum=0": 50, "l1=0": 48, "both": 47}, "neither", None),
    ],
)  # fmt: skip
def test_any_setting_is_an_answer(dead: dict[str, int], kind: str, advice: str | None) -> None:
    found = replay_of(trials(**dead), "train", None, None)
    assert found.answer.kind == kind
    assert advice is None or found.advice == advice
    assert "50.0 %" in found.sentence and "None" not in f"{found.sentence}{found.advice}"
    assert max(map(len, str(found).splitlines())) <= 80


def test_what_makes_the_metric_worse_is_not_advised_without_saying_so() -> None:
    dead = {"factual": 50, "lr": 1}
    found = replay_of(trials(**dead, loss={"factual": 0.27, "lr": 1.56}), "train", 0.1, None)
    assert "prevents 98.0 % of the deaths, and the loss gets worse (0.27 -> 1.56)" in found.sentence
    assert "only if you accept that the loss gets worse" in found.advice
    assert any("--equal-travel" in note for note in found.notes)
    better = replay_of(trials(**dead, loss={"factual": 1.56, "lr": 0.27}), "train", 0.1, None)
    assert "gets better (1.56 -> 0.27)" in better.sentence
    assert better.advice == "Use a learning rate of 0.01."


@pytest.mark.parametrize(
    ("metric", "before", "after", "said"),
    [
        ("val_loss", 1.0, 2.0, "val loss gets worse"),
        ("result", 1.0, 2.0, "returned loss gets worse"),
        ("test_accuracy", 0.5, 0.9, "test accuracy gets better"),
        ("accuracy", 0.9, 0.5, "accuracy gets worse"),
        ("loss", 1.0, float("nan"), "loss gets worse (1 -> not finite)"),
        ("sparsity", 1.0, 2.0, "sparsity changes (1 -> 2)"),
        ("loss", 1.0, 1.01, ""),
    ],
)
def test_a_metric_is_better_or_worse_by_its_name(
    metric: str, before: float, after: float, said: str
) -> None:
    loss = {"factual": before, "lr": after}
    found = replay_of(trials(factual=50, lr=1, loss=loss, metric=metric), "t", 0.1, None)
    assert said in found.sentence
    assert said or "and the" not in found.sentence


def test_of_two_changes_that_are_enough_the_one_that_also_learns_is_advised() -> None:
    loss = {"factual": 2.3, "lr": 2.3, "init": 0.1, "both": 2.3}
    found = replay_of(trials(factual=50, lr=1, init=1, both=1, loss=loss), "t", 0.1, "kaiming")
    assert found.answer.kind == "either"
    assert found.advice == "Initialize the model by kaiming."


def test_few_deaths_are_no_reason_to_leave_a_bad_loss() -> None:
    loss = {"factual": 38.5, "lr": 1.4}
    found = replay_of(trials(factual=1, lr=0, loss=loss), "t", 0.1, None)
    assert found.answer.kind == "none"
    assert "the loss gets better (38.5 -> 1.4)" in found.sentence
    assert found.advice.startswith("Use a learning rate of 0.01")


def test_a_rate_that_kills_as_many_in_more_steps_only_hurries() -> None:
    hurried = replay_of(trials(factual=50, lr=1, **{"lr, more steps": 48}), "t", 0.1, None)
    assert hurried.answer.kind == "neither"
    assert "only hurries the deaths" in hurried.sentence
    assert "48.0 % with 10 times the steps" in hurried.sentence
    assert "learning rate of" not in hurried.advice
    kills = replay_of(trials(factual=50, lr=1, **{"lr, more steps": 2}), "t", 0.1, None)
    assert kills.answer.kind == "learning_rate"
    assert "with 10 times the steps at the lower rate it is 2.0 %" in kills.sentence


def test_one_change_is_not_blamed_where_the_report_names_another_cause() -> None:
    table = trials(factual=50, lr=1)
    found = replay_of(table, "t", 0.1, None, ["input_shift"])
    assert "killed them" not in found.sentence
    assert "names the input" in found.sentence
    for suspects in (["learning_rate"], []):
        assert "killed them" in replay_of(table, "t", 0.1, None, suspects).sentence


# Units die of the penalty, or of the input, and of nothing else.
VARIED = """
import torch
from torch import nn

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def train(trial, shift=0.0, l1=0.0):
    x = X + shift
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    with torch.no_grad():
        model[0].bias.fill_(0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr(0.05), momentum=0.5)
    l1 = trial.value("l1", l1)
    with trial.monitor(model, optimizer, probe=x, every=20):
        for _ in range(trial.steps(60)):
            optimizer.zero_grad()
            hidden = model[1](model[0](x))
            (model[2](hidden).square().mean() + l1 * hidden.mean()).backward()
            optimizer.step()
    return model(x).square().mean()


def sparse(trial): return train(trial, l1=50.0)
def shifted(trial): return train(trial, shift=30.0)
def broken(trial): raise ValueError("no data")
"""


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("varied") / "varied.py"
    file.write_text(VARIED)
    return str(file)


def test_a_value_of_the_users_own_is_varied(varied: str) -> None:
    found = reludiag.replay(
        f"{varied}:sparse", settings={"l1": 0.0, "momentum": 0.0}, seeds=1, workers=1
    )
    assert found.answer.kind == "l1", str(found)
    assert [arm.name for arm in found.arms] == ["factual", "l1=0.0", "momentum=0.0", "both"]


def test_the_input_is_centred_by_the_probe(varied: str) -> None:
    found = reludiag.replay(f"{varied}:shifted", center_input=True, seeds=1, workers=1)
    factual, centred = found.arms
    assert factual.born > 0.2 and centred.born < 0.1


def test_an_unknown_setting_is_refused_with_those_there_are(varied: str) -> None:
    with pytest.raises(reludiag.UsageError, match=r"momentm .*Settings.*momentum.*asks for: l1"):
        reludiag.replay(f"{varied}:sparse", settings={"momentm": 0.0}, seeds=1, workers=1)
    with pytest.raises(reludiag.UsageError, match="--lr-scale"):
        reludiag.replay(f"{varied}:sparse", settings={"lr": 0.1})
    with pytest.raises(reludiag.UsageError, match="equal_travel"):
        reludiag.replay(f"{varied}:sparse", settings={"l1": 0.0}, equal_travel=True)


def test_a_crash_that_every_run_would_meet_ends_the_replay(varied: str) -> None:
    with pytest.raises(reludiag.UserCodeError, match="no data"):
        reludiag.replay(f"{varied}:broken", lr_scale=0.1, seeds=1, workers=1)


def test_a_group_without_weight_decay_keeps_none() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    optimizer = torch.optim.AdamW(
        [
            {"params": [model[0].weight], "weight_decay": 0.1},
            {"params": [model[0].bias], "weight_decay": 0.0},
        ]
    )
    trial = reludiag.Trial(settings={"weight_decay": 0.5, "betas": [0.5, 0.9], "amsgrad": True})
    trial.monitor(model, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert all(group["betas"] == (0.5, 0.9) for group in optimizer.param_groups)
    assert all(group["amsgrad"] for group in optimizer.param_groups)
    with pytest.raises(reludiag.UsageError, match="expected a value like"):
        reludiag.Trial(settings={"betas": 0.5}).monitor(model, optimizer)


def test_a_trial_varies_values_and_steps() -> None:
    trial = reludiag.Trial(settings={"l1": 2, "sizes": [8, 4]}, steps_scale=10)
    assert trial.value("l1", 5.0) == 2
    assert trial.value("sizes", (16, 16)) == (8, 4)
    assert trial.value("other", "left") == "left"
    assert trial.steps(30) == 300
    unchanged = reludiag.Trial()
    assert (unchanged.value("l1", 5.0), unchanged.steps(30)) == (5.0, 30)


def test_a_file_of_an_older_version_is_continued(tmp_path: Path) -> None:
    cells = [Cell(0, 0), Cell(1, 0, settings={"l1": 0.5}, center_input=True, steps_scale=4.0)]
    path = tmp_path / "trials.sqlite"
    SqliteQueue.prepare(path, {}, cells[:1]).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE cell DROP COLUMN changes")
        db.execute("PRAGMA user_version = 3")
        db.commit()
    queue = SqliteQueue.prepare(path, {}, cells)
    assert [queue.claim(this_process()) for _ in cells] == cells
    queue.close()


def test_the_command_takes_any_setting(
    varied: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--set", "l1=0", "--lr-scale", "0.5", "--equal-travel", "--seeds", "1", "--json"]
    monkeypatch.setattr("sys.argv", ["reludiag", "replay", f"{varied}:sparse", *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    document = json.loads(capsys.readouterr().out)
    names = [arm["name"] for arm in document["arms"]]
    assert names == ["factual", "lr", "l1=0", "both", "lr, more steps"]
    steps = {row["arm"]: row["steps"] for row in document["trials"]}
    assert steps["lr, more steps"] == 2 * steps["factual"]

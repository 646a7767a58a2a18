"""Effects: what a table of trials says, checked against known grids, brute force and simulation."""

import html
import importlib.util
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from rich.console import Console
from scipy import stats

import reludiag
from reludiag.experiments.analysis.odds import death_odds
from reludiag.experiments.analysis.trend import rank_trends
from reludiag.experiments.analysis.variance import VarianceShare, variance_shares
from reludiag.experiments.trial_table import TRIAL_COLUMNS
from reludiag.reports.html.sweep_page import effects_page
from reludiag.reports.sweep.document import effects_document
from reludiag.reports.sweep.summary import interval
from reludiag.reports.sweep.terminal import effects_text, print_effects

ROOT = Path(__file__).parents[1]

SNAPSHOT = """\
╭─ reludiag ───────────────────────────────────────────────────────────────────╮
│ 18 runs: 3 learning rates, 2 initializations                                 │
│ Learning rate explains 92 % (85-98 %) of the differences in new deaths,      │
│ initialization 3.8 % (1-9 %), both together 1.5 % (p = 0.0001, 15 runs).     │
│ Not counted: 2 runs diverged, 1 run did not finish. Units that are not       │
│ finite are neither dead nor alive.                                           │
╰──────────────────────────────────────────────────────────────────────────────╯

 New deaths: share of units alive at step 0 that are dead at the end

 Initialization    0.01    0.1       1
 ─────────────────────────────────────
 kaiming          0.3 %   11 %   48 %!
 =evil [bold]     2.3 %   22 %   60 %!
 NaN: all runs diverged   !: some runs diverged, the share is of the others

 Initialization   Born dead   Rank corr.        p   Safe up to   Unsafe from
 ───────────────────────────────────────────────────────────────────────────
 kaiming                0 %         0.95    0.003         0.01           0.1
 =evil [bold]           0 %         0.93    0.014         0.01           0.1
 all together                       0.94   0.0001

 Explained by     Born dead       New deaths   Dead at the end
 ─────────────────────────────────────────────────────────────
 Learning rate     the same     92 % (85-98)      92 % (85-98)
 Initialization    the same      3.8 % (1-9)       3.8 % (1-9)
 Both together     the same      1.5 % (0-6)       1.5 % (0-6)
 The rest          the same   2.4 % (0.2-11)    2.4 % (0.2-11)

 Results
 - More units die at higher learning rates in 2 of 2 initializations: rank
   correlation 0.94 within an initialization. The test permutes runs, because
   the units of one run die together.
 - A ten times larger learning rate multiplies a unit's odds of dying by 8 (95
   %: 5.6 to 11.4, errors by run).
 - Safe learning rates (at most 5 % new deaths in each run): kaiming and =evil
   [bold] up to 0.01.
"""


def grid(optimizer: str) -> pd.DataFrame:
    """The frozen table of `benchmarks/sweep_digits.py`, which says how it was made."""
    return pd.read_csv(Path(__file__).parent / "data" / f"digits_{optimizer}.csv", comment="#")


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Trials of 100 units of which nothing happened, but for what `rows` say."""
    same = {"steps": 10, "units": 100, "born": 0, "new": 0, "dead": 0, "nonfinite": 0}
    return pd.DataFrame(
        [{"lr": 0.1, "init": "a", "seed": i, "status": "complete", **same, **row}
         for i, row in enumerate(rows)]
    )  # fmt: skip


def cells(new: dict[tuple[str, float], Sequence[int]]) -> pd.DataFrame:
    """Trials of given numbers of new deaths, of 100 units, in each (init, lr)."""
    return table(
        [
            {"init": init, "lr": lr, "seed": seed, "new": deaths, "dead": deaths}
            for (init, lr), runs in new.items()
            for seed, deaths in enumerate(runs)
        ]
    )


@pytest.fixture(scope="module")
def adam() -> reludiag.Effects:
    return reludiag.effects(grid("adam"))


# The figures of the grids


@pytest.mark.parametrize(
    ("optimizer", "response", "lr", "init", "interaction"),
    [
        ("adam", "born", 0.0, 0.998, 0.0),
        ("adam", "new", 0.70, 0.13, 0.16),
        ("adam", "dead", 0.64, 0.22, 0.13),
        ("sgd", "born", 0.0, 0.998, 0.0),
        ("sgd", "new", 0.77, 0.04, 0.17),
        ("sgd", "dead", 0.34, 0.58, 0.07),
    ],
)
def test_born_deaths_go_with_initialization_and_new_ones_with_the_learning_rate(
    optimizer: str, response: str, lr: float, init: float, interaction: float
) -> None:
    found = reludiag.effects(grid(optimizer))
    tolerance = 0.005 if response == "born" else 0.04
    for source, expected in (("lr", lr), ("init", init), ("interaction", interaction)):
        item = found.variance_share(response, source)
        assert item.share == pytest.approx(expected, abs=tolerance)
        assert item.low is not None
        assert item.high is not None
        assert item.low <= item.share <= item.high <= item.low + 0.05


def test_within_each_initialization_new_deaths_rise_with_the_learning_rate(
    adam: reludiag.Effects,
) -> None:
    found = {trend.init: trend for trend in adam.trends}
    silent = found.pop("negative mean")
    assert (silent.correlation, silent.p_value) == (None, None)
    assert silent.reason == "no new deaths at any learning rate"
    assert len(found) == 7
    for trend in found.values():
        assert trend.correlation is not None
        assert 0.88 <= trend.correlation <= 0.99
        assert trend.p_value == pytest.approx(0.0001)
    assert adam.trend.correlation == pytest.approx(0.95, abs=0.02)
    assert adam.trend.p_value == pytest.approx(0.0001)


def test_units_taken_one_by_one_would_look_three_times_as_sure(adam: reludiag.Effects) -> None:
    assert adam.odds.clustering is not None
    assert 3.0 <= adam.odds.clustering <= 3.7
    assert adam.odds.left_out == ("negative mean",)
    assert adam.odds.odds_ratio is not None
    assert adam.odds.odds_ratio == pytest.approx(5.7, abs=0.5)


def test_the_sentence_names_the_shares_and_the_safe_learning_rates(adam: reludiag.Effects) -> None:
    document = json.loads(effects_document(adam))
    assert document["sentence"].startswith(
        "Learning rate explains 73 % (72-74 %) of the differences in new deaths, initialization "
        "12 % "
    )
    (safe,) = (line for line in document["findings"] if line.startswith("Safe"))
    assert "kaiming, xavier and orthogonal up to 0.01" in safe
    assert "negative mean (but 67 % born dead) up to 1, the highest tried" in safe
    (born,) = (line for line in document["findings"] if line.startswith("Dead at step 0"))
    assert "negative mean 67 % and bias -3 28 %" in born


@pytest.mark.slow
def test_a_live_grid_gives_the_figures_of_the_frozen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "benchmarks" / "sweep_digits.py"
    spec = importlib.util.spec_from_file_location("sweep_digits", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sweep_digits", made)
    spec.loader.exec_module(made)
    trials = made.grid("adam", [1e-3, 0.03, 0.3], ["kaiming", "bias -3", "negative mean"], [0, 1])
    assert list(trials.dtypes) == [pd.Series(dtype=column.dtype).dtype for column in TRIAL_COLUMNS]
    found = reludiag.effects(trials)
    born, new = found.heat_map("born"), found.heat_map("new")
    assert born.loc["kaiming"].max() <= 0.02
    assert born.loc["bias -3"].to_list() == pytest.approx([0.28] * 3, abs=0.06)
    assert born.loc["negative mean"].to_list() == pytest.approx([0.667] * 3, abs=0.02)
    assert new.loc["kaiming", 1e-3] <= 0.03
    assert new.loc["kaiming", 0.3] >= 0.4
    assert (new.loc["negative mean"] == 0).all()
    assert found.variance_share("born", "init").share == pytest.approx(1, abs=0.01)
    largest = max(found.variance_share("new", s).share or 0 for s in ("init", "interaction"))
    assert (found.variance_share("new", "lr").share or 0) > largest


# Against other implementations, and by hand


def test_a_trend_is_spearmans_with_the_exact_p_value_of_scipy() -> None:
    rng = np.random.default_rng(0)
    rates = [0.1, 0.1, 0.2, 0.3, 0.3, 0.4, 0.5]
    deaths = rng.random(7).round(1).tolist()
    ((trend,), both) = rank_trends({"a": (rates, deaths)})

    def correlation(x: Any) -> float:
        return float(stats.spearmanr(x, rates).statistic)

    exact = stats.permutation_test(
        (deaths,), correlation, permutation_type="pairings", n_resamples=10_000
    )
    assert trend.correlation == pytest.approx(exact.statistic)
    # scipy's two-sided value is twice the smaller tail; ours counts both tails themselves.
    null = np.abs(exact.null_distribution)
    assert trend.p_value == pytest.approx(np.mean(null >= abs(exact.statistic) - 1e-9))
    assert (both.correlation, both.p_value) == (trend.correlation, trend.p_value)


def test_the_common_test_permutes_within_initializations_only() -> None:
    """Each rises by its own small amount, hidden by the difference between the two."""
    runs = {
        "a": ([1.0, 2.0, 3.0, 4.0], [0.50, 0.51, 0.52, 0.53]),
        "b": ([1.0, 2.0, 3.0, 4.0], [0.10, 0.11, 0.12, 0.13]),
        "c": ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]),
    }
    each, both = rank_trends(runs)
    assert [trend.p_value for trend in each] == [pytest.approx(2 / 24), pytest.approx(2 / 24), None]
    assert both.correlation == pytest.approx(1)
    assert both.p_value == both.smallest_p == pytest.approx(2 / 24**2)


@pytest.mark.parametrize("balanced", [True, False])
def test_variance_shares_are_those_of_an_analysis_of_variance_of_type_2(balanced: bool) -> None:
    rng = np.random.default_rng(1)
    runs = pd.DataFrame(
        [(lr, init) for lr in (0.1, 0.2, 0.3) for init in "abcd" for _ in range(3)],
        columns=["lr", "init"],
    )
    runs["y"] = rng.random(len(runs)) + runs["lr"]
    if not balanced:
        runs = runs.drop(index=[0, 1, 7, 20, 30])
    fit = smf.ols("y ~ C(lr) * C(init)", runs).fit()
    sums = sm.stats.anova_lm(fit, typ=2)["sum_sq"].to_numpy()
    found = variance_shares("new", runs["lr"].tolist(), runs["init"].tolist(), runs["y"].tolist())
    assert [item.source for item in found] == ["lr", "init", "interaction", "residual"]
    assert [item.share for item in found] == pytest.approx((sums / sums.sum()).tolist())


def test_odds_have_the_sandwich_errors_of_runs_as_clusters() -> None:
    rng = np.random.default_rng(2)
    rates = np.tile([0.001, 0.01, 0.1, 1.0], 6)
    inits = np.repeat(["a", "b"], 12)
    exposed = rng.integers(50, 200, 24)
    chance = 1 / (1 + np.exp(-(np.log10(rates) + 1 + rng.normal(0, 0.7, 24))))
    died = rng.binomial(exposed, chance)
    found = death_odds(rates.tolist(), inits.tolist(), died.tolist(), exposed.tolist())

    x = np.column_stack([np.log10(rates), inits == "a", inits == "b"]).astype(float)
    beta = np.zeros(3)
    for _ in range(30):  # Newton's method
        p = 1 / (1 + np.exp(-x @ beta))
        bread = np.linalg.inv((x * (exposed * p * (1 - p))[:, None]).T @ x)
        beta += bread @ x.T @ (died - exposed * p)
    scores = x * (died - exposed * p)[:, None]
    # The usual corrections for a finite number of clusters and of rows.
    error = math.sqrt((bread @ scores.T @ scores @ bread)[0, 0] * 24 / 23 * 23 / 21)
    assert found.odds_ratio == pytest.approx(math.exp(beta[0]))
    assert found.clustering == pytest.approx(error / math.sqrt(bread[0, 0]), rel=1e-4)
    t = stats.t.ppf(0.975, 23)
    assert found.low == pytest.approx(math.exp(beta[0] - t * error), rel=1e-4)
    assert found.high == pytest.approx(math.exp(beta[0] + t * error), rel=1e-4)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(beta[0]) / error, 23), rel=1e-3)


# Simulation


def null_runs(rng: np.random.Generator, inits: int) -> dict[str, tuple[list[float], list[float]]]:
    """21 runs of 192 units an initialization, which differ, and not by their learning rate."""
    rates = np.repeat([1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0], 3).tolist()
    return {
        str(init): (rates, (rng.binomial(192, rng.beta(0.5, 2.0 + init, 21)) / 192).tolist())
        for init in range(inits)
    }


@pytest.mark.parametrize("inits", [1, 4])
def test_without_an_effect_the_reported_test_rejects_as_rarely_as_it_says(inits: int) -> None:
    rng = np.random.default_rng(3)
    rejected = [
        (trend.p_value or 1) <= 0.05
        for _ in range(500)
        for trend in [rank_trends(null_runs(rng, inits), resamples=999)[1]]
    ]
    assert 0.02 <= np.mean(rejected) <= 0.07


def test_the_test_that_effects_report_is_that_one() -> None:
    runs = null_runs(np.random.default_rng(4), 2)
    rows = [
        {"init": init, "lr": lr, "units": 192, "new": round(192 * share), "seed": seed}
        for init, (rates, shares) in runs.items()
        for seed, (lr, share) in enumerate(zip(rates, shares, strict=True))
    ]
    found = reludiag.effects(table(rows))
    assert found.trend == rank_trends(runs)[1]
    assert "There is no clear effect of the learning rate on new deaths" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize(("slope", "shift"), [(0.1, 0.03), (0.1, 0.0), (0.0, 0.0)])
def test_bootstrap_intervals_cover_what_they_should(slope: float, shift: float) -> None:
    """5 learning rates x 3 initializations x 3 seeds; normal deviations within cells."""
    rng = np.random.default_rng(5)
    design = [(lr, init) for lr in range(5) for init in range(3) for _ in range(3)]
    rates, inits = [float(lr) for lr, _ in design], [str(init) for _, init in design]
    mean = np.array([slope * lr + shift * init for lr, init in design])
    by_lr, by_init = slope**2 * np.var(range(5)), shift**2 * np.var(range(3))
    total = by_lr + by_init + 0.1**2
    truth = {"lr": by_lr / total, "init": by_init / total, "interaction": 0.0}
    covered = dict.fromkeys(truth, 0)
    for _ in range(200):
        y = mean + rng.normal(0, 0.1, len(mean))
        for item in variance_shares("new", rates, inits, y.tolist(), resamples=599):
            if item.source in truth:
                assert item.low is not None
                assert item.high is not None
                inside = item.low - 1e-9 <= truth[item.source] <= item.high + 1e-9
                covered[item.source] += inside
    assert min(covered.values()) >= 0.87 * 200, covered


# What is left out, and what cannot be told


def test_a_diverged_run_is_never_read_as_no_deaths() -> None:
    trials = cells({("a", 0.1): [5, 7, 6], ("a", 1.0): [0, 0, 40]})
    trials.loc[3, "status"] = "diverged"
    trials.loc[4, "nonfinite"] = 3  # whatever its status says
    found = reludiag.effects(trials)
    assert (found.runs, found.counted, found.diverged) == (6, 4, 2)
    assert found.heat_map("new").loc["a", 1.0] == pytest.approx(0.4)
    trials.loc[5, "status"] = "diverged"
    assert math.isnan(reludiag.effects(trials).heat_map("new").loc["a", 1.0])
    text = str(reludiag.effects(trials))
    assert "NaN" in text
    assert "3 runs diverged" in text


def test_new_deaths_are_of_the_units_that_were_born_alive() -> None:
    found = reludiag.effects(table([{"born": 80, "new": 10, "dead": 90}]))
    assert found.heat_map("new").loc["a", 0.1] == pytest.approx(0.5)
    assert found.heat_map("born").loc["a", 0.1] == pytest.approx(0.8)
    assert found.heat_map("dead").loc["a", 0.1] == pytest.approx(0.9)


def test_the_same_learning_rate_computed_in_two_ways_is_one() -> None:
    found = reludiag.effects(table([{"lr": 0.01}, {"lr": 0.1 * 0.1}]))
    assert list(found.heat_map("new").columns) == [0.01]


def test_a_repeated_run_does_not_count_twice(adam: reludiag.Effects) -> None:
    once = grid("adam")
    twice = reludiag.effects(pd.concat([once, once]))
    assert (twice.runs, twice.counted, twice.repeated) == (336, 168, 168)
    assert twice.trend == adam.trend
    assert twice.variance == adam.variance
    assert "168 runs with the same learning rate, initialization and seed as another" in " ".join(
        str(twice).replace("│", "").split()
    )


def test_a_crashed_trial_that_was_run_again_counts_once() -> None:
    again = table([{"status": "crashed", "seed": 1}, {"seed": 1}, {"seed": 2}])
    found = reludiag.effects(again)
    assert (found.counted, found.crashed, found.repeated) == (2, 1, 0)


def test_few_runs_say_that_they_cannot_tell() -> None:
    found = reludiag.effects(cells({("a", 0.01): [1], ("a", 0.1): [30], ("a", 1.0): [60]}))
    assert found.trend.correlation == pytest.approx(1)
    assert found.trend.smallest_p == pytest.approx(1 / 3)
    assert "3 runs are too few to show whether the learning rate kills units" in " ".join(
        str(found).split()
    )
    assert found.variance_share("new", "lr").share is None


def test_learning_rates_that_were_not_crossed_with_initializations_are_not_told_apart() -> None:
    found = reludiag.effects(cells({("a", 0.01): [1, 2, 0], ("b", 0.1): [50, 40, 60]}))
    for source in ("lr", "init"):
        item = found.variance_share("new", source)
        assert item.share is None
        assert "changed together" in item.reason
    assert found.trend.reason == "each initialization has only one learning rate"


def test_one_run_a_cell_gives_shares_without_intervals(adam: reludiag.Effects) -> None:
    trials = grid("adam")
    found = reludiag.effects(trials[trials["seed"] == 0])
    lr = found.variance_share("new", "lr")
    assert lr.share is not None
    assert (lr.low, lr.high) == (None, None)
    assert found.variance_share("new", "interaction").share is None
    assert "The uncertainty of the shares is unknown" in str(found)


def test_an_interval_needs_runs_that_show_how_much_runs_differ() -> None:
    few = reludiag.effects(cells({("a", 0.01): [0, 0], ("a", 0.1): [60, 61]}))
    for item in few.variance:
        assert (item.low, item.high) == (None, None)
    assert "are too few to show" in " ".join(str(few).split())
    assert "The uncertainty of the shares is unknown" in " ".join(str(few).split())
    alike = reludiag.effects(cells({("a", 0.01): [0] * 4, ("a", 0.1): [60] * 4}))
    assert alike.variance_share("new", "lr").low is None
    enough = reludiag.effects(cells({("a", 0.01): [0, 1, 0, 2], ("a", 0.1): [60, 61, 70, 60]}))
    assert enough.variance_share("new", "lr").low is not None


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.7, 0.78, "70-78 %"),
        (0.99945, 0.99999, "99.9->99.9 %"),
        (0.9999, 1.0, ">99.9-100 %"),
        (0.0, 0.0005, "0-<0.1 %"),
        (0.0, 0.061, "0-6 %"),
        (0.701, 0.704, "70.1-70.4 %"),
        (0.0, 1.0, "0-100 %"),
    ],
)
def test_no_end_of_an_interval_is_rounded_to_nothing_or_to_all(
    low: float, high: float, text: str
) -> None:
    assert interval(VarianceShare("new", "lr", low, low, high, "")) == text


def test_what_train_returned_stands_beside_the_deaths() -> None:
    trials = cells({("a", 0.01): [1, 2, 0], ("a", 0.1): [50, 40, 60], ("b", 0.1): [9, 9, 9]})
    trials["metric.loss"] = [0.5, 0.3, 0.4, 2, 3, float("nan"), 1e-7, 2e-7, 1234567]
    trials.loc[8, "status"] = "diverged"
    found = reludiag.effects(trials)
    assert found.metrics == ("metric.loss",)
    assert found.heat_map("metric.loss").loc["a"].tolist() == [0.4, 2.5]
    text = str(found)
    assert "What train returned as loss: median over runs" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["a", "0.4", "2.5"] in rows
    assert ["b", "1.5e-07!"] in rows
    document = json.loads(effects_document(found))
    assert [cell["metric.loss"] for cell in document["cells"]] == [0.4, 2.5, 1.5e-07]


def test_21_learning_rates_with_long_metrics_fit_80_columns() -> None:
    trials = ADVERSARIAL["21 learning rates"](grid("adam"))
    trials["metric.[bold]" + "x" * 90] = -1.234e-05
    text = effects_text(reludiag.effects(trials))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("-1.23e-05") == len(reludiag.effects(trials).cells)
    assert "[bold]x" in text


def test_separated_deaths_have_no_odds_ratio_but_a_reason() -> None:
    found = death_odds([0.1] * 4 + [1.0] * 4, ["a"] * 8, [0] * 4 + [9] * 4, [9] * 8)
    assert found.odds_ratio is None
    assert "the odds are infinite" in found.reason


def no_change(trials: pd.DataFrame) -> pd.DataFrame:
    return trials


UNKNOWN = dict.fromkeys(("units", "born", "new", "dead", "nonfinite"), pd.NA)
ADVERSARIAL = {
    "one initialization": lambda t: t[t["init"] == "kaiming"],
    "one learning rate": lambda t: t[t["lr"] == 0.1],
    "one seed": lambda t: t[t["seed"] == 0],
    "one cell": lambda t: t[(t["lr"] == 0.1) & (t["init"] == "kaiming")],
    "one run": lambda t: t.iloc[:1],
    "no run": lambda t: t.iloc[:0],
    "all diverged": lambda t: t.assign(status="diverged"),
    "all crashed": lambda t: t.assign(status="crashed", **UNKNOWN),
    "all dead": lambda t: t.assign(born=0, new=192, dead=192),
    "all born dead": lambda t: t.assign(born=192, new=0, dead=192),
    "all alive": lambda t: t.assign(born=0, new=0, dead=0),
    "no units": lambda t: t.assign(units=0, born=0, new=0, dead=0),
    "step 0 not seen": lambda t: t.assign(born=pd.NA, new=pd.NA),
    "learning rate not known": lambda t: t.assign(lr=np.nan),
    "learning rate 0": lambda t: t.assign(lr=t["lr"].where(t["lr"] > 1e-4, 0)),
    "missing cells": lambda t: t[(t["lr"] < 0.1) | (t["init"] != "kaiming")],
    "few scattered cells": lambda t: t.sample(30, random_state=0),
    "duplicate cells": lambda t: pd.concat([t, t.assign(seed=t["seed"] + 10)]),
    "some replicated": lambda t: t[(t["seed"] == 0) | ((t["seed"] == 1) & (t["lr"] == 0.1))],
    "21 learning rates": lambda t: pd.concat([t.assign(lr=t["lr"] * k) for k in (1, 2, 5)]),
}


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_any_table_gets_a_report_and_no_warning(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = reludiag.effects(ADVERSARIAL[case](grid("adam")))
        document = json.loads(effects_document(found))
        text = effects_text(found)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert document["sentence"]
    assert "nan" not in text
    assert effects_text(found, encoding="ascii").isascii()
    for trend in (*found.trends, found.trend):
        assert (trend.correlation is None) == (trend.p_value is None) == bool(trend.reason)
    for item in found.variance:
        assert (item.share is None) == bool(item.reason)
    assert (found.odds.odds_ratio is None) == bool(found.odds.reason)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"drop": "new"}, "a table without new"),
        ({"new": 101}, "more dead units than units"),
    ],
)
def test_a_table_that_cannot_be_one_is_refused(change: dict[str, Any], expected: str) -> None:
    trials = table([{}])
    trials = trials.drop(columns=change["drop"]) if "drop" in change else trials.assign(**change)
    with pytest.raises(reludiag.UsageError, match=expected):
        reludiag.effects(trials)


# Safe learning rates


def safe(trials: pd.DataFrame, **settings: float) -> Any:
    (item,) = reludiag.effects(trials, **settings).safe
    return item


def test_the_highest_safe_learning_rate_is_safe_in_every_run() -> None:
    trials = cells({("a", 0.01): [0, 1], ("a", 0.1): [5, 0], ("a", 1.0): [6, 0]})
    item = safe(trials)
    assert (item.highest_safe, item.lowest_unsafe) == (0.1, 1.0)
    assert item.unsafe_new == pytest.approx(0.06)
    assert item.fewest_runs == 2
    assert safe(trials, safe_new=0.02).highest_safe == 0.01


def test_what_is_safe_again_above_what_is_not_does_not_count() -> None:
    item = safe(cells({("a", 0.01): [0], ("a", 0.1): [9], ("a", 1.0): [0]}))
    assert (item.highest_safe, item.lowest_unsafe, item.safe_above) == (0.01, 0.1, (1.0,))
    item = safe(cells({("a", 0.01): [9], ("a", 0.1): [0]}))
    assert (item.highest_safe, item.lowest_unsafe) == (None, 0.01)


def test_a_learning_rate_at_which_a_run_diverged_is_not_safe() -> None:
    trials = cells({("a", 0.01): [0, 0], ("a", 0.1): [0, 0]})
    trials.loc[3, "status"] = "diverged"
    item = safe(trials)
    assert (item.highest_safe, item.lowest_unsafe, item.unsafe_diverged) == (0.01, 0.1, 1)
    assert item.unsafe_new is None


def test_a_learning_rate_whose_runs_all_crashed_is_not_judged() -> None:
    trials = cells({("a", 0.01): [0], ("a", 0.1): [0], ("a", 1.0): [0]})
    trials.loc[1, "status"] = "crashed"
    item = safe(trials)
    assert (item.highest_safe, item.lowest_unsafe, item.untold) == (1.0, None, (0.1,))


# Reports


@pytest.fixture
def small() -> pd.DataFrame:
    trials = cells(
        {
            ("kaiming", 0.01): [0, 1, 0],
            ("kaiming", 0.1): [9, 12, 11],
            ("kaiming", 1.0): [40, 55, 0],
            ("=evil [bold]", 0.01): [0, 4, 3],
            ("=evil [bold]", 0.1): [20, 24, 22],
            ("=evil [bold]", 1.0): [0, 0, 60],
        }
    )
    trials.loc[[8, 15], "status"] = "diverged"
    trials.loc[16, "status"] = "crashed"
    return trials


def test_the_terminal_report_shows_numbers_where_there_is_no_colour(small: pd.DataFrame) -> None:
    assert str(reludiag.effects(small)) == SNAPSHOT


def test_without_statsmodels_only_the_regression_is_missing_and_says_what_to_install(
    small: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = json.loads(effects_document(reludiag.effects(small)))
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    found = reludiag.effects(small)
    document = json.loads(effects_document(found))
    install = 'pip install "reludiag[experiments]"'
    assert document["odds"]["odds_ratio"] is None
    assert install in document["odds"]["reason"]
    (line,) = (line for line in document["findings"] if install in line)
    assert line in " ".join(str(found).split())
    assert install in html.unescape(effects_page(found))
    for changed in ("odds", "findings"):
        del document[changed], complete[changed]
    assert document == complete


def test_cells_are_the_redder_the_more_died(small: pd.DataFrame) -> None:
    console = Console(
        file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor", record=True
    )
    print_effects(reludiag.effects(small), console)
    page = console.export_html(inline_styles=True)
    looks = {
        number: re.search(rf'<span style="([^"]*)">{number} %', page)
        for number in ("0.3", "11", "22")
    }
    backgrounds = [
        found and re.search(r"background-color: (#\w+)", found[1]) for found in looks.values()
    ]
    assert [found and found[1] for found in backgrounds] == ["#1a7f37", "#9a6700", "#bc4c00"]


def test_csv_is_the_table_of_trials_and_json_has_it_too(
    small: pd.DataFrame, tmp_path: Path
) -> None:
    found = reludiag.effects(small)
    stream = io.StringIO()
    found.to_csv(stream)
    back = pd.read_csv(io.StringIO(stream.getvalue()))
    assert back["new"].tolist() == small["new"].tolist()
    assert back["init"].iloc[-1] == "'=evil [bold]"  # a spreadsheet must not run it
    found.to_json(tmp_path / "effects.json")
    document = json.loads((tmp_path / "effects.json").read_text(encoding="utf-8"))
    assert document["schema_version"] == 1
    assert document["totals"]["diverged"] == 2
    assert len(document["trials"]) == 18
    assert [cell["new"] for cell in document["cells"]] == found.cells["new"].tolist()
    assert {item["source"] for item in document["variance"]} == {
        "lr", "init", "interaction", "residual",
    }  # fmt: skip

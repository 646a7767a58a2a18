"""Causes: which is named for a run whose deaths have a known one, and on what evidence."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import reludiag
from benchmarks import causes as benchmark
from reludiag.causes.all_kinds import KINDS
from reludiag.causes.cause import Evidence
from reludiag.causes.event_study import event_study
from reludiag.causes.explain import explain
from reludiag.causes.kind import Account, CauseKind
from reludiag.causes.learning_rate import critical_rates
from reludiag.causes.site_lives import trace_sites
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.measure.unit_counts import UnitCounts
from reludiag.recording import RecordedRun, RecordedSite
from reludiag.recording.observations import Baseline, Observations
from reludiag.reports.run.markdown import markdown
from reludiag.sites.site import Rectifier, Site

PROBE = torch.randn(128, 8, generator=torch.Generator().manual_seed(5))


def recorded(dead: Any, rates: list[tuple[int, float]], name: str = "1") -> RecordedSite:
    """A site of which `dead` says `[snapshot, unit]` what is dead."""
    dead = np.asarray(dead, dtype=bool)
    site = Site(name, name, name, "", Rectifier("ReLU", True), "1", dead.shape[1], "0", None)
    known = np.ones_like(dead)
    samples = np.full(len(dead), 100)
    counts = UnitCounts.nothing(dead.shape[1])
    return RecordedSite(site, "0/0", counts, samples, dead, known, ~known)


def run_of(
    dead: Any, rates: list[tuple[int, float]], every: int = 10, sites: int = 1, name: str = ""
) -> RecordedRun:
    steps = tuple(range(0, every * len(dead), every))
    return RecordedRun(
        {"every": every, "probe_samples": 100},
        steps,
        tuple(recorded(dead, rates, name or str(index)) for index in range(sites)),
        tuple((step, "0/0", rate) for step, rate in rates),
    )


def dying(windows: int, deaths: dict[int, int], units: int = 100) -> np.ndarray:
    """`[snapshot, unit]` with so many more dead at the end of each window."""
    total = np.cumsum([0, *(deaths.get(window, 0) for window in range(windows))])
    return np.arange(units) < total[:, None]


def study_of(deaths: dict[int, int], rates: list[tuple[int, float]]) -> Any:
    run = run_of(dying(20, deaths), rates)
    return event_study(trace_sites(run), run.steps)


def test_deaths_in_a_spike_of_the_learning_rate_are_told_from_it() -> None:
    study = study_of({3: 1, 10: 30, 15: 1}, [(1, 1e-3), (101, 0.1), (106, 1e-3)])
    assert (study.regime, study.first, study.last) == ("spike", 100, 110)
    assert (study.deaths, study.deaths_high) == (32, 30)
    # 7 of 10 units are there in half of the windows.
    alive = [100] * 4 + [99] * 7 + [69] * 5 + [68] * 4
    assert study.exposure_high == pytest.approx(alive[10] / sum(alive), rel=1e-12)
    assert study.is_conclusive


def test_a_constant_learning_rate_has_no_contrast() -> None:
    study = study_of({0: 40, 1: 10}, [(1, 0.1)])
    assert study.regime == "constant"
    assert not study.is_conclusive


def test_deaths_at_the_beginning_of_a_decay_may_be_of_the_beginning() -> None:
    study = study_of({0: 40, 1: 10}, [(1, 0.1), (51, 0.01), (101, 0.001)])
    assert study.regime == "decay"
    assert study.p_value < 1e-6
    assert not study.is_conclusive


def test_deaths_behind_a_warm_up_may_be_of_anything_that_came_later() -> None:
    rates = [(step, 0.1 * min(1, step / 100)) for step in range(1, 201)]
    study = study_of({8: 10, 9: 20, 10: 10, 11: 10}, rates)
    assert study.regime == "warm-up"
    assert study.p_value < 1e-6
    assert not study.is_conclusive


UP_AND_DOWN = [(1, 1e-3), (51, 0.1), (151, 1e-3)]


def test_deaths_at_a_rate_that_was_low_before_and_after_are_told_from_it() -> None:
    assert study_of({5: 20, 6: 10, 9: 5}, UP_AND_DOWN).is_conclusive
    # As frequent in the five windows after it.
    assert not study_of({5: 20, 6: 10, 9: 5, 16: 6, 18: 6}, UP_AND_DOWN).is_conclusive


def test_deaths_long_after_the_rate_rose_are_of_an_event() -> None:
    study = study_of({12: 40, 13: 5}, UP_AND_DOWN)
    assert study.regime == "spike" and study.late
    assert not study.is_conclusive


def test_two_groups_at_constant_rates_are_no_contrast() -> None:
    low, high = (
        trace_sites(run_of(dying(20, deaths), [(1, rate)]))[0]
        for deaths, rate in (({}, 1e-3), ({0: 40}, 0.1))
    )
    study = event_study([low, high], range(0, 201, 10))
    assert study is not None and study.regime == "constant"


def test_optimizers_of_two_networks_are_not_one_schedule() -> None:
    # One network dies at its constant rate, in the steps in which the other's rate is high.
    constant = trace_sites(run_of(dying(20, {7: 40, 9: 20}), [(1, 0.1)], name="constant"))[0]
    varied = trace_sites(run_of(dying(20, {}), UP_AND_DOWN, name="varied"))[0]
    study = event_study([constant, varied], range(0, 201, 10))
    assert study is not None and study.sites == {"varied"}
    assert study.deaths == 0 and not study.is_conclusive
    # Both are high in the same steps, each by its own measure.
    lower = [(step, rate / 50) for step, rate in UP_AND_DOWN]
    both = [
        trace_sites(run_of(dying(20, {6: 20, 8: 10}), rates, name=name))[0]
        for name, rates in (("low", lower), ("high", UP_AND_DOWN))
    ]
    study = event_study(both, range(0, 201, 10))
    assert study is not None and study.is_conclusive and study.deaths_high == 60


def test_a_handful_of_deaths_tells_nothing() -> None:
    assert not study_of({10: 4}, [(1, 1e-3), (101, 0.1), (106, 1e-3)]).is_conclusive


def test_deaths_that_follow_no_learning_rate_are_seldom_put_down_to_it() -> None:
    generator = np.random.default_rng(0)
    rates = [(step, 0.1 if 80 <= step < 120 else 0.01) for step in range(1, 201)]
    told = 0
    for _ in range(200):
        deaths = dict(enumerate(generator.poisson(1.5, 20).tolist()))
        told += study_of(deaths, rates).is_conclusive
    assert told <= 4


def mlp(seed: int = 0, width: int = 32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        for layer in model[::2]:
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def watched(
    model: nn.Module,
    path: Path | None = None,
    *,
    lr: float = 1e-3,
    steps: int = 40,
    at: Callable[[int], None] = lambda step: None,
    shift: float = 0.0,
    probe: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
) -> reludiag.Diagnosis:
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    monitor = reludiag.Monitor(
        model, optimizer, path=path, every=4, probe=PROBE + shift if probe else None
    )
    with monitor:
        for step in range(1, steps + 1):
            x = torch.randn(64, 8, generator=generator)
            y = torch.randint(0, 4, (64,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x + shift), y).backward()
            optimizer.step()
            with torch.no_grad():
                at(step)
    return monitor.diagnose()


def test_a_site_that_is_wholly_dead_accounts_for_the_deaths_below_it() -> None:
    model = mlp()

    def kill(step: int) -> None:
        if step == 10:
            model[0].bias.fill_(-100)
        if step == 20:  # of what is a constant by now
            model[2].bias[:20] = -0.5

    diagnosis = watched(model, at=kill)
    by_site = {cause.site: cause for cause in diagnosis.causes}
    below = by_site["3"]
    assert below.kind == "upstream_collapse"
    assert below.identifiable
    assert [row.value for row in below.evidence if "completely dead" in row.what] == [12]
    assert "'1'" in below.sentence
    units = diagnosis.units[diagnosis.units["site"] == "3"]
    late = units["died_step"] > 12
    assert set(units.loc[late, "cause"]) == {"upstream_collapse"}
    assert by_site[None].kind == by_site["1"].kind != "upstream_collapse"


def test_a_dead_site_beside_a_shortcut_silences_nothing_below() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head((x + self.down(self.up(x).relu())).relu())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual()

    def kill(step: int) -> None:
        if step == 10:
            model.up.bias.fill_(-100)
        if step == 20:
            model.down.bias[:10] = -100

    kinds = {cause.site: cause.kind for cause in watched(model, at=kill).causes}
    assert len(kinds) == 3
    assert "upstream_collapse" not in kinds.values()


def test_births_by_a_negative_bias_are_told_with_its_number_and_what_to_do() -> None:
    model = mlp()
    nn.init.constant_(model[2].bias, -4.0)
    cause = watched(model).causes[0]
    assert (cause.kind, cause.identifiable, cause.site) == ("initialization", True, None)
    assert "starts at -4" in cause.sentence
    assert cause.advice == "the bias of 2 starts at -4: start it at 0"
    assert cause.confirm == "reludiag replay TRAIN --init kaiming"


def test_all_layers_that_begin_wrong_are_named() -> None:
    for depth, of_second in ((-3.0, "initialization"), (-100.0, "upstream_collapse")):
        model = mlp()
        nn.init.constant_(model[0].bias, depth)
        nn.init.constant_(model[2].bias, depth)
        run, _, second = watched(model).causes
        assert run.kind == "initialization" and second.kind == of_second
        assert run.advice == f"the bias of 0 and of 2 starts at {depth:g}: start them at 0"
        assert "units of '1' and '3' were" in run.sentence
        assert f"the bias of 0 starts at {depth:g}" in run.sentence
        assert "the same is wrong with 2." in run.sentence
    assert second.advice.endswith("then the bias of 2 starts at -100: start it at 0")


def test_layers_that_begin_wrong_in_different_ways_are_each_told_what_to_do() -> None:
    model = mlp()
    nn.init.constant_(model[0].bias, -3.0)
    with torch.no_grad():
        model[2].weight -= 0.5
    advice = watched(model).causes[0].advice
    assert "the bias of 0 starts at -3: start it at 0; draw the weights of 2 with mean 0" in advice


def test_born_dead_is_dead_at_step_0_whatever_became_of_it() -> None:
    """40 of 100 are born dead: 30 of them revive, of which 10 die again."""
    dead = np.zeros((6, 100), dtype=bool)
    dead[:, :10] = True
    dead[0, 10:40] = True
    dead[4:, 10:20] = True
    run = run_of(dead, [(1, 1e-3)])
    run = replace(run, observations=Observations(baselines=(Baseline("0", 0.02, 3),)))
    whole, site = explain(run).causes
    for cause in (whole, site):
        assert cause.evidence[0].value == "40, 10, 100"
        assert "10 never alive, 30 revived" in cause.evidence[0].meaning
    assert whole.kind == "initialization"
    assert whole.sentence.startswith("40 of 100 units of '0' were dead before any training")
    assert "as built: 0.40" in whole.evidence[1].meaning


def test_counts_of_the_evidence_are_those_of_the_site_table() -> None:
    model = mlp()
    nn.init.constant_(model[2].bias, -4.0)

    def revive(step: int) -> None:
        model[2].bias.fill_(0.0 if step == 10 else -4.0 if step == 20 else model[2].bias[0].item())

    diagnosis = watched(model, at=revive)
    sites = diagnosis.sites[["born_dead", "died", "units"]].sum().tolist()
    assert diagnosis.causes[0].evidence[0].value == ", ".join(map(str, sites))
    assert f"{sites[0]} units were dead at step 0" in " ".join(str(diagnosis).split())


def test_a_site_that_is_all_but_wholly_dead_silences_half_of_what_it_feeds() -> None:
    # Few units: half of them is not by itself more than chance leaves in a layer.
    model = mlp(width=64)
    model[2], model[4] = nn.Linear(64, 10), nn.Linear(10, 4)
    with torch.no_grad():
        model[0].bias[:63] = -100
        model[0].weight[63] = 0.0
        model[0].bias[63] = 1.0
        model[2].weight.copy_(torch.linspace(-1, 1, 640).reshape(10, 64))
        model[2].bias.zero_()
    run, first, below = watched(model, lr=1e-5).causes
    assert run.kind == first.kind == "initialization"
    assert (below.kind, below.site, below.identifiable) == ("upstream_collapse", "3", False)
    assert "63 of 64 units of '1' are dead, nearly all since step 0" in below.sentence
    assert below.evidence[1].what == "'1' almost completely dead"


def test_small_weights_of_pytorchs_own_are_no_evidence_for_a_learning_rate() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        default = nn.Sequential(
            nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
        )
    small = mlp()
    with torch.no_grad():
        for layer in small[::2]:
            layer.weight *= 0.1
    for model, expected in ((default, False), (small, True)):
        cause = watched(model, lr=0.5).causes[0]
        assert cause.kind == "learning_rate"
        assert any(row.what == "variance of the weights" for row in cause.evidence) == expected


def test_a_gain_without_biases_is_not_blamed_for_births() -> None:
    model = mlp()
    for layer in (model[0], model[2]):
        layer.weight.data *= 10
    kinds = {cause.kind for cause in watched(model, shift=5.0).causes}
    assert "initialization" not in kinds


def test_births_that_chance_leaves_in_a_deep_network_are_no_cause() -> None:
    layers = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(14):
            layer = nn.Linear(32, 32)
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        model = nn.Sequential(nn.Linear(8, 32), *layers, nn.Linear(32, 4))
    diagnosis = watched(model, lr=1e-5, steps=8)
    assert diagnosis.dead_fraction > 0.05
    assert diagnosis.causes[0].kind == "none"
    assert "not more than in a healthy run" in diagnosis.causes[0].sentence


@pytest.mark.parametrize("probe", [True, False])
def test_an_input_that_is_not_centred_is_its_own_cause(probe: bool) -> None:
    cause = watched(mlp(), shift=20.0, probe=probe).causes[0]
    assert (cause.kind, cause.identifiable) == ("input_shift", True)
    (gamma,) = [row.value for row in cause.evidence if row.what == "gamma"]
    assert gamma == pytest.approx(20, rel=0.15)
    assert cause.advice == "subtract the mean of each feature from the input of '0'"


def test_a_learning_rate_is_named_with_one_at_which_units_would_have_lived(tmp_path: Path) -> None:
    path = tmp_path / "run"
    diagnosis = watched(mlp(), path, lr=0.5)
    cause = diagnosis.causes[0]
    assert (cause.kind, cause.identifiable) == ("learning_rate", False)
    assert "cannot prove it" in cause.sentence
    units = diagnosis.units
    died = units["died_step"].notna() & (units["verdict"] == "dead")
    assert (units.loc[died, "critical_lr"] < 0.5).all()
    half = next(row.value for row in cause.evidence if row.what == "critical learning rate")
    assert half == pytest.approx(units.loc[died, "critical_lr"].median(), rel=0.02)
    shares = units.loc[died, ["drift_weights", "drift_input", "drift_bias"]]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1.0)
    lower = float(cause.advice.partition(" from 0.5 to ")[2].partition(";")[0].partition(",")[0])
    assert 0 < lower <= 0.25
    assert cause.confirm.startswith("reludiag replay TRAIN --lr-scale 0.")
    assert reludiag.load(path).causes == diagnosis.causes


def groups_of_weights_and_biases(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "lr": lr},
        {"params": [p for p in model.parameters() if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]


def test_the_advice_names_all_groups_that_train_a_layer(tmp_path: Path) -> None:
    path, model = tmp_path / "run", mlp()
    optimizer = torch.optim.Adam(groups_of_weights_and_biases(model, 0.5))
    diagnosis = watched(model, path, optimizer=optimizer)
    cause = diagnosis.causes[0]
    (change,) = cause.changes
    assert (change.setting, change.where, change.before) == ("lr", ("0/0", "0/1"), 0.5)
    assert isinstance(change.after, float) and change.after <= 0.25
    assert cause.advice.startswith("lower the learning rate of groups 0 and 1 from 0.5 to ")
    assert f"--lr-scale {change.after / 0.5:.1g}" in cause.confirm
    diagnosis.to_json(tmp_path / "run.json")
    assert open_diagnosis(tmp_path / "run.json").causes == diagnosis.causes


def test_a_report_of_an_older_version_has_no_changes(tmp_path: Path) -> None:
    diagnosis = watched(mlp(), tmp_path / "run", lr=0.5)
    diagnosis.to_json(tmp_path / "run.json")
    content = json.loads((tmp_path / "run.json").read_text())
    for cause in content["causes"]:
        del cause["changes"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = open_diagnosis(tmp_path / "old.json").causes[0]
    assert old.changes == () and old.advice == diagnosis.causes[0].advice


@pytest.mark.parametrize("lr", [0.3, 3.0, 30.0])
def test_no_rate_is_advised_above_the_critical_one_beside_it(lr: float) -> None:
    cause = watched(mlp(), lr=lr).causes[0]
    assert cause.kind == "learning_rate"
    critical = next(row.value for row in cause.evidence if row.what == "critical learning rate")
    (change,) = cause.changes
    assert isinstance(change.after, float) and isinstance(critical, float)
    assert 0 < change.after <= 0.9 * critical


def test_a_run_that_diverged_is_advised_a_rate_at_which_its_first_step_is_small() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e6)
    (change,) = watched(model, optimizer=optimizer).causes[0].changes
    assert isinstance(change.after, float) and change.after < 1  # a tenth is still 100,000


def test_a_run_that_is_not_finite_has_diverged_and_names_no_death() -> None:
    model = mlp()

    def spoil(step: int) -> None:
        if step == 10:
            model[0].weight.fill_(math.nan)

    cause = watched(model, at=spoil, steps=20).causes[0]
    assert (cause.kind, cause.share, cause.identifiable) == ("divergence", 1.0, True)
    assert cause.evidence[0].value == 12
    assert "clip the gradients" in cause.advice


def test_a_healthy_run_names_no_cause() -> None:
    cause = watched(mlp()).causes[0]
    assert (cause.kind, cause.advice, cause.confirm) == ("none", "", "")
    assert cause.identifiable


def test_a_small_layer_that_is_mostly_dead_is_not_usual_in_a_large_network() -> None:
    wide = run_of(dying(10, {}, units=1000), [(1, 1e-3)], name="wide")
    for died, is_usual in ((6, False), (2, True)):
        small = run_of(dying(10, {5: died}, units=8), [(1, 1e-3)], name="small")
        cause = explain(replace(wide, sites=(*wide.sites, *small.sites))).causes[0]
        assert (cause.kind == "none", cause.identifiable) == (is_usual, is_usual)


def test_deaths_that_nothing_explains_are_undetermined() -> None:
    run = run_of(dying(10, {5: 40}), [(1, 1e-3)])
    cause = explain(run).causes[0]
    assert (cause.kind, cause.identifiable) == ("undetermined", False)
    assert cause.confirm == "reludiag replay TRAIN --lr-scale 0.1 --init kaiming"


def test_a_run_without_sites_or_snapshots_has_no_cause() -> None:
    for run in (RecordedRun({}, (), (), ()), run_of(dying(1, {}), []), run_of(dying(0, {}), [])):
        (cause,) = explain(run).causes
        assert (cause.kind, cause.share) == ("none", 0.0)
    assert critical_rates([]) is None


def test_a_new_kind_of_cause_is_one_row() -> None:
    """Its rule may claim single units; those that it leaves go to the kinds after it."""
    cold = CauseKind(
        name="cold_start",
        title="a cold start",
        clue="units from number 10 on",
        rule="its number is at least 10",
        deaths=lambda site: np.arange(site.lives.units) >= 10,
        account=lambda attribution, site: Account(
            True, (Evidence("degrees", 4, "at night"),), "It was cold.", "warm it up", ""
        ),
    )
    explained = explain(run_of(dying(10, {5: 40}), [(1, 1e-3)]), (cold, *KINDS))
    kinds = explained.kinds["0"]
    assert set(kinds[:10]) == {"undetermined"}
    assert set(kinds[10:40]) == {"cold_start"}
    assert set(kinds[40:]) == {""}
    whole, site = explained.causes
    assert (whole.kind, whole.share, whole.advice) == ("cold_start", 0.75, "warm it up")
    assert whole.evidence[1].what == "degrees"
    assert whole.sentence == ("It was cold; an unknown cause explains 10 of the 40 dead units.")
    assert (site.kind, site.site, site.sentence) == ("cold_start", "0", "It was cold.")


def test_a_report_of_a_kind_of_cause_that_is_not_known_here_calls_it_by_its_name(
    tmp_path: Path,
) -> None:
    """Another version wrote the document."""
    model = mlp()
    nn.init.constant_(model[2].bias, -4.0)
    watched(model, tmp_path / "run").to_json(tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text().replace('"initialization"', '"solar_wind"')
    (tmp_path / "run.json").write_text(text)
    diagnosis = open_diagnosis(tmp_path / "run.json")
    assert "solar wind, 100 % of the deaths" in str(diagnosis)
    page = io.StringIO()
    diagnosis.to_html(page)
    assert "solar wind" in page.getvalue()


def test_causes_are_in_every_report(tmp_path: Path) -> None:
    model = mlp()
    nn.init.constant_(model[2].bias, -4.0)
    diagnosis = watched(model, tmp_path / "run")
    page, table = io.StringIO(), io.StringIO()
    diagnosis.to_json(page)
    causes = json.loads(page.getvalue())["causes"]
    assert [cause["site"] for cause in causes] == [None, "3"]
    assert {cause["kind"] for cause in causes} <= {kind.name for kind in KINDS}
    assert causes[0]["evidence"][0].keys() == {"what", "value", "meaning"}
    diagnosis.to_csv(table)
    table.seek(0)
    rows = pd.read_csv(table)
    assert list(rows.columns[-5:]) == [
        *("cause", "critical_lr", "drift_weights", "drift_input", "drift_bias")
    ]
    assert set(rows.loc[rows["verdict"] == "dead", "cause"]) == {"initialization"}
    assert rows.loc[rows["verdict"] != "dead", "cause"].isna().all()
    text = str(diagnosis)
    assert max(map(len, text.splitlines())) <= 80
    why = text.partition("Why\n")[2]
    assert "the initialization, 100 % of the deaths" in why
    assert "To do   The bias of 2 starts at -4: start it at 0." in why
    assert "reludiag replay TRAIN --init kaiming" in why
    text = markdown(diagnosis, [])
    assert f"**Why:** {diagnosis.causes[0].sentence} The bias of 2 starts at -4" in text


def test_a_json_report_gives_back_the_causes(tmp_path: Path) -> None:
    model = mlp()
    nn.init.constant_(model[2].bias, -4.0)
    diagnosis = watched(model, tmp_path / "run")
    diagnosis.to_json(tmp_path / "run.json")
    assert open_diagnosis(tmp_path / "run.json").causes == diagnosis.causes


# Name of a case on digits -> share of dead units that was measured over five seeds, if steady.
LABELLED = {
    "1 Adam 0.1": (0.4, 0.75),
    "1 SGD 10, clipped": (0.4, 0.75),
    "2 bias -3, Adam": (0.19, 0.38),
    "2 bias -3, Adam 0.1": (0.4, 0.75),
    "3 negative weights, SGD": (0.647, 0.687),
    "4 bias -10, Adam": (0.872, 0.912),
    "5 input + 10, Adam": (0.2, 0.5),
    "6 gain 10": (0.0, 0.03),
    "7 Adam 0.03": (0.05, 0.25),
    "7 Adam 0.1, warm-up 20": (0.4, 0.7),
    "8 spike, Adam": (0.03, 0.3),
    "8 spike, SGD clipped": (0.03, 0.3),
    "9 SGD 10": (0.0, 0.0),
    "control, Adam": (0.0, 0.03),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELLED)
def test_the_right_cause_is_named_on_digits(name: str) -> None:
    (digits, *_) = benchmark.SETUPS
    (case,) = [case for case in benchmark.cases_of(digits) if case.name == name]
    least, most = LABELLED[name]
    for seed in (0, 1):
        outcome = benchmark.judge(digits, case, seed)
        assert outcome.right, (outcome.cause.kind, outcome.cause.identifiable)
        assert least <= outcome.dead <= most


@pytest.mark.slow
def test_deaths_of_a_spike_are_inside_it() -> None:
    (digits, *_) = benchmark.SETUPS
    (case,) = [case for case in benchmark.cases_of(digits) if case.name == "8 spike, Adam"]
    timeline = benchmark.run(digits, case, 1).diagnosis.timeline
    died = timeline.groupby("step")["died"].sum()
    inside = sum(died[end] for start, end in pairwise(died.index) if 90 <= start < 110)
    assert inside >= 0.7 * died.sum()


def test_a_large_input_is_to_be_standardized_rather_than_the_learning_rate_lowered() -> None:
    data = load_breast_cancer()  # features of very different size, none of them centred
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with reludiag.Monitor(model, optimizer, every=10, probe=x, warn_over=None) as monitor:
            for _ in range(100):
                batch = torch.randint(0, len(x), (64,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
    run = monitor.diagnose().causes[0]
    assert (run.kind, run.identifiable) == ("input_shift", False)
    assert "its root mean square is 237" in run.sentence
    assert [(change.setting, change.after) for change in run.changes] == [("input", "standardized")]


def test_without_a_probe_deaths_may_be_of_the_window_before() -> None:
    """A unit that dies in a window still fired in it: it is first silent in all of the next."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with (
        pytest.warns(RuntimeWarning, match="at a learning rate of 0.5"),
        reludiag.Monitor(model, optimizer, every=10) as monitor,
    ):
        for step in range(40):
            optimizer.param_groups[0]["lr"] = 0.5 if step < 10 else 1e-6
            if step == 5:
                with torch.no_grad():
                    model[0].bias[:6] = -100.0  # type: ignore[union-attr, operator]
            model(torch.randn(64, 8))
            optimizer.step()  # without gradients: only what is done by hand changes
    diagnosis = monitor.diagnose()
    units = diagnosis.units
    died = units[units["died_step"].notna()]
    assert "at a learning rate of 0.5" in str(diagnosis)
    assert died["unit"].tolist() == list(range(6)) and set(died["died_step"]) == {20}
    assert set(died["lr_at_death"]) == {0.5}


class Negated(nn.Module):
    """A ReLU of a ReLU with its sign changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.relu(-nn.functional.relu(self.first(x))))


def test_a_rectifier_that_no_weights_make_fire_is_in_the_wrong_place() -> None:
    torch.manual_seed(0)
    model = Negated()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(64, 8)
    with reludiag.Monitor(model, optimizer, every=2, probe=x) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    cause = monitor.diagnose().causes[0]
    assert (cause.kind, cause.identifiable) == ("structure", True)
    assert "with other weights" in cause.sentence

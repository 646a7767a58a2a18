"""Deaths in training of an input that is large, or that changed while the training went on."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reludiag
from reludiag.causes.cause import Cause
from reludiag.causes.explain import explain
from reludiag.measure.structure import InputScale
from reludiag.measure.unit_counts import UnitCounts
from reludiag.recording import RecordedRun, RecordedSite
from reludiag.recording.observations import (
    Death,
    InputStatistics,
    Observations,
    TrainingInput,
    Update,
)
from reludiag.sites.site import Rectifier, Site

STEPS = tuple(range(0, 110, 10))
UNITS = 40


def run_of(died: int, observations: Observations, optimizer: str = "SGD") -> RecordedRun:
    """20 units died in the window that ends with this snapshot."""
    dead = np.zeros((len(STEPS), UNITS), dtype=bool)
    dead[died:, :20] = True
    site = Site("1", "1", "1", "", Rectifier("ReLU", True), "1", UNITS, "0", None)
    known = np.ones_like(dead)
    counts, samples = UnitCounts.nothing(UNITS), np.full(len(STEPS), 100)
    sites = (RecordedSite(site, "0/0", counts, samples, dead, known, ~known),)
    facts = {"every": 10, "probe_samples": 100, "optimizers": [optimizer]}
    return RecordedRun(facts, STEPS, sites, ((1, "0/0", 0.1),), observations)


def large(rms: float, fraction: float, died: int = 3) -> Observations:
    """An input of this size, and deaths that survive this fraction of an update."""
    scale = InputScale("0", 8, 0.5, rms, -rms, rms, 0, 0.0, rms)
    step = STEPS[died]
    return Observations(
        inputs=(InputStatistics("0", 100, True, 0.5, 0.1, scale),),
        updates=(Update(step, "0", 0.5),),
        deaths=tuple(Death("1", unit, step, step - 10, fraction) for unit in range(20)),
    )


def cause(run: RecordedRun) -> Cause:
    return explain(run).causes[0]


@pytest.mark.parametrize(
    ("rms", "fraction", "optimizer", "kind"),
    [
        (10.0, 0.05, "SGD", "input_shift"),  # steps 100 times as far, 20 times too far
        (10.0, 0.05, "Adam", "learning_rate"),  # 10 times as far: not enough
        (30.0, 0.05, "Adam", "input_shift"),
        (10.0, 0.005, "SGD", "learning_rate"),
        (0.5, 0.5, "SGD", "learning_rate"),  # pixels in [0, 1]
        (10.0, float("nan"), "SGD", "input_shift"),
    ],
)
def test_a_large_input_is_the_cause_where_a_standardized_one_makes_steps_small_enough(
    rms: float, fraction: float, optimizer: str, kind: str
) -> None:
    found = cause(run_of(3, large(rms, fraction), optimizer))
    assert (found.kind, found.identifiable) == (kind, False)
    if kind == "input_shift":
        assert f"its root mean square is {rms:.3g}" in found.sentence
        assert "standardize the input of '0'" in found.advice


def seen(*means: float, std: float = 1.0) -> tuple[TrainingInput, ...]:
    return tuple(
        TrainingInput(step, mean, std) for step, mean in zip(STEPS[1:], means, strict=True)
    )


def test_data_that_shifted_before_units_died_is_named_with_the_step() -> None:
    shifted = replace(large(0.5, 0.5, 6), training_inputs=seen(*[0.0] * 5, *[9.0] * 5))
    found = cause(run_of(6, shifted))
    assert (found.kind, found.identifiable) == ("input_shift", False)
    assert found.sentence.startswith("The data shifted by step 60: the mean of the inputs was 0")
    stretched = seen(*[0.0] * 10)
    stretched = tuple(replace(each, std=8.0) if each.step >= 60 else each for each in stretched)
    assert cause(run_of(6, replace(shifted, training_inputs=stretched))).kind == "input_shift"


@pytest.mark.parametrize(
    ("died", "means"),
    [
        (3, [0.0] * 5 + [9.0] * 5),  # units died before
        (6, [0.0] * 5 + [9.0] + [0.0] * 4),  # a single batch is an outlier
        (6, [0.0] * 5 + [0.5] * 5),  # within what batches differ by
        (6, [9.0] * 10),  # from the beginning
    ],
)
def test_what_is_no_shift_before_the_deaths_is_not_blamed(died: int, means: list[float]) -> None:
    observations = replace(large(0.5, 0.5, died), training_inputs=seen(*means))
    assert cause(run_of(died, observations)).kind == "learning_rate"


@pytest.mark.parametrize("probe", [True, False])
def test_the_training_input_is_recorded_once_a_window(probe: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batches = [torch.randn(32, 6) * (1 + step) for step in range(20)]
    settings: dict[str, Any] = {"every": 5, "probe": torch.randn(16, 6) if probe else None}
    with reludiag.Monitor(model, optimizer, **settings) as monitor:
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            model.eval()(batch * 1e6)
            model.train()
    assert monitor._writer is not None
    recorded = monitor._writer.read().observations.training_inputs
    steps = [each.step for each in recorded if each.step]
    assert steps == [5, 10, 15, 20]

    def by_hand(batch: Tensor) -> tuple[float, float]:
        return float(batch.mean()), float(batch.std(correction=0))

    for each in recorded:
        values = {by_hand(batch) for batch in batches}
        assert any(
            np.allclose((each.mean, each.std), value, rtol=1e-5, atol=1e-6) for value in values
        )


def test_inputs_without_numbers_leave_nothing_recorded() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, every=2) as monitor:
        for _ in range(4):
            model(torch.randint(0, 9, (5, 3))).sum().backward()
            optimizer.step()
    assert monitor._writer is not None
    assert not monitor._writer.read().observations.training_inputs
    assert monitor.diagnose().head.status == "complete"

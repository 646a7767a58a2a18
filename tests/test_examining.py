"""An untrained model examined: what is measured, what it is compared with, and what is blamed."""

import copy
import json
import math
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import reludiag
from reludiag.initialization.births import BIRTH_COLUMNS, REDRAW_COLUMNS
from reludiag.initialization.examination import (
    INPUT_COLUMNS,
    ON_BATCH,
    UNFILLED,
    _outweighing,
)
from reludiag.reports.init_report import init_document, init_text

WIDTH = 64


def digits(shift: float = 0.0, raw: bool = False) -> list[Tensor]:
    pixels = load_digits().data
    if not raw:
        spread = pixels.std(axis=0)
        pixels = (pixels - pixels.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return list(torch.tensor(pixels + shift, dtype=torch.float32).split(256))


def mlp(
    depth: int = 3, width: int = WIDTH, gain: float = math.sqrt(2), bias: float = 0.0, seed: int = 0
) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for index in range(depth):
        layer = nn.Linear(WIDTH if index == 0 else width, width)
        nn.init.normal_(layer.weight, 0, gain / math.sqrt(layer.in_features), generator=generator)
        nn.init.constant_(layer.bias, bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def blamed(examination: reludiag.InitExamination) -> set[str]:
    problems = [*examination.problems, *(p for la in examination.layers for p in la.problems)]
    return {problem.kind for problem in problems if problem.kills_at_birth}


def born(examination: reludiag.InitExamination) -> float:
    assert examination.births is not None
    return float(examination.births["born_dead"].sum() / examination.births["units"].sum())


def test_a_healthy_network_has_nothing_wrong_and_what_is_dead_is_as_chance_has_it() -> None:
    found = reludiag.examine_initialization(mlp(), digits(), seeds=1)
    assert not blamed(found) and not found.problems
    assert born(found) <= 0.03
    assert {layer.scheme for layer in found.layers} >= {"kaiming_normal"}
    assert found.samples == 1797


def test_deep_networks_are_not_0_percent_dead_and_the_integral_says_how_many() -> None:
    measured, expected = [], []
    for seed in range(3):
        found = reludiag.examine_initialization(mlp(30, 128, seed=seed), digits(), seeds=1)
        assert found.births is not None
        measured.append(found.births["born_dead"] / found.births["units"])
        expected.append(found.births["expected"])
        assert not blamed(found)
    mean, chance = np.mean(measured, axis=0), np.mean(expected, axis=0)
    assert mean[:3].max() <= 0.01
    assert 0.15 <= mean[-1] <= 0.38
    # Three networks of 128 units: one layer's share has a standard error of 0.02 and more.
    assert np.abs(mean - chance).max() <= 0.08 and np.abs(mean - chance).mean() <= 0.03


def test_the_gain_of_a_network_with_zero_biases_is_never_blamed_for_births() -> None:
    # In float64: no unit fires by a rounding, which another gain does not have.
    batches = [batch.double() for batch in digits()]
    found = [
        reludiag.examine_initialization(mlp(10, gain=gain).double(), batches, seeds=1)
        for gain in (0.1, math.sqrt(2), 10.0)
    ]
    assert len({born(examination) for examination in found}) == 1
    assert not any(blamed(examination) for examination in found)


@pytest.mark.parametrize(("bias", "share"), [(-1.0, 0.033), (-3.0, 0.295), (-10.0, 0.892)])
def test_a_negative_bias_is_blamed(bias: float, share: float) -> None:
    found = reludiag.examine_initialization(mlp(bias=bias), digits(), seeds=1)
    assert blamed(found) == {"negative_bias"}
    assert born(found) == pytest.approx(share, abs=0.08)
    assert found.redraws is not None
    kaiming = found.redraws[found.redraws["scheme"] == "kaiming_normal"]
    assert (kaiming["born_dead"] / kaiming["units"]).max() < 0.03


def test_weights_that_lean_to_one_side_are_blamed() -> None:
    model = mlp()
    with torch.no_grad():
        for layer in (model[2], model[4]):
            layer.weight -= 0.3
    found = reludiag.examine_initialization(model, digits(), seeds=1)
    assert blamed(found) == {"weight_mean"}
    assert born(found) == pytest.approx(0.667, abs=0.02)


@pytest.mark.parametrize(
    ("shift", "share"), [(0, 0.0), (1, 0.002), (3, 0.059), (10, 0.297), (30, 0.438), (100, 0.494)]
)
def test_an_input_that_is_not_centred_is_blamed_and_not_the_weights(
    shift: float, share: float
) -> None:
    data, layers = digits(shift), []
    for seed in range(3):
        found = reludiag.examine_initialization(mlp(seed=seed), data, seeds=1)
        assert found.births is not None and found.inputs is not None
        layers.append(found.births["born_dead"][0] / WIDTH)
        assert blamed(found) == ({"input_shift"} if shift else set())
    assert np.mean(layers) == pytest.approx(share, abs=0.07)
    # 61 of 64 pixels vary, each by 1.
    assert found.inputs["gamma"][0] == pytest.approx(shift * math.sqrt(64 / 61), abs=0.01)
    assert found.inputs["layer"].tolist() == ["0"]


def test_raw_pixels_are_not_centred() -> None:
    found = reludiag.examine_initialization(mlp(), digits(raw=True), seeds=1)
    assert found.births is not None
    assert found.births["cosine"][0] == pytest.approx(0.693, abs=0.01)
    assert blamed(found) == {"input_shift"}


def test_biases_that_outweigh_a_shrunk_signal_are_blamed_in_deep_default_networks() -> None:
    torch.manual_seed(0)
    layers = [module for _ in range(10) for module in (nn.Linear(64, 64), nn.ReLU())]
    found = reludiag.examine_initialization(nn.Sequential(*layers), digits(), seeds=2)
    assert found.births is not None
    assert blamed(found) == {"bias_outweighs"}
    measured = found.births["born_dead"] / found.births["units"]
    assert np.abs(measured - found.births["with_bias"]).max() < 0.15
    assert measured.iloc[-1] > 0.3 > 0.2 > found.births["redrawn"].iloc[-1]


def test_a_network_too_narrow_for_its_depth_is_blamed() -> None:
    found = reludiag.examine_initialization(mlp(20, 4), digits(), seeds=1)
    assert "too_narrow" in blamed(found)
    assert found.problems[0].value == pytest.approx(0.7249, abs=5e-5)


def test_a_batch_norm_takes_the_blame_from_what_it_takes_out() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    nn.init.constant_(layers[0].bias, -3.0)
    nn.init.constant_(layers[3].bias, -3.0)
    found = reludiag.examine_initialization(nn.Sequential(*layers), digits(), seeds=1)
    assert [layer.module for layer in found.layers if layer.problems] == ["3"]
    assert found.births is not None and found.births["norm"].tolist()[0] == "1"
    assert math.isnan(found.births["expected"][0])


def test_chance_is_not_computed_where_something_stands_between_layer_and_rectifier() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))
            return torch.relu(x + self.two(x))

    found = reludiag.examine_initialization(Residual(), digits(), seeds=1)
    assert found.births is not None
    assert found.births["expected"].isna().tolist() == [False, True]


def test_convolutions_transposed_and_grouped_are_examined() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3, groups=4),
        nn.ReLU6(), nn.ConvTranspose2d(16, 12, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 13 * 13, 10),
    )  # fmt: skip
    batches = [x.reshape(-1, 1, 8, 8) for x in digits(shift=3.0)]
    found = reludiag.examine_initialization(model, batches, seeds=1, limit=2)
    assert [layer.scheme for layer in found.layers] == ["pytorch"] * 4
    assert found.samples == 512
    assert found.inputs is not None and found.inputs["layer"].tolist() == ["0"]
    assert found.inputs["gamma"][0] == pytest.approx(3 * math.sqrt(64 / 61), abs=0.15)
    assert blamed(found) == {"input_shift"}


def test_every_layer_that_is_fed_by_the_input_alone_is_a_first_layer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(64, 8), nn.Linear(64, 8)
            self.top = nn.Linear(16, 4)
            for parameter in self.parameters():
                parameter.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.left(x), self.right(x + 1)], dim=1)
            return torch.relu(self.top(torch.relu(both)))

    found = reludiag.examine_initialization(Two(), digits(), seeds=1)
    assert found.inputs is not None and found.inputs["layer"].tolist() == ["left", "right"]
    assert found.inputs["gamma"].tolist() == pytest.approx([0, math.sqrt(64 / 61)], abs=0.01)


def test_biases_are_not_blamed_where_no_more_is_dead_than_if_drawn_anew() -> None:
    births = {"layer": "8", "expected": 0.1, "with_bias": 0.3, "bias_ratio": 2.0, "redrawn": 0.12}
    layer = reludiag.examine_initialization(mlp()).layers[0]
    layer = replace(layer, module="8")
    for dead, kinds in ((8, []), (20, ["bias_outweighs"])):
        table = pd.DataFrame([{**births, "born_dead": dead, "units": 64}])
        assert [problem.kind for problem in _outweighing(layer, table)] == kinds


def test_batch_norm_is_measured_on_the_statistics_of_the_batch_as_in_training() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    shifted = [batch + 5 for batch in digits()]
    found = reludiag.examine_initialization(model, shifted, seeds=1)
    assert ON_BATCH in found.notes
    assert found.births is not None and found.births["born_dead"].tolist() == [0]
    assert ON_BATCH not in reludiag.examine_initialization(mlp(), digits(), seeds=1).notes


def test_running_statistics_that_have_seen_no_batch_are_noted_where_a_batch_has_none() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    assert UNFILLED in reludiag.examine_initialization(model, [torch.ones(1, 64)], seeds=1).notes


def test_without_data_only_the_weights_speak() -> None:
    found = reludiag.examine_initialization(mlp(bias=-3.0))
    assert found.births is found.redraws is found.inputs is None
    assert blamed(found) == {"negative_bias"}
    assert "Without data it is unknown" in init_text(found)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4)
    )
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    reludiag.examine_initialization(model, digits(), seeds=1)
    assert torch.equal(state, torch.get_rng_state())
    for old, new in zip(before.modules(), model.modules(), strict=True):
        assert old.training == new.training
        assert not new._forward_hooks and not new._forward_pre_hooks
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new) and old.requires_grad == new.requires_grad
        assert new.grad is None
    assert all(
        torch.equal(old, new) for old, new in zip(before.buffers(), model.buffers(), strict=True)
    )


def test_weights_that_explode_are_not_called_dead() -> None:
    model = mlp(3)
    nn.init.constant_(model[2].weight, math.nan)
    found = reludiag.examine_initialization(model, digits(), seeds=1)
    assert found.births is not None
    assert found.births["nonfinite"].tolist() == [0, 64, 64]
    assert found.births["born_dead"].tolist()[1:] == [0, 0]
    assert "nonfinite" in {p.kind for layer in found.layers for p in layer.problems}
    assert "NaN or infinite" in init_text(found)
    json.loads(init_document(found))


def test_the_tables_have_their_declared_columns_also_where_they_are_empty() -> None:
    leaky = nn.Sequential(nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 2))
    for model in (mlp(), leaky):
        found = reludiag.examine_initialization(model, digits(), seeds=1)
        tables = (found.births, found.redraws, found.inputs)
        for table, columns in zip(
            tables, (BIRTH_COLUMNS, REDRAW_COLUMNS, INPUT_COLUMNS), strict=True
        ):
            assert table is not None
            assert dict(table.dtypes) == {
                column.name: pd.Series(dtype=column.dtype).dtype for column in columns
            }
        assert init_text(found)


def test_a_model_that_cannot_be_copied_or_has_no_rectifier_is_refused() -> None:
    held = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    held.lock = threading.Lock()
    with pytest.raises(reludiag.ModelError, match="cannot be copied"):
        reludiag.examine_initialization(held)
    with pytest.raises(reludiag.ModelError, match="no rectifier"):
        reludiag.examine_initialization(nn.Linear(3, 3))


def test_the_report_is_80_columns_wide_and_the_document_is_whole() -> None:
    found = reludiag.examine_initialization(mlp(bias=-3.0), digits(shift=3.0), seeds=1)
    text = init_text(found)
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "How each layer was initialized", "kaiming_normal", "Born dead, by site", "By chance",
        "start it at 0", "Subtract the mean", "orthogonal",
        "only for weights before the first step",
    ):  # fmt: skip
        assert words in " ".join(text.split())
    document = json.loads(init_document(found))
    assert document["schema_version"] == 1
    assert [layer["module"] for layer in document["layers"]] == ["0", "2", "4", "6"]
    assert len(document["births"]) == 3 and len(document["redraws"]) == 4
    assert document["inputs"][0]["layer"] == "0"
    assert str(found) == text

"""Weights that are plain parameters are described, drawn and blamed as those of an nn.Linear."""

import contextlib
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import reludiag
from reludiag.experiments.replay import replay_of
from reludiag.initialization.layer_init import LayerInit
from reludiag.initialization.schemes import reinitialize
from reludiag.recording import read_recording
from reludiag.recording.observations import Observations
from reludiag.testing import assert_alive

X = torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
W = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) / 4


WAYS = {
    "linear": "fc", "matmul": "W", "einsum": "W", "F.linear": "V", "transposed": "W", "addmm": "W",
    "list": "Ws.0", "dict": "named.enc", "left": "V",
}  # fmt: skip
"""Ways to write one layer, and the name of its producer."""


class Layer(nn.Module):
    """The same layer of 64 units, written in one of the ways."""

    def __init__(self, way: str, bias: float = 0.0) -> None:
        super().__init__()
        self.way = way
        names = {"linear": "fc", "list": "Ws", "dict": "named", "F.linear": "V", "left": "V"}
        name = names.get(way, "W")
        if name == "fc":
            self.fc = nn.Linear(16, 64)
            self.fc.weight.data, self.fc.bias.data = W.clone(), torch.full((64,), bias)
            return
        weight = nn.Parameter(W.clone() if name == "V" else W.T.clone())
        holders = {"Ws": nn.ParameterList, "named": nn.ParameterDict}
        values = {"Ws": [weight], "named": {"enc": weight}}
        setattr(self, name, holders[name](values[name]) if name in holders else weight)
        self.b = nn.Parameter(torch.full((64,), bias))

    def forward(self, x: Tensor) -> Tensor:
        match self.way:
            case "linear":
                z = self.fc(x)
            case "matmul":
                z = x @ self.W + self.b
            case "einsum":
                z = torch.einsum("bd,dh->bh", x, self.W) + self.b
            case "F.linear":
                z = functional.linear(x, self.V, self.b)
            case "transposed":
                z = functional.linear(x, self.W.t(), self.b)
            case "addmm":
                z = torch.addmm(self.b, x, self.W)
            case "list":
                z = x @ self.Ws[0] + self.b
            case "dict":
                z = x @ self.named["enc"] + self.b
            case _:
                return torch.relu(self.V @ x.mT + self.b[:, None]).mT
        return torch.relu(z)


def built(way: str, nested: bool, bias: float = 0.0) -> nn.Module:
    layer = Layer(way, bias)
    torch.manual_seed(0)
    return nn.Sequential(layer, nn.Linear(64, 2)) if nested else layer


def parameter(model: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """Weight `[unit, input]` and bias of the layer."""
    layer = model[0] if isinstance(model, nn.Sequential) else model
    if layer.way == "linear":
        return layer.fc.weight, layer.fc.bias
    weight = dict(model.named_parameters())[path]
    return (weight if len(weight) == 64 else weight.T), layer.b


ways = pytest.mark.parametrize("way", WAYS)
places = pytest.mark.parametrize("nested", [False, True], ids=["root", "nested"])


def path_of(way: str, nested: bool) -> str:
    return f"0.{WAYS[way]}" if nested else WAYS[way]


@ways
@places
def test_the_producer_is_the_layer_or_the_parameter(way: str, nested: bool) -> None:
    sites = reludiag.scan(built(way, nested), X).sites
    assert list(sites["producer"]) == [path_of(way, nested)]


@ways
@places
def test_a_layer_is_examined_alike_in_every_way_to_write_it(way: str, nested: bool) -> None:
    def examined(way: str) -> tuple[LayerInit, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        result = reludiag.examine_initialization(built(way, nested, bias=-2.0), [X], seeds=1)
        layer = next(each for each in result.layers if each.module == path_of(way, nested))
        assert result.births is not None and result.redraws is not None
        assert result.inputs is not None
        assert list(result.births["layer"]) == list(result.inputs["layer"]) == [layer.module]
        drop = ["layer", "site"]
        births = result.births.drop(columns=drop)
        return layer, births, result.redraws, result.inputs.drop(columns="layer")

    (layer, *tables), (linear, *expected) = examined(way), examined("linear")
    for name in ("fan_in", "fan_out", "scheme", "alike", "bias", "bias_mean"):
        assert getattr(layer, name) == getattr(linear, name)
    for name in ("std", "gain", "mean", "bias_depth"):
        assert getattr(layer, name) == pytest.approx(getattr(linear, name), abs=1e-9)
    assert [p.kind for p in layer.problems] == [p.kind for p in linear.problems]
    for table, other in zip(tables, expected, strict=True):
        pd.testing.assert_frame_equal(table, other, atol=1e-6)


@ways
@places
@pytest.mark.parametrize("scheme", ["kaiming", "xavier", "pytorch", "orthogonal"])
def test_the_same_seed_draws_the_same_layer(way: str, nested: bool, scheme: str) -> None:
    model, linear = built(way, nested, -5.0), built("linear", nested, -5.0)
    drawn = reinitialize(model, scheme, seed=3)
    reinitialize(linear, scheme, seed=3)
    assert drawn.drawn == (path_of(way, nested),)
    for tensor, other in zip(
        parameter(model, path_of(way, nested)),
        parameter(linear, path_of("linear", nested)),
        strict=True,
    ):
        assert torch.equal(tensor, other)


def trained(
    way: str, nested: bool, bias: float, lr: float, probe: Tensor | None = X
) -> tuple[reludiag.Diagnosis, Observations]:
    model = built(way, nested, bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    monitor = reludiag.Monitor(model, optimizer, probe=probe, every=2, warn_over=None)
    with monitor:
        for _ in range(4):
            optimizer.zero_grad()
            (model(X) + 1).square().sum(1).mean().backward()
            optimizer.step()
    assert monitor._writer is not None
    return monitor.diagnose(), monitor._writer.read().observations


@ways
@places
def test_deaths_have_the_same_evidence_and_cause(way: str, nested: bool) -> None:
    (diagnosis, found), (linear, expected) = (
        trained(each, nested, 0.0, 0.3 if nested else 0.9) for each in (way, "linear")
    )
    assert expected.deaths
    # What pushes the units of an output down is measured of layers only.
    kinds = {c.kind for c in linear.causes} | (set() if nested else {"learning_rate"})
    assert {c.kind for c in diagnosis.causes} <= kinds
    assert [c.share for c in diagnosis.causes] == [c.share for c in linear.causes]
    assert [(d.unit, d.step) for d in found.deaths] == [(d.unit, d.step) for d in expected.deaths]
    for death, other in zip(found.deaths, expected.deaths, strict=True):
        assert death.drift is not None and other.drift is not None
        assert list(vars(death.drift).values()) == pytest.approx(
            list(vars(other.drift).values()), rel=1e-3, abs=1e-4
        )
    assert {u.module for u in found.updates} == {path_of(way, nested)}
    assert [u.ratio for u in found.updates] == pytest.approx(
        [u.ratio for u in expected.updates], rel=1e-3, abs=1e-6
    )


@ways
@places
@pytest.mark.parametrize("probe", [X, None], ids=["probe", "window"])
def test_births_have_the_same_cause(way: str, nested: bool, probe: Tensor | None) -> None:
    diagnosis, found = trained(way, nested, -5.0, 0.01, probe)
    path = path_of(way, nested)
    assert diagnosis.causes[0].kind == "initialization" and diagnosis.causes[0].identifiable
    assert f"bias of {path} starts at -5" in diagnosis.causes[0].sentence
    assert [start.module for start in found.initial_layers] == [path]
    first = next(each for each in found.inputs if each.module == path)
    assert first.is_first and first.samples == 200
    assert [baseline.born_dead for baseline in found.baselines] == [0.0]


class Experts(nn.Module):
    def __init__(self, equation: str = "", dead: float = 0.0) -> None:
        super().__init__()
        self.equation = equation
        self.W = nn.Parameter(torch.randn(3, 16, 8) / 4)
        self.b = nn.Parameter(torch.full((3, 1, 8), dead))

    def forward(self, x: Tensor) -> Tensor:
        if self.equation:
            return torch.relu(torch.einsum(self.equation, x, self.W) + self.b.squeeze(1))
        return torch.relu(torch.baddbmm(self.b, x.expand(3, *x.shape), self.W))


@pytest.mark.parametrize("equation", ["", "bd,edh->beh"], ids=["baddbmm", "einsum"])
def test_each_expert_is_drawn_with_its_own_fans(equation: str) -> None:
    model = Experts(equation, dead=-5.0)
    assert reinitialize(model, "kaiming", seed=0).drawn == ("W",)
    for expert in model.W:
        assert float(expert.std()) == pytest.approx(math.sqrt(2 / 16), rel=0.2)
    assert not model.b.any()
    (layer,) = reludiag.examine_initialization(model, [X], seeds=1).layers
    assert layer.fan_in == 16 and layer.scheme == "kaiming_normal" and layer.bias == "zero"


def test_orthogonal_experts_are_each_orthogonal() -> None:
    model = Experts()
    reinitialize(model, "orthogonal", seed=0)
    for expert in model.W.detach():
        torch.testing.assert_close(expert.T @ expert, torch.eye(8), atol=1e-5, rtol=0)
    (layer,) = reludiag.examine_initialization(model, [X], seeds=1).layers
    assert layer.scheme == "orthogonal"


class Convolution(nn.Module):
    def __init__(self, raw: bool, bias: float = -9.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        nn.init.constant_(conv.bias, bias)
        if raw:
            self.W, self.b = nn.Parameter(conv.weight.detach()), nn.Parameter(conv.bias.detach())
        else:
            self.conv = conv
        self.raw = raw

    def forward(self, x: Tensor) -> Tensor:
        if self.raw:
            return torch.relu(functional.conv2d(x, self.W, self.b, stride=2, padding=1))
        return torch.relu(self.conv(x))


def test_a_convolution_with_plain_parameters_is_drawn_and_examined_as_the_module() -> None:
    raw, module = Convolution(True), Convolution(False)
    images = torch.randn(6, 3, 10, 10)
    layers = [
        reludiag.examine_initialization(model, [images], seeds=1).layers[0]
        for model in (raw, module)
    ]
    names = ("shape", "fan_in", "fan_out", "scheme", "gain", "bias_depth")
    assert [getattr(layers[0], name) for name in names] == [
        getattr(layers[1], name) for name in names
    ]
    assert reinitialize(raw, "kaiming", seed=1).drawn == ("W",)
    reinitialize(module, "kaiming", seed=1)
    assert torch.equal(raw.W, module.conv.weight) and not raw.b.any()


def test_deaths_behind_a_plain_convolution_are_decomposed() -> None:
    model, images = Convolution(True, bias=0.0), torch.randn(6, 3, 10, 10)
    optimizer = torch.optim.SGD([{"params": [model.W], "lr": 0.05}, {"params": [model.b]}], 3.0)
    with reludiag.Monitor(model, optimizer, probe=images, every=1, warn_over=None) as monitor:
        (model(images) + 1).square().mean((0, 2, 3)).sum().backward()
        optimizer.step()
    assert monitor._writer is not None
    deaths = monitor._writer.read().observations.deaths
    assert deaths
    for death in deaths:
        z = functional.conv2d(
            images.double(), model.W.double(), model.b.double(), stride=2, padding=1
        )
        assert death.drift is not None
        assert death.drift.after == pytest.approx(float(z[:, death.unit].mean()), rel=1e-4)


# What is not drawn


class Root(nn.Linear):
    """A layer of PyTorch that is itself the model."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def test_a_model_that_is_a_layer_itself_has_a_producer_and_is_drawn() -> None:
    model = Root(16, 64)
    nn.init.constant_(model.bias, -5.0)
    assert list(reludiag.scan(model, X).sites["producer"]) == [""]
    assert reinitialize(model, "kaiming", seed=0).drawn == ("",)
    assert not model.bias.any()
    assert reludiag.examine_initialization(model, [X], seeds=1).layers[0].module == ""


def test_an_output_head_keeps_its_prior() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    nn.init.constant_(model[2].bias, -4.6)
    before = model[2].weight.clone()
    change = reinitialize(model, "kaiming", seed=0)
    assert change.drawn == ("0",) and change.left == {"2": "it feeds no rectifier"}
    assert (model[2].bias == -4.6).all() and torch.equal(model[2].weight, before)


def test_what_lies_before_a_rectifier_is_drawn_also_if_it_does_not_feed_it_directly() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    assert reinitialize(model, "kaiming", seed=0).drawn == ("0", "2")


class Masked(nn.Module):
    """Its weight is computed at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(16, 64) / 4)
        self.b = nn.Parameter(torch.full((64,), -9.0))
        self.out = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(x @ (self.W * (self.W.abs() > 0.01)) + self.b))


def test_a_weight_that_is_computed_is_left_with_the_reason_and_nothing_is_concluded() -> None:
    model = Masked()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change = reinitialize(model, "kaiming", seed=0)
    assert not change.drawn and change.left["W"] == "the weight is computed from it"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    result = reludiag.examine_initialization(model, [X])
    assert result.redraws is not None and not len(result.redraws)
    assert any("nothing could be drawn anew: W (the weight" in note for note in result.notes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with reludiag.Monitor(model, optimizer, probe=X, warn_over=None) as monitor:
        model(X).mean().backward()
        optimizer.step()
    cause = monitor.diagnose().causes[0]
    assert (cause.kind, cause.identifiable) == ("undetermined", False)


def test_a_weight_that_is_used_in_two_ways_is_left() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.relu(x @ self.W) @ self.W.T)

    assert reinitialize(Both(), "kaiming", seed=0).left == {"W": "it is used in two ways"}


def test_a_batch_says_what_no_made_up_input_can() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.zeros(16, 64))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.relu((a + b) @ self.W)

    model = Pair()
    assert "without a batch" in reinitialize(model, "kaiming", seed=0).left["W"]
    assert not model.W.any()
    batch = {"a": X, "b": X}
    assert reinitialize(model, "kaiming", seed=0, batch=batch).drawn == ("W",)
    assert float(model.W.detach().std()) == pytest.approx(math.sqrt(2 / 16), rel=0.1)


@pytest.mark.parametrize(("build", "undrawn"), [(Masked, 64), (lambda: Layer("matmul", -9.0), 0)])
def test_a_trial_counts_the_dead_units_whose_weights_it_left(
    build: type[nn.Module], undrawn: int, tmp_path: Path
) -> None:
    from reludiag.experiments.compare import trial_row

    trial = reludiag.Trial(init="kaiming", recording=tmp_path / "run.reludiag")
    model = nn.Sequential(trial.init(build()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with trial.monitor(model, optimizer, probe=X):
        model(X).mean().backward()
        optimizer.step()
    row = trial_row(read_recording(tmp_path / "run.reludiag"))
    assert row["undrawn"] == undrawn
    assert ("leaves weights as they are: W (the weight" in row["notes"]) == bool(undrawn)


@pytest.mark.parametrize("undrawn", [0, 90])
def test_a_scheme_that_left_the_weights_of_dead_units_explains_nothing(undrawn: int) -> None:
    trials = pd.DataFrame(
        [
            {"arm": arm, "seed": 0, "lr": 0.1, "status": "complete", "units": 100, "born": 90,
             "new": 0, "dead": 90, "error": "", "recording": "",
             "undrawn": None if arm in ("factual", "lr") else undrawn}
            for arm in ("factual", "lr", "init", "both")
        ]
    )  # fmt: skip
    result = replay_of(trials, "train", 0.1, "kaiming")
    assert result.answer.kind == ("undetermined" if undrawn else "neither")
    if undrawn:
        assert "left as they are" in result.sentence and "trial.init(model, batch)" in result.advice


# Several producers


def shown(diagnosis: reludiag.Diagnosis) -> str:
    return " ".join(str(diagnosis).split())


class Residual(nn.Module):
    def __init__(self, projected: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.shortcut = nn.Conv2d(3, 8, 1) if projected else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.conv1(x))
        projected = not isinstance(self.shortcut, nn.Identity)
        return self.relu(self.conv2(hidden) + self.shortcut(x if projected else hidden))


@pytest.mark.parametrize(
    ("projected", "producer"), [(True, "conv2, shortcut"), (False, "conv2, relu")]
)
def test_a_sum_of_branches_names_all_of_them(projected: bool, producer: str) -> None:
    model = Residual(projected)
    with torch.no_grad():
        model.conv2.bias[1:] = -99.0
    diagnosis = reludiag.scan(model, torch.randn(4, 3, 5, 5))
    assert list(diagnosis.sites["producer"]) == ["conv1", producer]
    both = "' and '".join(producer.split(", "))
    assert f"its weights: '{both}' together: none of them may be cut alone" in shown(diagnosis)


def test_none_of_several_producers_is_blamed_alone() -> None:
    model, images = Residual(), torch.randn(16, 3, 5, 5)
    nn.init.constant_(model.shortcut.bias, -99.0)
    with torch.no_grad():
        model.shortcut.bias[0] = 9.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with reludiag.Monitor(model, optimizer, probe=images, warn_over=None) as monitor:
        model(images).mean().backward()
        optimizer.step()
    diagnosis = monitor.diagnose()
    causes = {cause.site: cause for cause in diagnosis.causes}
    assert "conv2 and shortcut" in causes["relu#1"].advice
    assert monitor._writer is not None
    run = monitor._writer.read()
    assert {start.module for start in run.observations.initial_layers} == {
        "conv1",
        "conv2",
        "shortcut",
    }
    assert [site.param_group for site in run.sites] == ["0/0", "0/0"]


def test_births_at_a_residual_sum_are_compared_with_a_new_draw(tmp_path: Path) -> None:
    """Its identity branch comes from another site, which is no weight that was left."""
    from reludiag.experiments.compare import trial_row

    images = torch.randn(16, 3, 5, 5)
    trial = reludiag.Trial(init="kaiming", recording=tmp_path / "run.reludiag")
    model = trial.init(Residual(projected=False))
    nn.init.constant_(model.conv2.bias, -99.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with trial.monitor(model, optimizer, probe=images) as monitor:
        model(images).mean().backward()
        optimizer.step()
    run = read_recording(tmp_path / "run.reludiag")
    assert run.sites[1].site.producer == "conv2, relu"
    assert "relu#1" in {baseline.site for baseline in run.observations.baselines}
    row = trial_row(run)
    assert row["dead"] >= 8 and row["undrawn"] == 0
    assert monitor.diagnose().causes[0].kind == "initialization"


def test_a_report_names_some_of_many_producers_and_the_table_all() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.ModuleList([nn.Linear(16, 4) for _ in range(9)])

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.cat([branch(x) for branch in self.branch], 1) - 99)

    diagnosis = reludiag.scan(Dense(), X)
    assert len(diagnosis.sites["producer"][0].split(", ")) == 9
    with pytest.raises(AssertionError, match=r"branch\.5, 3 more"):
        assert_alive(Dense(), X)


# Weights that are computed by a parametrization


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.evaluations = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.evaluations += 1
        return weight


def counted(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Counting())


PARAMETRIZED = {
    "counting": counted,
    "spectral": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight norm": parametrizations.weight_norm,
}


def parametrized_training(kind: str, watched: bool, probe: Tensor | None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        PARAMETRIZED[kind](nn.Linear(16, 64)), nn.ReLU(),
        PARAMETRIZED[kind](nn.Linear(64, 8, bias=False)), nn.ReLU(), nn.Linear(8, 1),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watch: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if watched:
        watch = reludiag.Monitor(model, optimizer, probe=probe, every=2, warn_over=None)
    with watch:
        for _ in range(5):
            optimizer.zero_grad()
            (model(X) - 1).square().mean().backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("kind", PARAMETRIZED)
@pytest.mark.parametrize("probe", [None, X], ids=["window", "probe"])
def test_watching_a_parametrized_layer_changes_nothing(kind: str, probe: Tensor | None) -> None:
    bare, seen = (parametrized_training(kind, watched, probe) for watched in (False, True))
    for (name, value), other in zip(
        bare.state_dict().items(), seen.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_watching_evaluates_no_parametrization() -> None:
    counts = [
        [
            parametrized_training("counting", watched, None)[layer]
            .parametrizations.weight[0]
            .evaluations
            for layer in (0, 2)
        ]
        for watched in (False, True)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_a_parametrized_layer_is_its_sites_producer_and_its_rows_are_known(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(PARAMETRIZED[kind](nn.Linear(16, 64)), nn.ReLU())
    weights = list(model[0].parametrizations.parameters())
    optimizer = torch.optim.SGD([{"params": weights, "lr": 0.05}, {"params": [model[0].bias]}], 3.0)
    with reludiag.Monitor(model, optimizer, probe=X, every=1, warn_over=None) as monitor:
        (model(X) + 1).square().sum(1).mean().backward()
        optimizer.step()
    assert list(monitor.diagnose().sites["producer"]) == ["0"]
    assert monitor._writer is not None
    deaths = monitor._writer.read().observations.deaths
    assert deaths
    for death in deaths:
        assert death.drift is not None
        mean = float((X.double() @ model[0].weight[death.unit].double()).mean())
        mean += float(model[0].bias[death.unit])
        assert death.drift.after == pytest.approx(mean, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.relu(x @ m.W) + m.b,
        lambda m, x: torch.relu((x @ m.W) * 2 + m.b),
        lambda m, x: torch.relu(x @ m.W - m.b),
        lambda m, x: torch.relu(x @ m.W + m.b.mean()),
    ],
    ids=["behind the rectifier", "scaled before", "subtracted", "computed"],
)
def test_what_is_no_bias_of_the_product_is_taken_for_none(forward) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W, self.b = nn.Parameter(W.T.clone()), nn.Parameter(torch.full((64,), -5.0))

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    model = Net()
    (layer,) = reludiag.examine_initialization(model, [X], seeds=1).layers
    assert layer.bias == "none" and not layer.problems
    assert reinitialize(model, "kaiming", seed=0).drawn == ("W",)
    assert (model.b == -5).all()

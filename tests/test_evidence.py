"""Evidence of a run: how each unit that died came to it, and how the run began."""

import contextlib
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reludiag
from reludiag.recording import read_recording
from reludiag.recording.observations import Death, Observations

PROBE = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def one_step(
    model: nn.Module,
    path: Path,
    change: Callable[[dict[str, Tensor]], None],
    probe: Any = PROBE,
) -> Observations:
    """Record a single step that makes the weights what `change` makes of them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    target = copy.deepcopy(model)
    with torch.no_grad():
        change(dict(target.named_parameters()))
    with reludiag.Monitor(model, optimizer, path=path, every=1, probe=probe):
        for weight, wanted in zip(model.parameters(), target.parameters(), strict=True):
            weight.grad = (weight - wanted).detach()
        optimizer.step()
    return read_recording(path).observations


def shares(death: Death) -> tuple[float, float, float]:
    assert death.drift is not None
    fall = death.drift.after - death.drift.before
    return death.drift.weights / fall, death.drift.input / fall, death.drift.bias / fall


def less_bias(weights: dict[str, Tensor]) -> None:
    weights["2.bias"] -= 50


def negative_weights(weights: dict[str, Tensor]) -> None:
    weights["2.weight"].copy_(-weights["2.weight"].abs() - 0.5)


def more_above(weights: dict[str, Tensor]) -> None:
    weights["0.bias"] += 20


@pytest.mark.parametrize(
    ("kill", "expected"),
    [(less_bias, (0, 0, 1)), (negative_weights, (1, 0, 0)), (more_above, (0, 1, 0))],
)
def test_a_death_by_one_thing_alone_is_wholly_put_down_to_it(
    kill: Callable[[dict[str, Tensor]], None], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    seen = one_step(seeded(mlp), tmp_path / "run", kill)
    deaths = [death for death in seen.deaths if death.site == "3"]
    assert len(deaths) >= 5
    for death in deaths:
        assert shares(death) == pytest.approx(expected, abs=5e-4)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=2, dilation=2, bias=False, padding_mode="reflect")
        self.bn2 = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 8, 3, stride=2, output_padding=1, groups=2)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, z: dict[str, Tensor] | None = None) -> Tensor:
        z = {} if z is None else z
        z["conv1"] = self.bn1(self.conv1(x))
        z["conv2"] = self.bn2(self.conv2(z["conv1"].relu()))
        z["up"] = self.up(self.relu(z["conv2"].clone()))
        return self.head(z["up"].relu().mean((2, 3)))


def images(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 4, 9, 9, generator=generator, dtype=torch.float64)


def test_the_drift_of_convolutions_and_batch_norms_equals_brute_force(tmp_path: Path) -> None:
    # In float64, as the brute force: the parts are small beside the terms that they are sums of.
    model, path = seeded(Convolutions).double(), tmp_path / "run"
    generator = torch.Generator().manual_seed(1)
    probe = list(images(40, generator).split(16))  # one of them is shorter
    kept = {}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    with reludiag.Monitor(model, optimizer, path=path, every=2, probe=probe) as monitor:
        for _ in range(8):
            kept[len(kept)] = copy.deepcopy(model).eval()
            x = images(16, generator)
            loss = model(x).square().sum() + model(x - 1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        kept[len(kept)] = copy.deepcopy(model).eval()
    producers = dict(monitor.diagnose().sites[["site", "producer"]].itertuples(index=False))
    deaths = read_recording(path).observations.deaths
    assert {producers[death.site] for death in deaths} == {"conv1", "conv2", "up"}
    for death in deaths:
        assert death.drift is not None
        means = []
        for step in (death.previous, death.step):
            z: dict[str, Tensor] = {}
            with torch.no_grad():
                kept[step](torch.cat(probe), z)
            means.append(float(z[producers[death.site]].mean((0, 2, 3))[death.unit]))
        drift = death.drift
        assert (drift.before, drift.after) == pytest.approx(means, rel=1e-9, abs=1e-9)
        parts = drift.weights + drift.input + drift.bias
        assert parts == pytest.approx(means[1] - means[0], rel=1e-9, abs=1e-9)


def test_the_parts_of_a_linear_layers_drift_equal_brute_force(tmp_path: Path) -> None:
    model, path, probe = seeded(mlp).double(), tmp_path / "run", PROBE.double()
    before = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    with reludiag.Monitor(model, optimizer, path=path, every=5, probe=probe):
        for _ in range(5):
            optimizer.zero_grad()
            model(probe).square().sum().backward()
            optimizer.step()
    after = copy.deepcopy(model)
    deaths = [d for d in read_recording(path).observations.deaths if d.site == "3"]
    assert deaths
    with torch.no_grad():
        x0, x1 = (net[:2](probe).mean(0) for net in (before, after))
    w0, w1 = before[2].weight.detach(), after[2].weight.detach()
    for death in deaths:
        assert death.drift is not None
        u = death.unit
        parts = (
            float((w1 - w0)[u] @ (x0 + x1)) / 2,
            float((w0 + w1)[u] @ (x1 - x0)) / 2,
            float(after[2].bias[u] - before[2].bias[u]),
        )
        drift = death.drift
        assert (drift.weights, drift.input, drift.bias) == pytest.approx(parts, rel=1e-9, abs=1e-9)


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.body(x) + x).relu())


class Shared(Added):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.body(self.stem(x)).relu()).relu())


class Scaled(Added):
    def forward(self, x: Tensor) -> Tensor:
        return self.head((3 * self.body(self.stem(x))).relu())


def parametrized() -> nn.Module:
    model = Scaled()
    nn.utils.parametrizations.weight_norm(model.body)
    return model


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 6, 3), nn.MaxPool1d(2), nn.ReLU(), nn.Flatten()
    )


@pytest.mark.parametrize("build", [Added, Shared, Scaled, parametrized, pooled])
def test_what_is_no_plain_layer_has_no_drift_rather_than_a_wrong_one(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    def kill(weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            if name.endswith("bias"):
                weight -= 30

    deaths = one_step(seeded(build), tmp_path / "run", kill).deaths
    assert deaths
    assert all(death.drift is None for death in deaths)
    assert all(0 <= death.critical_fraction < 1 for death in deaths)


def test_the_critical_fraction_of_one_sgd_step_is_that_of_the_step_itself(tmp_path: Path) -> None:
    model, path, lr = seeded(mlp), tmp_path / "run", 3.0
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(2)) + 0.5
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with reludiag.Monitor(model, optimizer, path=path, every=1, probe=PROBE):
        model(x).square().sum().backward()
        optimizer.step()
    deaths = read_recording(path).observations.deaths
    assert len(deaths) >= 5

    def fires(rate: float, site: str, unit: int) -> bool:
        twin = copy.deepcopy(start)
        twin(x).square().sum().backward()
        torch.optim.SGD(twin.parameters(), lr=rate).step()
        with torch.no_grad():
            z = twin[: int(site) + 1](PROBE)
        return bool((z[:, unit] > 0).any())

    for death in deaths:
        critical = death.critical_fraction
        assert fires(lr * critical, death.site, death.unit)
        assert not fires(lr, death.site, death.unit)
        # Of what was tried above it, it survives nothing: the bracket is as narrow as was paid for.
        assert not fires(lr * min(1.0, max(critical * 1.6, 1 / 128)), death.site, death.unit)


def test_the_critical_fraction_of_a_single_death_is_found_to_two_percent(tmp_path: Path) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 1), nn.ReLU(), nn.Linear(1, 2)), seed=3)

    def kill(weights: dict[str, Tensor]) -> None:
        weights["0.bias"] -= 40

    start = copy.deepcopy(model)
    (death,) = one_step(model, tmp_path / "run", kill).deaths
    with torch.no_grad():
        exact = float(start[0](PROBE).max()) / 40
    assert 0.98 * exact <= death.critical_fraction <= exact


def test_examining_deaths_leaves_the_model_and_the_random_streams_alone() -> None:
    def train(watch: bool) -> tuple[list[Tensor], Tensor, list[int]]:
        torch.manual_seed(7)
        model = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4)
        )
        pointers = [p.data_ptr() for p in model.parameters()]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
        monitor = reludiag.Monitor(model, optimizer, every=1, probe=PROBE)
        if watch:
            monitor.__enter__()
        for _ in range(12):
            optimizer.zero_grad()
            (model(torch.randn(16, 8)).square().sum() + model[1].bias.sum()).backward()
            optimizer.step()
        if watch:
            monitor.__exit__(None, None, None)
            assert monitor.diagnose().timeline["died"].sum() > 0
        assert [p.data_ptr() for p in model.parameters()] == pointers
        state = [t.clone() for t in model.state_dict().values()]
        return state, torch.get_rng_state(), [m.training for m in model.modules()]

    with torch.random.fork_rng():
        watched, alone = train(True), train(False)
    assert all(torch.equal(a, b) for a, b in zip(watched[0], alone[0], strict=True))
    assert torch.equal(watched[1], alone[1])
    assert watched[2] == alone[2]


@pytest.mark.parametrize("probe", [PROBE, None])
def test_update_ratios_are_of_the_first_step_and_of_the_last_before_each_snapshot(
    probe: Tensor | None, tmp_path: Path
) -> None:
    model, path = seeded(mlp), tmp_path / "run"
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    ratios, hooks = {}, {}
    with reludiag.Monitor(model, optimizer, path=path, every=5, probe=probe):
        for step in range(1, 18):
            optimizer.zero_grad()
            model(PROBE).square().sum().backward()
            hooks[step] = len(optimizer._optimizer_step_pre_hooks)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.step()
            for name in ("0", "2"):
                old, new = before[f"{name}.weight"], model.get_parameter(f"{name}.weight").detach()
                ratios[step, name] = float((new - old).norm() / old.norm())
    updates = read_recording(path).observations.updates
    hooked = {step for step, count in hooks.items() if count > min(hooks.values())}
    assert hooked == {1, 5, 10, 15}
    assert {(update.step, update.module) for update in updates} == {
        (step, name) for step in hooked for name in ("0", "2")
    }
    for update in updates:
        assert update.ratio == pytest.approx(ratios[update.step, update.module], rel=1e-5)


@pytest.mark.parametrize("with_probe", [True, False])
def test_a_run_says_how_its_layers_began_and_what_they_were_given(
    with_probe: bool, tmp_path: Path
) -> None:
    model, path = seeded(mlp), tmp_path / "run"
    with torch.no_grad():
        model[2].bias.fill_(-3.0)
    x = PROBE + 2.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = x if with_probe else None
    with reludiag.Monitor(model, optimizer, path=path, every=5, probe=probe):
        for _ in range(5):
            model(x).sum().backward()
            optimizer.step()
    seen = read_recording(path).observations
    starts = {start.module: start.layer for start in seen.initial_layers}
    assert set(starts) == {"0", "2"}  # the head feeds no rectifier
    assert starts["0"]["scheme"] == "pytorch"
    assert starts["2"]["bias_mean"] == -3.0
    assert "negative_bias" in [problem["kind"] for problem in starts["2"]["problems"]]
    (first,) = [given for given in seen.inputs if given.is_first]
    gamma = float(x.mean(0).norm() / x.std(0, correction=0).norm())
    assert (first.module, first.samples) == ("0", 64)
    assert first.gamma == pytest.approx(gamma, rel=1e-5)
    baselines = {baseline.site: baseline.born_dead for baseline in seen.baselines}
    assert set(baselines) == {"1", "3"}
    assert baselines["3"] < 0.5  # while all are dead of the bias


def test_a_model_that_cannot_be_copied_is_recorded_all_the_same(tmp_path: Path) -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.handle = mlp(), (tmp_path / "log").open("w")

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = seeded(Holding)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, path=tmp_path / "run", probe=PROBE):
        model(PROBE).sum().backward()
        optimizer.step()
    seen = read_recording(tmp_path / "run").observations
    assert {start.module for start in seen.initial_layers} == {"body.0", "body.2"}
    assert seen.inputs == ()
    model.handle.close()


def test_evidence_that_cannot_be_had_ends_with_a_warning_and_not_the_training() -> None:
    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(self.body[0].weight, nn.Parameter):
                raise RuntimeError("these are not my weights")
            return self.body(x)

    model = seeded(Fussy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(
            RuntimeWarning, match="evidence for causes is no longer collected.*not my weights"
        ),
        reludiag.Monitor(model, optimizer, every=1, probe=PROBE) as monitor,
    ):
        for _ in range(4):
            optimizer.zero_grad()
            model(PROBE).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model.body[0].bias[3] = -100
    units = monitor.diagnose().units
    assert units["died_step"].notna().any()
    assert monitor.snapshots == [0, 1, 2, 3, 4]


def test_fractions_that_nothing_is_known_of_are_nan(tmp_path: Path) -> None:
    model = seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, path=tmp_path / "run", every=1, probe=PROBE):
        model(PROBE).sum().backward()
        optimizer.step()
        with torch.no_grad():
            model[0].bias.fill_(math.nan)
        optimizer.step()
    seen = read_recording(tmp_path / "run").observations
    assert not any(death.step == 2 for death in seen.deaths)  # not finite is not dead
    assert np.isfinite([update.ratio for update in seen.updates]).all()


def test_what_is_gathered_at_the_beginning_calls_no_hook_of_the_user() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].bias[:3] = -100.0  # born dead, so that it is drawn anew
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with reludiag.Monitor(model, optimizer, every=10) as monitor:
        for _ in range(3):
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step()
    assert seen == [5, 5, 5]
    assert monitor.diagnose().units["born_dead"].sum() >= 3


class Twice(nn.Module):
    """A layer under two names, or two layers with one weight."""

    def __init__(self, shares_layer: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, 16), nn.Linear(8, 4)
        self.left = nn.Linear(16, 8, bias=False)
        self.right = self.left if shares_layer else nn.Linear(16, 8, bias=False)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.left(x)) + torch.relu(-self.right(x)))


@pytest.mark.parametrize("shares_layer", [False, True])
def test_examining_deaths_leaves_a_weight_with_two_names_alone(shares_layer: bool) -> None:
    x = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    trained = []
    for watch in (False, True):
        model = seeded(lambda: Twice(shares_layer))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.2)
        monitor = reludiag.Monitor(model, optimizer, probe=x, every=1, warn_over=None)
        with monitor if watch else contextlib.nullcontext():
            for _ in range(15):
                optimizer.zero_grad()
                (model(x) - 1).square().mean().backward()
                optimizer.step()
        trained.append([parameter.detach().clone() for parameter in model.parameters()])
    assert monitor.diagnose().dead > 0
    assert all(map(torch.equal, *trained))

"""Terms of an update, histories of units, and ways of a gradient around the model's output."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reludiag
from reludiag.evidence.loss_paths import LossPaths
from reludiag.evidence.update_terms import has_momentum, split
from reludiag.recording import read_recording
from reludiag.recording.observations import History

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"weight_decay": 0.1}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "dampening": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "Nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "maximize": (torch.optim.SGD, {"momentum": 0.9, "maximize": True, "weight_decay": 0.1}),
    "Adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "AMSGrad": (torch.optim.Adam, {"weight_decay": 0.1, "amsgrad": True}),
    "fused Adam": (torch.optim.Adam, {"weight_decay": 0.1, "fused": True}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 10.0}),
    "RMSprop": (torch.optim.RMSprop, {"weight_decay": 0.1}),
    "RMSprop with momentum": (
        torch.optim.RMSprop,
        {"momentum": 0.9, "centered": True, "weight_decay": 0.1},
    ),
}
RATE, STEPS = 0.01, 6


def reference(
    name: str, options: dict[str, Any], gradients: list[Tensor], weights: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of the last of these steps, in float64, from all gradients and weights."""
    decay, decoupled = options["weight_decay"], name == "AdamW"
    sign = -1 if options.get("maximize") else 1
    pairs = [
        (sign * g.double(), 0 * w.double() if decoupled else decay * w.double())
        for g, w in zip(gradients, weights, strict=True)
    ]
    fresh, shrinking = pairs[-1]
    totals = [g + d for g, d in pairs]
    if "SGD" in name or name in ("momentum", "dampening", "Nesterov", "maximize"):
        momentum, damped = options.get("momentum", 0.0), 1 - options.get("dampening", 0.0)
        buffer = torch.zeros_like(fresh)
        for index, total in enumerate(totals[:-1]):
            buffer = momentum * buffer + (damped if index else 1) * total
        damped = damped if len(totals) > 1 else 1
        if options.get("nesterov"):
            return (
                -RATE * (1 + momentum) * fresh,
                -RATE * momentum**2 * buffer,
                -RATE * (1 + momentum) * shrinking,
            )
        return -RATE * damped * fresh, -RATE * momentum * buffer, -RATE * damped * shrinking
    if name.startswith("RMSprop"):
        square, mean, buffer = (torch.zeros_like(fresh) for _ in range(3))
        for total in totals:
            earlier, square = buffer, 0.99 * square + 0.01 * total.square()
            mean = 0.99 * mean + 0.01 * total
            centred = square - mean.square() if options.get("centered") else square
            size = centred.sqrt() + 1e-8
            buffer = options.get("momentum", 0.0) * buffer + total / size
        carried = -RATE * options.get("momentum", 0.0) * earlier
        return -RATE * fresh / size, carried, -RATE * shrinking / size
    first, second, largest = (torch.zeros_like(fresh) for _ in range(3))
    for total in totals:
        earlier, first = first, 0.9 * first + 0.1 * total
        second = 0.999 * second + 0.001 * total.square()
        largest = torch.maximum(largest, second)
    count = len(totals)
    used = largest if options.get("amsgrad") else second
    size = (used.sqrt() / (1 - 0.999**count) ** 0.5 + 1e-8) * (1 - 0.9**count)
    taken = -RATE * decay * weights[-1].double() if decoupled else -RATE * 0.1 * shrinking / size
    return -RATE * 0.1 * fresh / size, -RATE * 0.9 * earlier / size, taken


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_terms_of_an_update_equal_brute_force_and_sum_to_it(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(3)
    weight = nn.Parameter(0.1 * torch.randn(12, 40, generator=generator))
    x = torch.rand(40, generator=generator).double()
    optimizer = kind([weight], lr=RATE, **options)
    gradients: list[Tensor] = []
    weights: list[Tensor] = []
    for step in range(STEPS):
        weights.append(weight.detach().clone())
        # Not of mean 0, as gradients of a unit are not either.
        gradients.append(0.05 * torch.randn(12, 40, generator=generator) + 0.02)
        weight.grad = gradients[-1].clone()
        had = has_momentum(optimizer, weight)
        optimizer.step()
        terms = split(optimizer, optimizer.param_groups[0], weight, weights[-1], had, step)
        assert terms is not None
        parts = terms.fresh, terms.carried, terms.decay
        wanted = reference(name, options, gradients, weights)
        moved = (weight.detach().double() - weights[-1].double()) @ x
        size = sum((part.abs() @ x for part in wanted), torch.zeros(12).double())
        for part, exact in zip(parts, wanted, strict=True):
            assert ((part.double() @ x - exact @ x).abs() <= 1e-5 * size).all()
        assert ((terms.sum().double() @ x - moved).abs() <= 1e-5 * size).all()


def test_an_optimizer_of_another_class_is_not_split() -> None:
    class Own(torch.optim.SGD):
        pass

    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    for optimizer in (Own([weight], lr=0.1), torch.optim.Adagrad([weight])):
        before = weight.detach().clone()
        optimizer.step()
        assert split(optimizer, optimizer.param_groups[0], weight, before, False, 0) is None


# Histories


X = torch.rand(32, 8, generator=torch.Generator().manual_seed(5))
IMAGES = torch.rand(16, 2, 6, 6, generator=torch.Generator().manual_seed(6))


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def convolution() -> nn.Sequential:
    layer = nn.Conv2d(2, 6, 3, stride=2, padding=1)
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))


def norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


Penalty = Callable[[nn.Sequential, Tensor], Tensor]


def hidden(model: nn.Sequential, x: Tensor) -> Tensor:
    """The sum of what the rectifier returns."""
    last = next(i for i, module in enumerate(model) if isinstance(module, nn.ReLU))
    return model[: last + 1](x).sum()


def watched(
    build: Callable[[], nn.Sequential], path: Path, optimizer: str = "Adam"
) -> tuple[list[History], list[Tensor]]:
    """Train with a term that kills units, in float64; also the drift of each step, `[unit]`."""
    torch.manual_seed(0)
    model, x = build().double(), (IMAGES if build is convolution else X).double()
    kind, options = OPTIMIZERS[optimizer]
    rate = 0.05 if optimizer == "Adam" else 1.0
    optimizing = kind(model.parameters(), lr=rate, **{**options, "weight_decay": 0.01})
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    drifts = []
    with reludiag.Monitor(model, optimizing, path=path, every=1, probe=x, warn_over=None):
        for _ in range(8):
            before = copy.deepcopy(model)
            optimizing.zero_grad()
            for half in x.chunk(2):  # gradients are accumulated
                scaler.scale(model(half).sum() + 40 * hidden(model, half)).backward()
            scaler.unscale_(optimizing)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizing)
            scaler.update()
            drifts.append(drift(before, model, x))
    return list(read_recording(path).observations.histories), drifts


def drift(before: nn.Sequential, after: nn.Sequential, x: Tensor) -> Tensor:
    """By how much the layer's own weights moved the mean pre-activations."""
    with torch.no_grad():
        if isinstance(after[1], nn.BatchNorm1d):
            return (after[1].bias - before[1].bias).detach()
        places = (0, *range(2, x.ndim))
        return after[0](x).mean(places) - before[0](x).mean(places)


@pytest.mark.parametrize(
    ("build", "optimizer"),
    [(linear, "Adam"), (linear, "Nesterov"), (convolution, "Adam"), (norm, "momentum")],
)
def test_the_history_of_a_unit_sums_to_its_drift_until_it_died(
    build: Callable[[], nn.Sequential], optimizer: str, tmp_path: Path
) -> None:
    histories, drifts = watched(build, tmp_path / "run", optimizer)
    assert len(histories) >= 4
    for each in histories:
        # Each measured step stands for the steps until the next one.
        moved = torch.stack(drifts)[: each.step - 1, each.unit].sum()
        assert each.fresh + each.carried + each.decay == pytest.approx(float(moved), abs=1e-9)
        last = each.last_fresh + each.last_carried + each.last_decay
        assert last == pytest.approx(float(drifts[each.step - 1][each.unit]), abs=1e-9)


def test_the_shrinkage_by_weight_decay_is_that_of_its_own_factor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = linear()
    groups = [{"params": model[0].weight}, {"params": model[2].parameters()}]
    groups += [{"params": model[0].bias, "weight_decay": 0.0, "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.5)
    with reludiag.Monitor(
        model, optimizer, path=tmp_path / "run", every=1, probe=X, warn_over=None
    ):
        for _ in range(20):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            model[0].bias.grad = torch.full_like(model[0].bias, 0.1)
            optimizer.step()
    run = read_recording(tmp_path / "run")
    assert run.facts["weight_decay"] == {"0/0": 0.5, "0/1": 0.5}
    assert run.observations.histories
    for each in run.observations.histories:
        assert each.shrinkage == pytest.approx((each.step - 1) * 0.1 * 0.5, rel=1e-5)
        assert each.size == pytest.approx((1 - 0.1 * 0.5) ** each.step, rel=1e-5)


# Ways around the output


def activations(model: nn.Sequential, x: Tensor) -> Tensor:
    return 5 * hidden(model, x)


def squares(model: nn.Sequential, x: Tensor) -> Tensor:
    last = next(i for i, module in enumerate(model) if isinstance(module, nn.ReLU))
    return 5 * model[: last + 1](x).square().sum()


def weights(model: nn.Sequential, x: Tensor) -> Tensor:
    return 50 * model[0].weight.abs().sum()


def group_lasso(model: nn.Sequential, x: Tensor) -> Tensor:
    return 50 * model[0].weight.norm(dim=1).sum()


def nothing(model: nn.Sequential, x: Tensor) -> Tensor:
    return torch.zeros(())


def rows_of(model: nn.Module) -> dict[int, slice]:
    return {id(p): slice(None) for p in model.parameters()}


def seen_once(model: nn.Sequential, penalty: Penalty, x: Tensor) -> LossPaths:
    """What one backward pass shows."""
    paths = LossPaths()
    result = x
    read: list[Tensor] = []
    for module in model:
        result = module(result)
        if isinstance(module, nn.ReLU):
            read.append(result)
    paths.follow([result], rows_of(model))
    loss = result.square().sum()
    if penalty in (activations, squares):
        loss = loss + 5 * (read[0] if penalty is activations else read[0].square()).sum()
    else:
        loss = loss + penalty(model, x)
    loss.backward()
    return paths


@pytest.mark.parametrize("penalty", [activations, squares, weights, group_lasso, nothing])
@pytest.mark.parametrize("build", [linear, convolution])
def test_the_gradient_of_a_penalty_is_told_exactly_from_that_of_the_task(
    build: Callable[[], nn.Sequential], penalty: Penalty
) -> None:
    torch.manual_seed(1)
    model, x = build().double(), (IMAGES if build is convolution else X).double()
    (paths,) = [seen_once(model, penalty, x)]
    bias, weight = model[0].bias, model[0].weight
    own = penalty(model, x)
    wanted = torch.zeros_like(bias)
    if penalty in (activations, squares):
        (wanted,) = torch.autograd.grad(own, [bias])
    (push,) = paths.pushes[id(weight)]
    torch.testing.assert_close(push.around, wanted, rtol=1e-9, atol=1e-9)
    (task,) = torch.autograd.grad(model(x).square().sum(), [bias])
    torch.testing.assert_close(push.through_output, task, rtol=1e-9, atol=1e-9)
    if penalty in (weights, group_lasso):
        (exact,) = torch.autograd.grad(own, [weight])
        torch.testing.assert_close(paths.penalties[id(weight)], exact, rtol=1e-9, atol=1e-9)
    else:
        assert not paths.penalties


class Joined(nn.Module):
    """A rectifier's result is read three times, dropped out and added to what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first(x))
        y = self.second(functional.dropout(h, 0.5)) + h + self.second(h)
        return self.head(y.relu())


def test_a_rectifier_that_is_read_several_times_has_no_penalty() -> None:
    torch.manual_seed(0)
    model, paths = Joined(), LossPaths()
    y = model(X)
    paths.follow([y], rows_of(model))
    y.square().mean().backward()
    assert len(paths.pushes) == 2 and not paths.penalties
    for (push,) in paths.pushes.values():
        assert not push.around.any()


def test_what_is_watched_changes_no_gradient() -> None:
    gradients = []
    for watches in (False, True):
        torch.manual_seed(0)
        model, paths = Joined(), LossPaths()
        hidden = model.first(X).relu()
        y = model.head(hidden + model.second(hidden))
        if watches:
            paths.follow([y], rows_of(model))
        (y.square().mean() + hidden.sum() + model.head.weight.abs().sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

"""200 random networks with planted deaths: the dead units are those of a float64 brute force.

A network is a program, a list of steps; the brute force runs the same program in float64, one
sample at a time, and knows by construction where the units of each rectifier are. It uses no
hook, and no rule about axes.
"""

import copy
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import reludiag

NETWORKS = 200
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
RECTIFIERS = {
    "ReLU": lambda inplace: nn.ReLU(inplace),
    "ReLU6": lambda inplace: nn.ReLU6(inplace),
    "Hardtanh": lambda inplace: nn.Hardtanh(0.0, 4.0, inplace),
    "Threshold": lambda inplace: nn.Threshold(0.0, 0.0, inplace),
}
CEILING = {"ReLU6": 6.0, "Hardtanh": 4.0}


@dataclass(frozen=True)
class Step:
    """One step: `operation` on the module `name`; `axis` is where a rectifier's units are."""

    operation: str
    name: str = ""
    axis: int = -1


class Body(nn.Module):
    """Runs its program; bodies nest."""

    def __init__(self) -> None:
        super().__init__()
        self.program: list[Step] = []

    def put(self, operation: str, module: nn.Module | None = None, axis: int = -1) -> str:
        name = f"m{len(self._modules)}"
        if module is not None:
            self.add_module(name, module)
        self.program.append(Step(operation, name if module is not None else "", axis))
        return name

    def forward(self, x: Tensor) -> Tensor:
        saved = x
        for step in self.program:
            if step.operation in {"call", "rectify"}:
                x = getattr(self, step.name)(x)
            else:
                x, saved = rearranged(step.operation, x, saved)
        return x


def rearranged(operation: str, x: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
    if operation == "save":
        return x, x
    if operation == "add":
        return x + saved, saved
    if operation == "cat":
        return torch.cat([x, saved], dim=1), saved
    if operation == "swap":
        return x.transpose(1, 2), saved
    if operation == "channels_last":
        return x.permute(0, *range(2, x.ndim), 1), saved
    assert operation == "channels_first"
    return x.permute(0, x.ndim - 1, *range(1, x.ndim - 1)), saved


@dataclass
class Truth:
    """What the brute force counted: per site and unit, the samples in which it fired."""

    samples: int = 0
    fired: dict[str, Counter[int]] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    unclear: set[tuple[str, int]] = field(default_factory=set)
    """So near to zero that float32 may see it otherwise."""


def run_brute_force(body: Body, x: Tensor, truth: Truth, path: str, calls: Counter[str]) -> Tensor:
    """One sample `[1, ...]` in float64 through the program."""
    saved = x
    for step in body.program:
        module = getattr(body, step.name) if step.name else None
        if isinstance(module, Body):
            x = run_brute_force(module, x, truth, f"{path}{step.name}.", calls)
        elif step.operation == "rectify":
            name = path + step.name
            site = f"{name}#{calls[name]}" if calls[name] else name
            calls[name] += 1
            peaks = x.movedim(step.axis, 0).flatten(1).amax(1)
            truth.units[site] = len(peaks)
            fired = truth.fired.setdefault(site, Counter())
            for unit, peak in enumerate(peaks.tolist()):
                fired[unit] += peak > 0
                if peak != 0 and abs(peak) < 1e-5:
                    truth.unclear.add((site, unit))
            x = x.clamp(0, CEILING.get(type(module).__name__))
        elif step.operation == "call":
            x = module(x)
        else:
            x, saved = rearranged(step.operation, x, saved)
    return x


class Builder:
    """Draws one network, and the batches that fit it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.features: Counter[str] = Counter()
        self.shared: dict[int, str] = {}
        kind = self.random.choice(["rows", "tokens", 1, 2, 3, 1, 2])
        self.width = self.random.randint(3, 6)
        # Sizes that equal the width mislead whoever guesses an axis by its length.
        self.length = self.random.choice([self.width, 4])
        self.body = Body()
        for _ in range(self.random.randint(1, 4)):
            self.stage(self.body, kind, depth=0)
        dims = kind if isinstance(kind, int) else int(kind == "tokens")
        shape = (self.length,) * dims
        sizes = [self.random.choice([self.width, 6]), 9, self.random.choice([1, 2])]
        where = (self.width, *shape) if isinstance(kind, int) else (*shape, self.width)
        self.batches = [torch.randn(size, *where) for size in sizes]
        self.body.eval()

    def stage(self, body: Body, kind: str | int, depth: int) -> None:
        if depth < 2 and self.random.random() < 0.35:
            self.features["nested"] += 1
            inner = Body()
            for _ in range(self.random.randint(1, 2)):
                self.stage(inner, kind, depth + 1)
            body.put("call", inner)
        elif kind == "rows":
            self.linear(body)
            if self.random.random() < 0.4:
                self.norm(body, 0, self.width)
            self.rectify(body, axis=1)
        elif kind == "tokens":
            self.tokens(body)
        else:
            self.convolve(body, int(kind))

    def tokens(self, body: Body) -> None:
        self.features["tokens"] += 1
        self.linear(body)
        if self.random.random() < 0.4:
            self.features["swap"] += 1
            body.put("swap")
            self.norm(body, 1, self.width)
            self.rectify(body, axis=1)
            body.put("swap")
        else:
            self.rectify(body, axis=2)

    def convolve(self, body: Body, dims: int) -> None:
        choice = self.random.choice(["plain", "plain", "transposed", "residual", "cat", "linear"])
        self.features[choice] += 1
        self.features[f"conv{dims}"] += 1
        if choice == "linear":
            body.put("channels_last")
            self.linear(body)
            self.rectify(body, axis=dims + 1)
            body.put("channels_first")
            return
        if choice == "cat":
            body.put("save")
            self.conv(body, dims, self.width, self.width + 1)
            body.put("cat")
            self.norm(body, dims, 2 * self.width + 1)
            self.rectify(body, axis=1)
            self.conv(body, dims, 2 * self.width + 1, self.width)
            return
        if choice == "residual":
            body.put("save")
        if choice == "transposed":
            layer = TRANSPOSED[dims](self.width, self.width, 3, padding=1)
            body.put("call", self.planted(layer, self.width, transposed=True))
        else:
            self.conv(body, dims, self.width, self.width)
        if self.random.random() < 0.4:
            self.norm(body, dims, self.width)
        if choice == "residual":
            body.put("add")
        self.rectify(body, axis=1)

    def conv(self, body: Body, dims: int, inputs: int, outputs: int) -> None:
        body.put("call", self.planted(CONVS[dims](inputs, outputs, 3, padding=1), outputs))

    def linear(self, body: Body) -> None:
        body.put("call", self.planted(nn.Linear(self.width, self.width), self.width))

    def norm(self, body: Body, dims: int, width: int) -> None:
        """With statistics and parameters of its own, and deaths by each of its parameters."""
        self.features["norm"] += 1
        layer = NORMS[dims](width)
        with torch.no_grad():
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.weight.normal_()
            layer.bias.normal_()
            for unit in range(width):
                if self.random.random() < 0.15:
                    layer.bias[unit] = -100.0
                elif self.random.random() < 0.1:
                    layer.weight[unit] = 0.0
                    layer.bias[unit] = self.random.choice([0.0, -1.0])
        body.put("call", layer)

    def planted(self, layer: nn.Module, units: int, transposed: bool = False) -> nn.Module:
        """Deaths by bias and by zero weights; now and then the whole layer."""
        share = 1.0 if self.random.random() < 0.04 else 0.2
        self.features["collapse"] += share == 1.0
        with torch.no_grad():
            for unit in range(units):
                if self.random.random() >= share:
                    continue
                if self.random.random() < 0.5:
                    layer.bias[unit] = -100.0
                else:
                    (layer.weight[:, unit] if transposed else layer.weight[unit]).zero_()
                    layer.bias[unit] = -1.0
        return layer

    def rectify(self, body: Body, axis: int) -> None:
        known = self.shared.get(id(body))
        if known is not None and self.random.random() < 0.5:
            self.features["reused"] += 1
            body.program.append(Step("rectify", known, axis))
            return
        inplace = self.random.random() < 0.5
        # An inplace rectifier would write into what a residual step has saved.
        inplace &= not any(step.operation in {"save", "add"} for step in body.program)
        self.features["inplace"] += inplace
        kind = self.random.choice(list(RECTIFIERS))
        self.features[kind] += 1
        self.shared[id(body)] = body.put("rectify", RECTIFIERS[kind](inplace), axis)


def truth_of(builder: Builder) -> Truth:
    truth, double = Truth(), copy.deepcopy(builder.body).double()
    with torch.no_grad():
        for batch in builder.batches:
            for sample in batch.double().split(1):
                run_brute_force(double, sample, truth, "", Counter())
                truth.samples += 1
    return truth


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_the_dead_units_are_those_of_brute_force(seed: int) -> None:
    builder = Builder(seed)
    truth = truth_of(builder)
    for dtype in (torch.float32, torch.float64) if seed % 4 == 0 else (torch.float32,):
        model = copy.deepcopy(builder.body).to(dtype)
        units = reludiag.scan(model, [batch.to(dtype) for batch in builder.batches]).units
        assert units.groupby("site")["unit"].count().to_dict() == truth.units
        assert set(units["samples"]) == {truth.samples}
        fired = dict(
            zip(zip(units["site"], units["unit"], strict=True), units["fired"], strict=True)
        )
        dead = {(row.site, row.unit) for row in units.itertuples() if row.verdict == "dead"}
        expected = {(site, unit): n for site, c in truth.fired.items() for unit, n in c.items()}
        unclear = truth.unclear if dtype is torch.float32 else set()
        assert {u: n for u, n in fired.items() if u not in unclear} == {
            u: n for u, n in expected.items() if u not in unclear
        }
        assert dead - unclear == {u for u, n in expected.items() if n == 0} - unclear


def test_the_networks_cover_what_they_should() -> None:
    builders = [Builder(seed) for seed in range(NETWORKS)]
    features = Counter(name for b in builders for name, count in b.features.items() if count)
    wanted = "nested tokens swap plain transposed residual cat linear conv1 conv2 conv3 norm"
    wanted += " collapse reused inplace ReLU ReLU6 Hardtanh Threshold"
    assert all(features[name] >= 10 for name in wanted.split()), features
    truths = [truth_of(builder) for builder in builders[:30]]
    units = sum(sum(truth.units.values()) for truth in truths)
    dead = sum(count == 0 for t in truths for c in t.fired.values() for count in c.values())
    unclear = sum(len(truth.unclear) for truth in truths)
    assert 0.1 < dead / units < 0.6
    assert unclear < 0.01 * units

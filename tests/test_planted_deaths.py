"""Random networks with planted deaths: `scan` has to find what a float64 brute force finds.

Every network comes with the list of its rectifier calls, in call order, each with its site name
and unit axis. That list grows with the network, part by part; nothing is read off a tensor's
shape. The brute force replays the network from its raw weights, one sample at a time.
"""

import copy
import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import reludiag

NETWORKS = 200
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
RECTIFIERS: dict[str, Callable[[bool], nn.Module]] = {
    "ReLU": lambda inplace: nn.ReLU(inplace),
    "ReLU6": lambda inplace: nn.ReLU6(inplace),
    "Hardtanh": lambda inplace: nn.Hardtanh(0.0, 4.0, inplace),
    "Threshold": lambda inplace: nn.Threshold(0.0, 0.0, inplace),
}


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class Fork(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], dim=1)


class Reusing(nn.Module):
    """One rectifier for all steps, as in torchvision's residual blocks."""

    def __init__(self, steps: list[nn.Module], act: nn.Module) -> None:
        super().__init__()
        self.act, self.steps = act, nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = self.act(step(x))
        return x


class Repeat(nn.Module):
    def __init__(self, body: nn.Module, times: int) -> None:
        super().__init__()
        self.body, self.times = body, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.body(x)
        return x


class Call(NamedTuple):
    """One call of a rectifier: the path of its module, the axis and the number of its units."""

    path: str
    axis: int
    units: int


Part = tuple[nn.Module, list[Call]]


def under(name: str, calls: list[Call]) -> list[Call]:
    return [call._replace(path=f"{name}.{call.path}".rstrip(".")) for call in calls]


def chain(*parts: Part, names: str = "") -> Part:
    """A Sequential; its children are called "0", "1", ... or `names` with a number."""
    model, calls = nn.Sequential(), []
    for index, (module, inner) in enumerate(parts):
        model.add_module(f"{names}{index}", module)
        calls += under(f"{names}{index}", inner)
    return model, calls


class Draw:
    """Draws one network and its batches. `dims`: 0 for [B, F], "tokens" for [B, T, F], else maps.

    Every block starts with a layer, so no inplace rectifier writes into what a skip still needs.
    """

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        torch.manual_seed(self.rng.getrandbits(32))
        self.features: set[str] = set()
        dims = self.rng.choice([0, "tokens", "tokens", 1, 1, 2, 2, 3])
        width = self.rng.randint(2, 5)
        # Lengths and batch sizes that equal the width mislead whoever guesses an axis by length.
        length = self.rng.choice([width, width, 3])
        parts = [self.block(dims, width, width) for _ in range(self.rng.randint(1, 3))]
        if self.chance(0.6):
            parts.append(self.head(dims, width))
        self.model, calls = chain(*parts, names=self.rng.choice(["", "layer"]))
        seen: Counter[str] = Counter()
        self.calls: list[Call] = []
        for call in calls:
            suffix = f"#{seen[call.path]}" if seen[call.path] else ""
            seen[call.path] += 1
            self.calls.append(call._replace(path=call.path + suffix))
        full = self.rng.choice([width, width, 6])
        sizes = self.rng.choice([[full, full, full - 1], [1, full, 1], [full], [7, full, 2], [1]])
        where = [length, width] if dims == "tokens" else [width] + [length] * int(dims)
        self.batches = [torch.randn(size, *where) for size in sizes]
        self.features |= {"last batch smaller"} if sizes[-1] < sizes[0] else set()
        self.features |= {"batch of one"} if 1 in sizes else set()

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def layer(self, module: nn.Module) -> Part:
        """With random weights, some units dead by their bias alone; now and then all of them."""
        transposed = isinstance(module, tuple(TRANSPOSED.values()))
        rows = module.weight.transpose(0, 1) if transposed else module.weight
        share = 1.0 if self.chance(0.02) else 0.1
        with torch.no_grad():
            rows.normal_(0, (2 / rows[0].numel()) ** 0.5)
            module.bias.normal_(0.1, 0.3)
            for unit in range(len(rows)):
                if not self.chance(share):
                    continue
                if self.chance(0.5):
                    module.bias[unit] = -50.0
                    self.features.add("dead by bias")
                else:
                    rows[unit] = 0.0
                    module.bias[unit] = -0.5
                    self.features.add("dead by zero weights")
        self.features.add(type(module).__name__)
        return module, []

    def norm(self, dims: int, width: int) -> Part:
        module = NORMS[dims](width)
        with torch.no_grad():
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3)
            module.weight.normal_(0.7, 0.7)
            module.bias.normal_(0, 0.5)
            for unit in range(width):
                if self.chance(0.08):
                    module.bias[unit] = -300.0  # more than a layer's own -50 can outweigh
                    self.features.add("dead by norm bias")
                elif self.chance(0.08):
                    module.weight[unit] = 0.0
                    module.bias[unit] = self.rng.choice([0.0, -0.5])
                    self.features.add("dead by norm weight")
        self.features.add(f"{type(module).__name__} on {dims + 2}-D")
        return module, []

    def act(self, axis: int, units: int) -> Part:
        kind, inplace = self.rng.choice(list(RECTIFIERS)), self.chance(0.5)
        self.features |= {kind, "inplace" if inplace else "not inplace"}
        return RECTIFIERS[kind](inplace), [Call("", axis, units)]

    def before(self, dims: int | str, i: int, o: int) -> tuple[Part, int]:
        """What runs before a rectifier, and on which axis it leaves the units."""
        if dims == "tokens":
            self.features.add("Linear on 3-D")
            return self.layer(nn.Linear(i, o)), 2
        if dims == 0:
            self.features.add("Linear on 2-D")
            parts = [self.layer(nn.Linear(i, o))]
        elif o > 1 and self.chance(0.25):
            self.features.add("cat")
            half = CONVS[dims](i, 1, 3, padding=1), CONVS[dims](i, o - 1, 1)
            parts = [(Fork(self.layer(half[0])[0], self.layer(half[1])[0]), [])]
            return chain(*parts, self.norm(dims, o)), 1
        else:
            kind = self.rng.choice([CONVS, CONVS, TRANSPOSED])[dims]
            parts = [self.layer(kind(i, o, 3, padding=1))]
        return chain(*parts, *([self.norm(dims, o)] if self.chance(0.4) else [])), 1

    def block(self, dims: int | str, i: int, o: int, depth: int = 0) -> Part:
        choices = ["plain", "reusing", "special"]
        choices += ["nested", "residual", "repeat"] if depth < 2 else []
        choice = self.rng.choice(choices)
        if choice == "special" and dims == "tokens":
            return self.swapped(i, o)
        if choice == "special" and dims in (1, 2):
            return self.channels_last(int(dims), i, o)
        if choice == "reusing":
            return self.reusing(dims, i, o)
        if choice == "nested":
            self.features.add("nested")
            inner = chain(self.block(dims, i, i, depth + 1), self.block(dims, i, o, depth + 1))
            return chain(inner, self.block(dims, o, o, depth + 2))
        if choice == "residual":
            self.features.add("residual")
            last, axis = self.before(dims, o, i)
            body, calls = chain(self.block(dims, i, o, depth + 1), last)
            entire = chain((Residual(body), under("body", calls)), self.act(axis, i))
            return chain(entire, self.block(dims, i, o, 2))
        if choice == "repeat" and i == o:
            self.features.add("repeated block")
            body, calls = self.block(dims, i, i, depth + 1)
            times = self.rng.randint(2, 3)
            return Repeat(body, times), under("body", calls) * times
        part, axis = self.before(dims, i, o)
        return chain(part, self.act(axis, o))

    def swapped(self, i: int, o: int) -> Part:
        """[B, T, D], then BatchNorm1d over D as channels: the rectifier sees [B, D, T]."""
        self.features.add("transposed before norm")
        swap: Part = Permute(0, 2, 1), []
        return chain(self.layer(nn.Linear(i, o)), swap, self.norm(1, o), self.act(1, o), swap)

    def channels_last(self, dims: int, i: int, o: int) -> Part:
        self.features.add(f"channels last, {dims + 2}-D")
        last: Part = Permute(0, *range(2, dims + 2), 1), []
        first: Part = Permute(0, dims + 1, *range(1, dims + 1)), []
        wide = self.rng.choice([i, 2 * i])
        expand, project = self.layer(nn.Linear(i, wide)), self.layer(nn.Linear(wide, o))
        return chain(last, expand, self.act(dims + 1, wide), project, first)

    def reusing(self, dims: int | str, i: int, o: int) -> Part:
        """One rectifier, 2 to 4 times: at other widths too, and for tokens along other axes."""
        self.features.add("reused")
        widths = [i, *(self.rng.choice([i, i + 1, 2]) for _ in range(self.rng.randint(1, 3))), o]
        self.features |= {"reused at two widths"} if len(set(widths[1:])) > 1 else set()
        act, calls, steps = self.act(0, 0)[0], [], []
        back: list[Part] = []
        for index, (a, b) in enumerate(itertools.pairwise(widths)):
            part, axis = self.before(dims, a, b)
            if dims == "tokens" and index < len(widths) - 2 and self.chance(0.4):
                self.features.add("reused along two axes")
                swap: Part = Permute(0, 2, 1), []
                step, back, axis = chain(*back, part, swap, self.norm(1, b)), [swap], 1
            else:
                step, back = chain(*back, part), []
            steps.append(step[0])
            calls.append(Call("act", axis, b))
        return Reusing(steps, act), calls

    def head(self, dims: int | str, width: int) -> Part:
        pool: list[Part] = []
        if dims == "tokens":
            pool = [(Permute(0, 2, 1), []), (POOLS[1](1), []), (nn.Flatten(), [])]
        elif dims != 0:
            pool = [(POOLS[dims](1), []), (nn.Flatten(), [])]
            self.features.add("linear head after pooling")
            if self.chance(0.4):  # the same rectifier for maps and for the head
                self.features.add("reused for maps and rows")
                (maps, axis), (rows, _) = self.before(dims, width, 4), self.before(0, 4, 6)
                calls = [Call("act", axis, 4), Call("act", 1, 6)]
                return Reusing([maps[0], chain(*pool, rows)[0]], self.act(0, 0)[0]), calls
        parts = [self.block(0, width, 6), (nn.Dropout(0.5), []), self.layer(nn.Linear(6, 3))]
        return chain(*pool, *parts)


def replay(module: nn.Module, x: Tensor, rectify: Callable[[Tensor, float], Tensor]) -> Tensor:
    """The network in plain arithmetic, without a call of any module."""
    again = functools.partial(replay, rectify=rectify)
    match module:
        case nn.Sequential():
            return functools.reduce(lambda y, child: again(child, y), module, x)
        case Reusing():
            return functools.reduce(lambda y, s: again(module.act, again(s, y)), module.steps, x)
        case Repeat():
            return functools.reduce(lambda y, _: again(module.body, y), range(module.times), x)
        case Residual():
            return again(module.body, x) + x
        case Fork():
            return torch.cat([again(module.left, x), again(module.right, x)], dim=1)
        case Permute():
            return x.permute(module.order)
        case nn.AdaptiveAvgPool1d() | nn.AdaptiveAvgPool2d() | nn.AdaptiveAvgPool3d():
            return x.flatten(2).mean(2)
        case nn.Flatten() | nn.Dropout():  # no dropout in eval(); pooled maps are flat already
            return x
        case nn.Linear():
            return (x.unsqueeze(-2) * module.weight).sum(-1) + module.bias
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            operation: Any = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
            return operation(x, module.weight, module.bias, padding=module.padding)
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            # Stride 1: a convolution with the kernel mirrored and its two channel axes swapped.
            operation = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
            kernel = module.weight.transpose(0, 1).flip(tuple(range(2, x.ndim)))
            return operation(x, kernel, module.bias, padding=1)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            values = (module.running_mean, module.running_var, module.weight, module.bias)
            shape = (1, -1, *[1] * (x.ndim - 2))
            mean, var, weight, bias = (value.view(shape) for value in values)
            return (x - mean) / (var + module.eps).sqrt() * weight + bias
        case nn.ReLU() | nn.Threshold():
            return rectify(x, float("inf"))
        case nn.Hardtanh():  # ReLU6 is one
            return rectify(x, module.max_val)
    raise AssertionError(f"no arithmetic for {type(module)}")


@dataclass
class Truth:
    """Per site, for each unit: the samples it fired on, and float32's bounds for that number."""

    samples: int = 0
    fired: dict[str, Tensor] = field(default_factory=dict)
    least: dict[str, Tensor] = field(default_factory=dict)
    most: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)

    def dead(self) -> set[tuple[str, int]]:
        return {unit for unit, n in self.counts(self.fired).items() if n == 0}

    def counts(self, which: dict[str, Tensor]) -> dict[tuple[str, int], int]:
        return {(site, u): n for site, c in which.items() for u, n in enumerate(c.tolist())}


def carried(call: Call, x: Tensor) -> int:
    return call.axis


def guessed(call: Call, x: Tensor) -> int:
    """The wrong rule that is right for most networks."""
    return 1 if x.ndim > 2 else x.ndim - 1


def brute_force(network: Draw, axis_of: Callable[[Call, Tensor], int] = carried) -> Truth:
    truth, model = Truth(), copy.deepcopy(network.model).double().requires_grad_(False)
    for sample in torch.cat(network.batches).double().split(1):
        calls, largest = iter(network.calls), 1.0

        def rectify(x: Tensor, ceiling: float, calls: Iterator[Call] = calls) -> Tensor:
            nonlocal largest
            call = next(calls)
            assert axis_of is not carried or x.shape[call.axis] == call.units
            peaks = x.movedim(axis_of(call, x), 0).flatten(1).amax(1)
            largest = max(largest, float(x.abs().max()))
            # float32 carries the rounding of the largest values on the way here; exact zeros
            # come from zero weights and are zeros in float32 too.
            margin = torch.where(peaks == 0, 0.0, 1e-5 * largest)
            for counts, fires in (
                (truth.fired, peaks > 0),
                (truth.least, peaks > margin),
                (truth.most, peaks > -margin),
            ):
                counts[call.path] = counts.get(call.path, 0) + fires.long()
            truth.shapes[call.path] = x.shape
            return x.clamp(0, ceiling)

        replay(model, sample, rectify)
        assert next(calls, None) is None, "the network has fewer rectifier calls than planned"
        truth.samples += 1
    return truth


@functools.cache
def network_and_truth(seed: int) -> tuple[Draw, Truth]:
    """The first draw of this seed in which float32 cannot doubt that a unit is dead."""
    for attempt in itertools.count():
        network = Draw(f"{seed}.{attempt}")
        truth = brute_force(network)
        doubts = [((truth.least[s] == 0) != (truth.most[s] == 0)).any() for s in truth.fired]
        if not any(doubts):
            return network, truth
    raise AssertionError


def scanned(network: Draw, seed: int, dtype: torch.dtype) -> pd.DataFrame:
    """Scans a copy, in either mode: `scan` has to switch dropout and batch statistics off."""
    model = copy.deepcopy(network.model).to(dtype).train(seed % 2 == 0)
    batches: list[Any] = [batch.to(dtype) for batch in network.batches]
    if seed % 3 == 0:
        batches = [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in batches]
    # The brute force counts each call of a module that is called again by itself.
    return reludiag.scan(model, batches, merge_calls=False).units


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_a_scan_finds_the_dead_units_of_the_brute_force_and_no_others(seed: int) -> None:
    network, truth = network_and_truth(seed)
    units = scanned(network, seed, torch.float32)
    assert set(units["site"]) == set(truth.fired)
    found = {(row.site, row.unit): row for row in units.itertuples()}
    assert len(found) == len(units), "a unit has two rows"
    assert found.keys() == truth.counts(truth.fired).keys()
    assert {u for u, row in found.items() if row.verdict == "dead"} == truth.dead()
    assert set(units["samples"]) == {truth.samples}
    least, most = truth.counts(truth.least), truth.counts(truth.most)
    wrong = {u: row.fired for u, row in found.items() if not least[u] <= row.fired <= most[u]}
    assert wrong == {}


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_in_float64_every_count_is_that_of_the_brute_force(seed: int) -> None:
    network, truth = network_and_truth(seed)
    units = scanned(network, seed, torch.float64)
    keys = zip(units["site"], units["unit"], strict=True)
    assert dict(zip(keys, units["fired"], strict=True)) == truth.counts(truth.fired)


def state_of(model: nn.Module, batches: list[Tensor]) -> dict[str, Any]:
    """What a scan could leave behind; every tensor as bytes, so that -0.0 and 0.0 differ."""
    state: dict[str, Any] = {"rng": torch.get_rng_state().numpy().tobytes()}
    state["modes"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    state["batches"] = [batch.numpy().tobytes() for batch in batches]
    state["weights"] = {n: t.numpy().tobytes() for n, t in model.state_dict().items()}
    state["parameters"] = [(id(p), p.requires_grad, p.grad) for p in model.parameters()]
    for name, module in model.named_modules():
        hooks = {k: list(v.items()) for k, v in vars(module).items() if k.endswith("_hooks")}
        state[name] = type(module), module.training, sorted(vars(module)), hooks
    everywhere = vars(nn.modules.module)
    state["global hooks"] = {
        key: list(value.items())
        for key, value in everywhere.items()
        if key.startswith("_global") and key.endswith("_hooks")
    }
    return state


@pytest.mark.parametrize("seed", range(0, NETWORKS, 6))
def test_a_scan_leaves_everything_as_it_was_bit_by_bit(seed: int) -> None:
    network, _ = network_and_truth(seed)
    model, rng = copy.deepcopy(network.model), random.Random(seed)
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("hook"))  # the user's own stays
    with torch.no_grad():
        output = model.eval()(network.batches[0].clone())
    for module in model.modules():
        module.training = rng.random() < 0.5  # a model may be partly in eval(), frozen norms say
    for parameter in model.parameters():
        parameter.requires_grad = rng.random() < 0.5
    before = state_of(model, network.batches)
    reludiag.scan(model, network.batches)
    assert state_of(model, network.batches) == before
    with torch.no_grad():
        again = model.eval()(network.batches[0].clone())
    assert again.numpy().tobytes() == output.numpy().tobytes()


def traits(network: Draw, truth: Truth) -> set[str]:
    """What only the finished network shows: equal sizes, and layers dead as a whole."""
    found = set(network.features)
    for call in network.calls:
        shape = truth.shapes[call.path]
        if len(shape) > 2 and call.axis == 1 and set(shape[1:]) == {call.units}:
            found.add("spatial size is the number of channels")
        if len(shape) == 3 and call.axis == 2 and shape[1] == call.units:
            found.add("sequence length is the number of features")
        if call.units in map(len, network.batches):
            found.add("batch size is the number of units")
    alive = [bool(fired.any()) for fired in truth.fired.values()]
    if any(not before and after for before, after in itertools.pairwise(alive)):
        found.add("alive after a collapse, by biases")
    if any(call.path.count(".") >= 4 for call in network.calls):
        found.add("deeply nested")
    return found


def test_the_networks_cover_what_is_planted_in_them() -> None:
    drawn = [network_and_truth(seed) for seed in range(NETWORKS)]
    count = Counter(itertools.chain.from_iterable(traits(*pair) for pair in drawn))
    layers = [kind.__name__ for kind in (*CONVS.values(), *TRANSPOSED.values())]
    norms = ["1d on 2-D", "1d on 3-D", "2d on 4-D", "3d on 5-D"]
    wanted = {*RECTIFIERS, *layers, *(f"BatchNorm{norm}" for norm in norms)}
    wanted |= {"Linear on 2-D", "Linear on 3-D", "channels last, 3-D", "channels last, 4-D"}
    wanted |= {"inplace", "not inplace", "reused", "reused at two widths", "reused along two axes"}
    wanted |= {"reused for maps and rows", "repeated block", "nested", "deeply nested", "residual"}
    wanted |= {"cat", "transposed before norm", "linear head after pooling"}
    wanted |= {"last batch smaller", "batch of one", "batch size is the number of units"}
    wanted |= {"spatial size is the number of channels"}
    wanted |= {"sequence length is the number of features", "alive after a collapse, by biases"}
    wanted |= {f"dead by {cause}" for cause in ("bias", "zero weights", "norm bias", "norm weight")}
    assert {name: count[name] for name in sorted(wanted) if count[name] < 10} == {}
    units = sum(call.units for network, _ in drawn for call in network.calls)
    assert 0.1 < sum(len(truth.dead()) for _, truth in drawn) / units < 0.4
    unclear = sum(int((t.least[s] != t.most[s]).sum()) for _, t in drawn for s in t.fired)
    assert unclear < 0.005 * units, "float32 would be compared too loosely"


def test_a_rule_that_guesses_the_unit_axis_is_caught() -> None:
    drawn = [network_and_truth(seed) for seed in range(NETWORKS)]
    caught = sum(brute_force(network, guessed).dead() != truth.dead() for network, truth in drawn)
    assert caught >= 20

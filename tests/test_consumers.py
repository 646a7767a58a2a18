"""Consumers: what reads a unit, and that nothing else does where that is what is said."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reludiag
from reludiag.capture.capture import Capture
from reludiag.measure.frozen_pass import Scanner
from reludiag.measure.site_list import list_sites
from reludiag.recording import read_recording
from reludiag.sites.consumers import KNOWN, Consumer, IndexRange
from reludiag.sites.site import Site
from tests import architectures
from tests.random_networks import RandomNetwork


def sites_of(model: nn.Module, *inputs: Any) -> dict[str, Site]:
    return {site.name: site for site in list_sites(model, [inputs]).sites}


def reads(
    parameter: str, *runs: tuple[int, int, int, int], operator: str = "addmm", **fields: Any
) -> Consumer:
    """A weight that sums over the units along its axis 1."""
    found = {"axis": 1, "runs": tuple(IndexRange(*run) for run in runs), **fields}
    return Consumer("reads", operator, parameter, **found)


def carries(
    parameter: str, *runs: tuple[int, int, int, int], operator: str, axis: int = 0, **fields: Any
) -> Consumer:
    return Consumer(
        "carries", operator, parameter, axis, tuple(IndexRange(*run) for run in runs), **fields
    )


def batch_norm(module: str, units: int, start: int = 0, **fields: Any) -> list[Consumer]:
    return [
        carries(f"{module}.{name}", (start, 0, units, 1), operator="batch_norm", **fields)
        for name in ("weight", "bias", "running_mean", "running_var")
    ]


class Network(nn.Module):
    """`a`, then `relu`, then whatever `rest` does with the units and the other parts."""

    def __init__(self, rest: Callable[..., Any], a: nn.Module, **parts: Any) -> None:
        super().__init__()
        self.a, self.relu, self.rest = a, nn.ReLU(), rest
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Any:
        return self.rest(self, self.relu(self.a(x)))


def linear(rest: Callable[..., Any], **parts: Any) -> tuple[nn.Module, Tensor]:
    """Six units that are features, of a batch of five."""
    return Network(rest, nn.Linear(4, 6), **parts), torch.randn(5, 4)


def sequence(rest: Callable[..., Any], **parts: Any) -> tuple[nn.Module, Tensor]:
    """Six units that are features, at three positions."""
    return Network(rest, nn.Linear(4, 6), **parts), torch.randn(5, 3, 4)


def image(rest: Callable[..., Any], **parts: Any) -> tuple[nn.Module, Tensor]:
    """Four units that are channels, of 4 x 4."""
    return Network(rest, nn.Conv2d(3, 4, 3, padding=1), **parts), torch.randn(2, 3, 4, 4)


def _residual(m: Any, y: Tensor) -> Any:
    y = m.relu(y + m.norm(m.b(y)))
    return m.c(y)


def _dense(m: Any, y: Tensor) -> Any:
    new = m.relu(m.b(y))
    return m.c(m.norm(torch.cat([y, new], 1)))


def _shuffle(m: Any, y: Tensor) -> Any:
    return m.b(y.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2))


def _pooled(m: Any, y: Tensor) -> Any:
    return m.b(F.max_pool2d(m.norm(y), 2).flatten(1))


def _in_place(m: Any, y: Tensor) -> Any:
    buffer = y.new_zeros(len(y), 8)
    buffer[:, 1:7] = y
    return m.b(buffer)


def _through_a_view(m: Any, y: Tensor) -> Any:
    y = m.b(y)
    m.in_place(y[:, :3])
    return m.c(y)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y * 2


Case = tuple[Callable[[], tuple[nn.Module, Tensor]], dict[str, list[Consumer]]]

PLAIN, FLAT = (0, 0, 6, 1), (0, 0, 4, 1)
CASES: dict[str, Case] = {
    "mlp": (
        lambda: linear(lambda m, y: m.b(y), b=nn.Linear(6, 3)),
        {"relu": [reads("b.weight", PLAIN)]},
    ),
    "conv, norm, pool, flatten, linear": (
        lambda: image(_pooled, norm=nn.BatchNorm2d(4), b=nn.Linear(16, 3)),
        {
            "relu": [
                *batch_norm("norm", 4),
                reads("b.weight", (0, 0, 4, 4), through=("batch_norm", "max_pool2d")),
            ]
        },
    ),
    "flattened with channels last": (
        lambda: image(lambda m, y: m.b(y.permute(0, 2, 3, 1).flatten(1)), b=nn.Linear(64, 3)),
        {"relu": [reads("b.weight", *((4 * position, 0, 4, 1) for position in range(16)))]},
    ),
    "residual": (
        lambda: image(
            _residual,
            b=nn.Conv2d(4, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            c=nn.Conv2d(4, 2, 1),
        ),
        {
            "relu": [
                reads("b.weight", FLAT, operator="convolution"),
                Consumer("tied", "add", other="b"),
                reads("c.weight", FLAT, operator="convolution", through=("add", "relu")),
            ],
            "relu#1": [reads("c.weight", FLAT, operator="convolution")],
        },
    ),
    "dense, one rectifier called twice": (
        lambda: image(
            _dense,
            b=nn.Conv2d(4, 3, 3, padding=1),
            norm=nn.BatchNorm2d(7),
            c=nn.Conv2d(7, 2, 1),
        ),
        {
            "relu": [
                reads("b.weight", FLAT, operator="convolution"),
                *batch_norm("norm", 4, through=("cat",)),
                reads("c.weight", FLAT, operator="convolution", through=("cat", "batch_norm")),
            ],
            "relu#1": [
                *batch_norm("norm", 3, start=4, through=("cat",)),
                reads(
                    "c.weight", (4, 0, 3, 1), operator="convolution", through=("cat", "batch_norm")
                ),
            ],
        },
    ),
    "depthwise, then pointwise": (
        lambda: image(
            lambda m, y: m.c(m.b(y)), b=nn.Conv2d(4, 8, 3, groups=4), c=nn.Conv2d(8, 2, 1)
        ),
        {
            "relu": [
                carries("b.weight", (0, 0, 4, 2), operator="convolution"),
                carries("b.bias", (0, 0, 4, 2), operator="convolution"),
                reads("c.weight", (0, 0, 4, 2), operator="convolution", through=("convolution",)),
            ]
        },
    ),
    "grouped": (
        lambda: image(lambda m, y: m.b(y), b=nn.Conv2d(4, 6, 3, groups=2)),
        {"relu": [reads("b.weight", FLAT, operator="convolution", groups=2)]},
    ),
    "transposed": (
        lambda: image(lambda m, y: m.b(y), b=nn.ConvTranspose2d(4, 6, 3, groups=2)),
        {"relu": [reads("b.weight", FLAT, operator="convolution", axis=0, groups=2)]},
    ),
    "shuffled": (
        lambda: image(_shuffle, b=nn.Conv2d(4, 2, 1)),
        {
            "relu": [
                reads(
                    "b.weight",
                    *((0, 0, 1, 1), (1, 2, 1, 1), (2, 1, 1, 1), (3, 3, 1, 1)),
                    operator="convolution",
                )
            ]
        },
    ),
    "one consumer called on two sites": (
        lambda: linear(
            lambda m, y: m.b(y) + m.b(m.relu(m.c(y))), b=nn.Linear(6, 3), c=nn.Linear(6, 6)
        ),
        {
            "relu": [reads("c.weight", PLAIN), reads("b.weight", PLAIN)],
            "relu#1": [reads("b.weight", PLAIN)],
        },
    ),
    "tied weights": (
        lambda: linear(
            lambda m, y: F.linear(m.relu(F.linear(m.b(y), m.b.weight)), m.b.weight),
            b=nn.Linear(6, 6),
        ),
        {"relu": [reads("b.weight", PLAIN)], "relu#1": [reads("b.weight", PLAIN, operator="mm")]},
    ),
    "a slice of a weight": (
        lambda: linear(
            lambda m, y: F.linear(y[:, 1:4], m.weight[2:6, 1:-1]), weight=torch.randn(8, 5)
        ),
        {"relu": [reads("weight", (1, 1, 3, 1), operator="mm", part=((0, 2, 6),))]},
    ),
    "a product with a parameter": (
        lambda: linear(lambda m, y: y @ m.weight, weight=torch.randn(6, 3)),
        {"relu": [reads("weight", PLAIN, operator="mm", axis=0)]},
    ),
    "einsum": (
        lambda: image(
            lambda m, y: torch.einsum("bchw,oc->bohw", y, m.weight), weight=torch.randn(3, 4)
        ),
        {"relu": [reads("weight", FLAT, operator="bmm")]},
    ),
    "a scale, a shift, an activation of its own": (
        lambda: linear(
            lambda m, y: m.b(m.prelu(y * m.gamma + m.beta)),
            gamma=torch.randn(6),
            beta=torch.randn(1, 6),
            prelu=nn.PReLU(6),
            b=nn.Linear(6, 3),
        ),
        {
            "relu": [
                carries("gamma", PLAIN, operator="mul"),
                carries("beta", PLAIN, operator="add", axis=1, through=("mul",)),
                carries("prelu.weight", PLAIN, operator="prelu", through=("mul", "add")),
                reads("b.weight", PLAIN, through=("mul", "add", "prelu")),
            ],
            "prelu": [reads("b.weight", PLAIN)],
        },
    ),
    "a gate of its own kind": (
        lambda: linear(lambda m, y: m.b(y * y.sigmoid()), b=nn.Linear(6, 3)),
        {"relu": [reads("b.weight", PLAIN, through=("sigmoid", "mul"))]},
    ),
    "squeeze and excite": (
        lambda: image(
            lambda m, y: m.c(y * m.b(y.mean((2, 3), keepdim=True)).sigmoid()),
            b=nn.Conv2d(4, 4, 1),
            c=nn.Conv2d(4, 2, 1),
        ),
        {
            "relu": [
                reads("b.weight", FLAT, operator="convolution", through=("mean",)),
                Consumer("tied", "mul", other="b"),
                reads("c.weight", FLAT, operator="convolution", through=("mul",)),
            ]
        },
    ),
    "a learned token at another position": (
        lambda: sequence(
            lambda m, y: m.b(torch.cat([m.token.expand(len(y), -1, -1), y], 1)),
            token=torch.randn(1, 1, 6),
            b=nn.Linear(6, 3),
        ),
        {
            "relu": [
                carries("token", PLAIN, operator="cat", axis=2),
                reads("b.weight", PLAIN, through=("cat",)),
            ]
        },
    ),
    "a mean over positions": (
        lambda: sequence(lambda m, y: m.b(y.mean(1)), b=nn.Linear(6, 3)),
        {"relu": [reads("b.weight", PLAIN, through=("mean",))]},
    ),
    "a mean over units": (
        lambda: sequence(lambda m, y: m.b(y.mean(2)), b=nn.Linear(3, 3)),
        {"relu": [Consumer("mixes", "mean")]},
    ),
    "a softmax over units": (
        lambda: linear(lambda m, y: m.b(y.softmax(1)), b=nn.Linear(6, 3)),
        {"relu": [Consumer("mixes", "softmax")]},
    ),
    "a softmax over positions": (
        lambda: sequence(lambda m, y: m.b(y.softmax(1)), b=nn.Linear(6, 3)),
        {"relu": [reads("b.weight", PLAIN, through=("softmax",))]},
    ),
    "a layer norm": (
        lambda: linear(lambda m, y: m.b(m.norm(y)), norm=nn.LayerNorm(6), b=nn.Linear(6, 3)),
        {"relu": [Consumer("mixes", "layer_norm", "norm.weight")]},
    ),
    "a group norm, each channel a group": (
        lambda: image(lambda m, y: m.b(m.norm(y)), norm=nn.GroupNorm(4, 4), b=nn.Conv2d(4, 2, 1)),
        {
            "relu": [
                carries("norm.weight", FLAT, operator="group_norm"),
                carries("norm.bias", FLAT, operator="group_norm"),
                reads("b.weight", FLAT, operator="convolution", through=("group_norm",)),
            ]
        },
    ),
    "units against units": (
        lambda: linear(lambda m, y: y @ y.t()),
        {"relu": [Consumer("mixes", "mm")]},
    ),
    "the output": (
        lambda: linear(lambda m, y: {"features": y, "logits": m.b(y)}, b=nn.Linear(6, 3)),
        {"relu": [reads("b.weight", PLAIN), Consumer("output", "output")]},
    ),
    "dropped": (lambda: linear(lambda m, y: y.new_zeros(5, 2)), {"relu": []}),
    "a number": (
        lambda: linear(lambda m, y: m.b(y) * y.sum().item(), b=nn.Linear(6, 3)),
        {"relu": [reads("b.weight", PLAIN), Consumer("mixes", "sum")]},
    ),
    "an array": (
        lambda: linear(lambda m, y: torch.from_numpy(y.detach().numpy() * 2)),
        {"relu": [Consumer("unknown", "numpy")]},
    ),
    "an attribute": (
        lambda: linear(lambda m, y: (setattr(m, "kept", [y]), m.b(y))[1], b=nn.Linear(6, 3)),
        {"relu": [reads("b.weight", PLAIN), Consumer("state", "kept")]},
    ),
    "an operator without a rule": (
        lambda: linear(lambda m, y: torch.linalg.qr(y)[1]),
        {"relu": [Consumer("unknown", "linalg_qr")]},
    ),
    "written into a part of another": (
        lambda: linear(_in_place, b=nn.Linear(8, 3)),
        {"relu": [Consumer("unknown", "addmm")]},
    ),
    "summed with another order of itself": (
        lambda: linear(lambda m, y: m.b(y + y.flip(1)), b=nn.Linear(6, 3)),
        {"relu": [Consumer("mixes", "add")]},
    ),
    "rectified in place through a view": (
        lambda: linear(
            _through_a_view, b=nn.Linear(6, 6), in_place=nn.ReLU(inplace=True), c=nn.Linear(6, 3)
        ),
        {"relu": [reads("b.weight", PLAIN)], "in_place": [Consumer("unknown", "addmm")]},
    ),
    "dropped out, in training": (
        lambda: image(lambda m, y: m.b(F.dropout2d(F.dropout(y))), b=nn.Conv2d(4, 2, 1)),
        {"relu": [reads("b.weight", FLAT, operator="convolution", through=("mul",))]},
    ),
    "a part in TorchScript": (
        lambda: linear(
            lambda m, y: m.b(y),
            b=torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))),
        ),
        {"relu": [reads("b.0.weight", PLAIN)]},
    ),
    "a function with a backward of its own": (
        lambda: linear(lambda m, y: m.b(Doubled.apply(y)), b=nn.Linear(6, 3)),
        {"relu": [reads("b.weight", PLAIN, through=("mul",))]},
    ),
    "a weight computed from others": (
        lambda: linear(
            lambda m, y: m.b(y), b=nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
        ),
        {"relu": [Consumer("unknown", "addmm", "b.parametrizations.weight.original1")]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_reads_the_units(case: str) -> None:
    build, expected = CASES[case]
    torch.manual_seed(0)
    model, inputs = build()
    sites = sites_of(model, inputs)
    assert {name: {*(site.consumers or ())} for name, site in sites.items()} == {
        name: {*consumers} for name, consumers in expected.items()
    }


def test_each_entry_that_is_said_to_be_read_is_read() -> None:
    """With all others at 0, the output still depends on the unit through each reader."""
    for case, (build, expected) in CASES.items():
        if not all(consumer.kind in KNOWN for found in expected.values() for consumer in found):
            continue
        torch.manual_seed(0)
        model, inputs = build()
        model.eval()
        modules = dict(model.named_modules())
        for name, site in sites_of(model, inputs).items():
            consumers = site.consumers or ()
            for consumer in consumers:
                if consumer.kind != "reads":
                    continue
                others = [other for other in consumers if other.parameter != consumer.parameter]
                unit = consumer.runs[0].unit
                with entries_at_zero(model, others, unit):
                    outputs = []
                    for change in (lambda y: y + 100, lambda y: 300 - y):
                        number = int(name.partition("#")[2] or 0)
                        with unit_changed(modules[site.module], number, site, unit, change):
                            outputs.append(called(model, (inputs,)))
                assert not equal(*outputs), (case, name, consumer)


@pytest.mark.parametrize("case", CASES)
def test_nothing_else_reads_the_units_of(case: str) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[case][0]()
    assert check_all_that_reads(model.double().eval(), (inputs.double(),))["sites"]


def test_a_forward_that_was_not_followed_to_its_end_tells_nothing() -> None:
    model, inputs = linear(lambda m, y: m.b(y), b=nn.Linear(6, 3))
    assert [site.consumers for site in list_sites(model).sites] == [None]

    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError

    refusing = nn.Sequential(model, Refusing())
    capture = Capture(refusing, lambda call: None, finds_consumers=True)
    capture.attach()
    with pytest.raises(ValueError):
        capture.run(refusing, (inputs,), {})
    capture.detach()
    assert [site.consumers for site in capture.sites] == [None]


def _in_a_thread(m: Any, y: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(m.b, y).result()


def test_a_forward_that_goes_on_in_another_thread_tells_nothing() -> None:
    model, inputs = linear(_in_a_thread, b=nn.Linear(6, 3))
    assert sites_of(model, inputs)["relu"].consumers is None


def _either(m: Any, y: Tensor) -> Tensor:
    return m.b(y) if len(y) == 5 else m.c(y.flip(1))


def test_consumers_are_those_of_all_forwards_that_were_followed() -> None:
    """Of one sample, any axis of length 1 may be the samples': the next batch is followed again."""
    model, _ = linear(_either, b=nn.Linear(6, 3), c=nn.Linear(6, 3))
    first, second = torch.randn(1, 4), torch.randn(5, 4)
    scanner = Scanner(model, finds_consumers=True)
    (found,) = scanner.run([first, second]).sites
    assert {consumer.parameter for consumer in found.site.consumers or ()} == {
        "b.weight",
        "c.weight",
    }


def test_a_function_has_consumers_as_a_module_has() -> None:
    model, inputs = linear(lambda m, y: m.c(F.relu(m.b(y))), b=nn.Linear(6, 5), c=nn.Linear(5, 3))
    site = sites_of(model, inputs)["b:relu"]
    assert site.consumers == (reads("c.weight", (0, 0, 5, 1)),)


def test_an_overruled_axis_is_the_one_that_is_followed() -> None:
    model, inputs = image(lambda m, y: m.b(y), b=nn.Linear(4, 3))
    (site,) = list_sites(model, [(inputs,)], unit_axes={"relu": 3}).sites
    assert site.consumers == (reads("b.weight", FLAT),)


def test_consumers_say_which_entries_are_a_units() -> None:
    weight = nn.Conv2d(4, 6, 3, groups=2).weight
    grouped = reads("b.weight", FLAT, groups=2)
    weight.data.zero_()
    for entry in grouped.entries(3, weight.shape):
        weight.data[entry] = 1
    assert weight[3:, 1].min() == 1
    assert weight.sum() == weight[3:, 1].sum()
    assert reads("b.weight", (2, 0, 3, 4)).indices(1) == [6, 7, 8, 9]


def recorded(path: Path, model: nn.Module, inputs: Tensor) -> dict[str, Site]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with reludiag.Monitor(model, optimizer, path=path):
        model(inputs).sum().backward()
        optimizer.step()
    return {found.site.name: found.site for found in read_recording(path).sites}


def test_a_recording_keeps_them(tmp_path: Path) -> None:
    build, expected = CASES["dense, one rectifier called twice"]
    model, inputs = build()
    sites = recorded(tmp_path / "run.reludiag", model, inputs)
    assert {name: {*(site.consumers or ())} for name, site in sites.items()} == {
        name: {*consumers} for name, consumers in expected.items()
    }


def test_in_a_recording_of_an_older_version_they_are_not_known(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    build, _ = CASES["mlp"]
    model, inputs = build()
    recorded(path, model, inputs)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE site DROP COLUMN consumers")
        db.execute("PRAGMA user_version = 3")
        db.commit()
    (found,) = read_recording(path).sites
    assert found.site.consumers is None
    assert found.site.units == 6
    assert reludiag.load(path).sites.units.sum() == 6


# What the claims are held against: it knows of reludiag no more than them.


def unit_numbers(site: Site, output: Tensor) -> Tensor:
    """The unit of each element, by the label of the axes: `1`, `1//49`, `1,3`."""
    label = str(output.ndim - 1) if site.unit_axis == "unknown" else site.unit_axis
    pieces = [tuple(map(int, f"{piece}//1".split("//")[:2])) for piece in label.split(",")]
    numbers = torch.zeros((1,) * output.ndim, dtype=torch.int64)
    for axis, inner in pieces:
        outer = [i for a, i in pieces if a == axis and i > inner]
        size = min(outer, default=output.shape[axis]) // inner
        size = site.units or 1 if len(pieces) == 1 else size
        index = torch.arange(output.shape[axis]) // inner % size
        numbers = numbers * size + index.view([-1 if a == axis else 1 for a in range(output.ndim)])
    return numbers


@contextlib.contextmanager
def unit_changed(
    module: nn.Module, number: int, site: Site, unit: int, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Change one unit of what the module returns in the call of this number."""
    calls = 0

    def hook(_: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls - 1 == number:
            at_unit = unit_numbers(site, output) == unit
            output.copy_(torch.where(at_unit, change(output), output))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def entries_at_zero(model: nn.Module, consumers: Any, unit: int) -> Iterator[None]:
    """Set what these consumers have for a unit to 0."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    saved = {path: tensor.detach().clone() for path, tensor in tensors.items()}
    try:
        for consumer in consumers:
            if consumer.kind == "reads":
                weight = tensors[consumer.parameter].data
                for entry in consumer.entries(unit, weight.shape):
                    weight[entry] = 0
        yield
    finally:
        for path, tensor in tensors.items():
            tensor.data.copy_(saved[path])


def called(model: nn.Module, batch: Any) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        values = model(**batch) if isinstance(batch, dict) else model(*batch)
    return list(tensors_of(values))


def tensors_of(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_of(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_of(value)


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def check_all_that_reads(
    model: nn.Module, batch: Any, units: int = 3, most: int | None = None
) -> Counter[str]:
    """Where all readers of a site are known, a unit has no effect once their entries are 0.

    Of the sites that are modules, and at `most` so many.
    """
    sites = [s for s in list_sites(model, [batch]).sites if s.consumers is not None and s.units]
    counts = Counter(sites=len(sites))
    known = [site for site in sites if all(c.kind in KNOWN for c in site.consumers or ())]
    counts["known"] = len(known)
    known = [site for site in known if not site.operator and "@" not in site.name]
    modules = dict(model.named_modules())
    for site in known[:: max(1, len(known) // most)] if most else known:
        number = int(site.name.partition("#")[2] or 0)
        assert site.units is not None
        for unit in range(0, site.units, max(1, site.units // units)):
            counts["checked"] += 1
            for consumer in site.consumers or ():
                others = [consumer.indices(other) for other in range(site.units) if other != unit]
                assert not {*consumer.indices(unit)} & {i for found in others for i in found}
            with entries_at_zero(model, site.consumers, unit):
                outputs = []
                for change in (lambda y: y + 1.7, lambda y: 3 - y):
                    with unit_changed(modules[site.module], number, site, unit, change):
                        outputs.append(called(model, batch))
            assert equal(*outputs), (site.name, unit, site.consumers)
    return counts


@given(st.randoms(use_true_random=False), st.integers(4, 14), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_else_reads_a_unit_where_all_readers_are_known(
    draw: Any, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = RandomNetwork(draw, steps)
    counts = check_all_that_reads(model, (model.example,))
    event("all readers known" if counts["known"] else "not all readers known")


@pytest.mark.architectures
@pytest.mark.parametrize("name", architectures.BUILDERS)
def test_nothing_else_reads_the_units_of_real_architectures(name: str) -> None:
    architectures.declare_missing_operators()
    for package in ("torchvision", "timm", "transformers"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    model, batch = architectures.build(name)
    check_all_that_reads(model.eval(), batch, units=1, most=3)

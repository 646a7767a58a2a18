"""Consumers: what reads a unit, and that nothing else does where that is what is said."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reludiag.scanning import list_sites
from reludiag.sites.consumers import KNOWN, Consumer, Run
from reludiag.sites.site import Site
from tests.random_networks import RandomNetwork


def sites_of(model: nn.Module, *inputs: Any) -> dict[str, Site]:
    return {site.name: site for site in list_sites(model, [inputs]).sites}


def reads(
    parameter: str, *runs: tuple[int, int, int, int], operator: str = "addmm", **fields: Any
) -> Consumer:
    """A weight that sums over the units along its axis 1."""
    found = {"axis": 1, "runs": tuple(Run(*run) for run in runs), **fields}
    return Consumer("reads", operator, parameter, **found)


def carries(
    parameter: str, *runs: tuple[int, int, int, int], operator: str, axis: int = 0, **fields: Any
) -> Consumer:
    return Consumer(
        "carries", operator, parameter, axis, tuple(Run(*run) for run in runs), **fields
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
    buffer = torch.zeros(len(y), 8)
    buffer[:, 1:7] = y
    return m.b(buffer)


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


# What the claims are held against: it knows of reludiag no more than them.


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
            axis, _, inner = site.unit_axis.partition("//")
            at = output.ndim - 1 if axis == "unknown" else int(axis)
            index = torch.arange(output.shape[at]) // int(inner or 1) % (site.units or 1) == unit
            shape = [-1 if a == at else 1 for a in range(output.ndim)]
            output.copy_(torch.where(index.view(shape), change(output), output))

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


def output_of(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        output = model(*(value.clone() for value in inputs))
    return list(output) if isinstance(output, tuple | list) else [output]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def check_all_that_reads(model: nn.Module, *inputs: Any, units: int = 3) -> Counter[str]:
    """Where all readers of a site are known, a unit has no effect once their entries are 0."""
    modules = dict(model.named_modules())
    counts: Counter[str] = Counter()
    for site in list_sites(model, [inputs]).sites:
        if site.consumers is None or site.operator or site.units is None:
            continue
        counts["sites"] += 1
        known = all(consumer.kind in KNOWN for consumer in site.consumers)
        counts["known"] += known
        name, _, number = site.name.partition("#")
        for unit in range(0, site.units, max(1, site.units // units)):
            for consumer in site.consumers:
                others = [consumer.indices(other) for other in range(site.units) if other != unit]
                assert not {*consumer.indices(unit)} & {i for found in others for i in found}
            if not known:
                continue
            module, call = modules[site.module], int(number or 0)
            with entries_at_zero(model, site.consumers, unit):
                outputs = []
                for change in (lambda y: y + 1.7, lambda y: 3 - y):
                    with unit_changed(module, call, site, unit, change):
                        outputs.append(output_of(model, inputs))
                assert equal(*outputs), (name, unit, site.consumers)
    return counts


@given(st.randoms(use_true_random=False), st.integers(4, 14), st.integers(0, 2**20))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_else_reads_a_unit_where_all_readers_are_known(
    draw: Any, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = RandomNetwork(draw, steps)
    counts = check_all_that_reads(model, model.example)
    event("all readers known" if counts["known"] else "not all readers known")

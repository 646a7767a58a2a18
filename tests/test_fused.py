"""What PyTorch runs fused in eval mode runs so in a scan as well, and its rectifier is seen."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import reludiag

WIDTH, HIDDEN = 16, 32
BATCHES = [torch.randn(6, 9, WIDTH, generator=torch.Generator().manual_seed(i)) for i in range(4)]


class Kept(nn.Module):
    """A network that keeps its outputs, so that those of a scan can be looked at."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.outputs = network, []

    def forward(self, x: Tensor) -> Tensor:
        x = self.network(x)
        self.outputs.append(x)
        return x


class Masked(nn.Module):
    """An encoder whose samples are of several lengths, or that looks back only."""

    def __init__(self, encoder: nn.Module, padded: bool, causal: bool) -> None:
        super().__init__()
        self.encoder, self.padded, self.causal = encoder, padded, causal

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[1, 5:] = True
        mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=x.dtype)
        return self.encoder(
            x,
            mask=mask if self.causal else None,
            src_key_padding_mask=padding if self.padded else None,
        )


class Attending(nn.Module):
    """Attention, and a rectifier that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.fc = nn.Linear(WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.fc(self.attention(x, x, x, need_weights=False)[0]))


def layer(heads: int = 4, kind: type = nn.TransformerEncoderLayer, **options: Any) -> nn.Module:
    return kind(WIDTH, heads, HIDDEN, 0.0, batch_first=True, **options)


def encoder(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoder(layer(**options), 2, enable_nested_tensor=False)


def without_grad(network: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [network.eval()(batch) for batch in batches]


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_an_encoder_is_scanned_as_it_runs_to_the_last_bit(
    dtype: torch.dtype, norm_first: bool, padded: bool, causal: bool
) -> None:
    model = Kept(Masked(encoder(norm_first=norm_first), padded, causal)).to(dtype)
    batches = [batch.to(dtype) for batch in BATCHES]
    expected = without_grad(model.network, batches)
    diagnosis = reludiag.scan(model, batches)
    # The first batch is followed operator by operator, and goes the long way for that.
    assert all(map(torch.equal, model.outputs[1:], expected[1:]))
    names = [f"network.encoder.layers.{i}:relu" for i in range(2)]
    assert list(diagnosis.sites["site"]) == names
    assert list(diagnosis.sites["samples"]) == [24, 24]


@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
def test_an_encoder_under_autocast_is_scanned(norm_first: bool) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), encoder(norm_first=norm_first))
    with torch.autocast("cpu", torch.bfloat16):
        sites = reludiag.scan(model, BATCHES).sites
    assert list(sites["samples"]) == [24, 24]


def test_attention_beside_functions_stays_fused() -> None:
    model = Kept(Attending())
    expected = without_grad(model.network, BATCHES)
    assert list(reludiag.scan(model, BATCHES).sites["site"]) == ["network:relu"]
    assert all(map(torch.equal, model.outputs[1:], expected[1:]))


def test_what_is_counted_in_the_fused_operator_is_what_its_parts_give() -> None:
    # In float64: the two add up in different orders, which in float32 may decide whether a unit
    # fires at a position where it is all but zero.
    model, batches = encoder().double(), [batch.double() for batch in BATCHES]
    with torch.no_grad():
        model.layers[0].linear1.bias[:7] = -100.0
        model.layers[0].linear1.bias[7:9] = 100.0
    fused = reludiag.scan(model, batches).units
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        parts = reludiag.scan(model, batches).units
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert (fused["verdict"][:9] == ["dead"] * 7 + ["always_on"] * 2).all()
    exact = ["site", "unit", "verdict", "samples", "fired", "active_fraction", "producer"]
    assert fused[exact].equals(parts[exact])
    for column in ("mean_activation", "max_activation", "max_preactivation"):
        assert fused[column].to_numpy() == pytest.approx(parts[column].to_numpy(), rel=1e-6)


class Own(nn.TransformerEncoderLayer):
    """A layer with a rectifier of its own ahead."""

    def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(functional.relu(src), *args, **kwargs)


class Rectified(nn.Module):
    """Makes a weight that is nowhere negative."""

    def forward(self, weight: Tensor) -> Tensor:
        return functional.relu(weight)


def replaced() -> nn.Module:
    """A layer whose forward is somebody's own already."""
    made = layer()
    forward = made.forward
    made.forward = lambda x: forward(functional.relu(x))
    return made


def with_weight_made() -> nn.Module:
    made = layer()
    parametrize.register_parametrization(made.linear1, "weight", Rectified())
    return made


OTHERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    # Of an odd number of heads PyTorch has no fused operator.
    "odd heads": (lambda: layer(heads=1), ["0:relu"]),
    # The one ahead is left out: no layer feeds it.
    "own forward": (lambda: layer(kind=Own), ["0:relu#1"]),
    "replaced forward": (replaced, ["0:relu#1"]),
    "rectified weight": (with_weight_made, ["0:relu"]),
    "GELU": (lambda: layer(activation="gelu"), ["0:gelu"]),
    "a module": (lambda: layer(activation=nn.ReLU()), ["0.activation"]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_more_than_the_fused_operator_is_seen_all_the_same(kind: str) -> None:
    build, expected = OTHERS[kind]
    model = nn.Sequential(build(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    sites = reludiag.scan(model, BATCHES).sites
    of_weight = sites["site"].str.startswith("0.linear1.parametrizations.weight.0:relu")
    assert of_weight.any() == (kind == "rectified weight")
    assert list(sites.loc[~of_weight, "site"]) == [*expected, "2"]
    assert set(sites.loc[~of_weight, "samples"]) == {24}


class Counting(TorchFunctionMode):
    """A mode of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def test_a_mode_of_the_users_own_sees_what_it_saw() -> None:
    model = Kept(encoder())
    with Counting() as bare:
        expected = without_grad(model.network, BATCHES)
    with Counting() as watched:
        sites = reludiag.scan(model, BATCHES).sites
    assert watched.calls.count("linear") == bare.calls.count("linear") == 16
    assert list(sites["samples"]) == [24, 24]
    assert all(map(torch.equal, model.outputs, expected))


class Subclass(Tensor):
    """A tensor that has something to say on what is done with it."""


@pytest.mark.parametrize("of_weights", [False, True], ids=["inputs", "weights"])
def test_a_subclass_of_tensor_goes_the_way_that_it_goes(of_weights: bool) -> None:
    model = Kept(encoder())
    batches = BATCHES
    if of_weights:
        for each in model.network.layers:
            each.linear1.weight = nn.Parameter(each.linear1.weight.detach().as_subclass(Subclass))
    else:
        batches = [batch.as_subclass(Subclass) for batch in BATCHES]
    expected = without_grad(model.network, batches)
    assert list(reludiag.scan(model, batches).sites["samples"]) == [24, 24]
    assert all(isinstance(output, Subclass) for output in model.outputs)
    # Attention, which is fused all the same, is followed in the first batch.
    assert all(map(torch.equal, model.outputs[of_weights:], expected[of_weights:]))


@pytest.mark.parametrize("train_mode", [False, True])
def test_the_layers_are_as_they_were(train_mode: bool) -> None:
    model = nn.Sequential(encoder(), Attending())
    before = [(module, dict(vars(module))) for module in model.modules()]
    reludiag.scan(model, BATCHES, train_mode=train_mode)

    def broken() -> Iterator[Tensor]:
        yield from BATCHES
        yield torch.randn(6, 9, WIDTH + 1)

    with pytest.raises(reludiag.DataError):
        reludiag.scan(model, broken(), train_mode=train_mode)
    assert all(vars(module) == was for module, was in before)


class Copying(nn.Module):
    """Runs a copy of its encoder, as meta-learning does."""

    def __init__(self, copied: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.encoder, self.copied = encoder(), copied

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) + self.copied(self.encoder)(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_that_the_forward_makes_runs_by_itself(copied: Callable[..., nn.Module]) -> None:
    model, batches = Kept(Copying(copied)).double(), [batch.double() for batch in BATCHES]
    expected = without_grad(model.network, batches)
    sites = reludiag.scan(model, batches).sites
    watched = [name for name in sites["site"] if name.startswith("network.encoder")]
    assert watched == [f"network.encoder.layers.{i}:relu" for i in range(2)]
    torch.testing.assert_close(model.outputs, expected)


class Seen(TorchDispatchMode):
    """The operators that a pass is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_a_scan_runs_attention_as_one_operator() -> None:
    with Seen() as seen:
        reludiag.scan(encoder(), BATCHES)
    assert seen.names.count("_native_multi_head_attention") == 2 * (len(BATCHES) - 1)

"""Outputs, gradients and weights of a monitored model are those of the bare one, bit by bit."""

import contextlib
import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import reludiag


class Written(nn.Module):
    """A Linear and whatever `run` makes of it and the input."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.run = nn.Linear(16, 16), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.fc, x)


def encoder(activation: str = "relu") -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 32, 0.1, activation, batch_first=True)


def attention() -> nn.Module:
    layer = nn.MultiheadAttention(16, 4, batch_first=True)
    return Attending(layer)


class Attending(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


def written(run: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Written(run)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU()),
    "module in place": lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True)),
    "signed module": lambda: nn.Sequential(nn.Linear(16, 16), nn.Hardswish(inplace=True)),
    "function": written(lambda fc, x: functional.relu(fc(x))),
    "function in place": written(lambda fc, x: functional.relu_(fc(x))),
    "clamp in place": written(lambda fc, x: fc(x).clamp_(min=0)),
    "where": written(lambda fc, x: torch.where((y := fc(x)) > 0, y, 0.0)),
    "product with a mask": written(lambda fc, x: (y := fc(x)) * (y > 0)),
    "changed afterwards": written(lambda fc, x: fc(x).clamp(min=0).add_(5)),
    "checkpoint": written(
        lambda fc, x: checkpoint(lambda v: functional.relu(fc(v)), x, use_reentrant=False)
    ),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(16, 16), nn.ReLU(True)),
    "dropout": lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(True), nn.Dropout(0.5)),
    "encoder layer": encoder,
    "encoder": lambda: nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False),
    "attention": lambda: nn.Sequential(attention(), nn.ReLU()),
}
PRECISIONS = {
    "float32": contextlib.nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_of_every_kind_is_equal_to_the_last_bit(kind: str, precision: str) -> None:
    torch.manual_seed(0)
    bare = KINDS[kind]()
    model = copy.deepcopy(bare)
    clocks = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (bare, model)]
    # Counted steps, others, snapshots, and as many that it may rest.
    with reludiag.Monitor(model, clocks[1], every=20, stats_every=4):
        for step in range(50):
            x, outputs = torch.randn(8, 5, 16), []
            for network, clock in zip((bare, model), clocks, strict=True):
                torch.manual_seed(step)
                clock.zero_grad()
                with PRECISIONS[precision]():
                    outputs.append(network(x))
                outputs[-1].float().square().mean().backward()
                clock.step()
            assert torch.equal(*outputs)
    expected = bare.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def in_eval_mode(
    build: Callable[[], nn.Module], grad: bool = False, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Outputs of the bare and of the monitored model, in eval mode."""
    torch.manual_seed(0)
    bare = build().to(dtype)
    model = copy.deepcopy(bare)
    clock = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, clock, every=1):
        x = torch.randn(8, 5, 16, dtype=dtype)
        bare(x)  # for the running statistics
        torch.manual_seed(0)
        model(x).sum().backward()
        clock.step()
        x = torch.randn(8, 5, 16, dtype=dtype)
        with torch.set_grad_enabled(grad):
            return [network.eval()(x) for network in (bare, model)]


ALL = {
    **KINDS,
    "attention beside functions": lambda: nn.Sequential(attention(), KINDS["function"]()),
    "encoder beside functions": lambda: nn.Sequential(KINDS["encoder"](), KINDS["function"]()),
}


@pytest.mark.parametrize("grad", [False, True], ids=["", "with gradients"])
@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "encoder layer"])
def test_evaluation_meanwhile_is_equal_to_the_last_bit(kind: str, grad: bool) -> None:
    assert torch.equal(*in_eval_mode(ALL[kind], grad))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ALL)
def test_a_named_model_that_no_optimizer_trains_is_equal_to_the_last_bit(
    kind: str, guard: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    torch.manual_seed(0)
    bare = ALL[kind]().eval()
    teacher, student = copy.deepcopy(bare), KINDS["module"]()
    clock = torch.optim.SGD(student.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of those with attention
        with reludiag.Monitor({"student": student, "teacher": teacher}, clock, every=2):
            for _ in range(5):
                x = torch.randn(8, 5, 16)
                with guard():
                    assert torch.equal(bare(x), teacher(x))
                student(x).sum().backward()
                clock.step()


def test_a_model_that_is_one_layer_differs_in_its_last_bits_only() -> None:
    """Hooks on it send it off its fused path."""
    torch.testing.assert_close(*in_eval_mode(KINDS["encoder layer"], dtype=torch.float64))


def test_an_encoder_with_padding_is_evaluated_with_nested_tensors_as_it_was() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(encoder(), 2)

        def forward(self, x: Tensor) -> Tensor:
            padding = torch.zeros(x.shape[:2], dtype=torch.bool)
            padding[1, 3:] = True
            return self.encoder(x, src_key_padding_mask=padding)

    bare, monitored = in_eval_mode(Padded)
    assert torch.equal(bare, monitored)
    assert not monitored[1, 3:].any()

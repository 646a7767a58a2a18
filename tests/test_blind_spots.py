"""What cannot be read is listed, and says nothing of any unit; what is written out stays clean."""

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn import intrinsic
from torch.ao.nn.intrinsic import qat
from torch.nn import functional

import reludiag


@pytest.fixture(autouse=True)
def deprecations() -> Iterator[None]:
    """TorchScript and torch.ao are on their way out, and still in use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Plain(nn.Module):
    """A module and a function, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.relu(self.fc(x)))


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
CONFIGURATION = quantization.get_default_qat_qconfig("x86")


def events(diagnosis: reludiag.Diagnosis) -> dict[str, int]:
    return dict(zip(diagnosis.sites["site"], diagnosis.sites["samples"], strict=True))


@pytest.mark.parametrize("compile_it", [torch.jit.script, lambda m: torch.jit.trace(m, X)])
@pytest.mark.parametrize("training", [True, False])
def test_torchscript_in_a_model_is_listed_and_never_half_counted(
    compile_it: Callable[[nn.Module], nn.Module], training: bool
) -> None:
    """Of what is seen in the first forward only, a unit that fires later would be called dead."""
    model = nn.Sequential(nn.Linear(4, 4), compile_it(Plain()), nn.ReLU())
    diagnosis = reludiag.scan(model, [X, -X, X], train_mode=training)
    assert events(diagnosis) == {"2": 24}
    assert "'1:relu' was called, but cannot be read (2 calls)." in " ".join(diagnosis.head.notes)


def test_a_model_of_which_nothing_can_be_read_says_so() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = torch.jit.script(Plain())

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x)

    with pytest.raises(reludiag.ModelError, match=r"^'part:relu' was called, but cannot be read"):
        reludiag.scan(Wrapper(), [X])


def test_the_module_of_a_program_is_refused_with_a_sentence() -> None:
    module = torch.export.export(Plain(), (X,)).module()
    with pytest.raises(reludiag.ModelError, match=r"pass the program itself, not its module\(\)"):
        reludiag.scan(module, [X])


def test_the_module_of_a_program_is_seen_in_training() -> None:
    module = torch.export.export(Plain(), (X,)).module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    with reludiag.Monitor(module, optimizer, every=3) as monitor:
        for _ in range(3):
            module(X).sum().backward()
            optimizer.step()
    assert events(monitor.diagnose()) == {"GraphModule:relu": 24, "GraphModule:relu#1": 24}


# Quantization


def owners(model: nn.Module, *shape: int) -> list[tuple[object, ...]]:
    """Site, samples, unit axis, units and producer."""
    diagnosis = reludiag.scan(model, [torch.randn(8, *shape), torch.randn(8, *shape)])
    assert diagnosis.unjudged == ()
    columns = diagnosis.sites[["site", "samples", "unit_axis", "units", "producer"]]
    return list(columns.itertuples(index=False, name=None))


def test_fused_modules_are_seen_at_the_relu_in_them() -> None:
    model = nn.Sequential(
        intrinsic.ConvReLU2d(nn.Conv2d(3, 4, 3), nn.ReLU()),
        intrinsic.ConvBnReLU2d(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
        intrinsic.LinearReLU(nn.Linear(4, 6), nn.ReLU()),
    )
    assert owners(model, 3, 8, 8) == [
        ("0.1", 16, "1", 4, "0.0"),
        ("1.2", 16, "1", 5, "1.0"),
        ("2.1", 16, "3", 6, "2.0"),
    ]


def test_quantization_aware_modules_feed_their_own_relu() -> None:
    """Their weights are rounded before they are used, and stay theirs."""
    model = nn.Sequential(
        qat.ConvReLU2d(3, 4, 3, qconfig=CONFIGURATION),
        qat.LinearReLU(6, 5, qconfig=CONFIGURATION),
    )
    assert owners(model, 3, 8, 8) == [
        ("0:relu", 16, "1", 4, "0"),
        ("1:relu", 16, "3", 5, "1"),
    ]


def test_a_model_prepared_for_quantization_aware_training_is_seen_in_training() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), nn.ReLU()
    ).train()
    fused = quantization.fuse_modules_qat(model, [["0", "1", "2"], ["4", "5"]])
    fused.qconfig = CONFIGURATION
    prepared = quantization.prepare_qat(fused)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    with reludiag.Monitor(prepared, optimizer, every=4) as monitor:
        for _ in range(4):
            prepared(torch.randn(8, 3, 8, 8)).sum().backward()
            optimizer.step()
    diagnosis = monitor.diagnose()
    assert events(diagnosis) == {"0:relu": 32, "4:relu": 32}
    assert list(diagnosis.sites["unit_axis"]) == ["1", "1"]


def test_dynamic_quantization_leaves_the_relus() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
    quantized = quantization.quantize_dynamic(model)
    assert [row[:2] for row in owners(quantized, 4)] == [("1", 16), ("3", 16)]


@pytest.mark.skipif(
    "x86" not in torch.backends.quantized.supported_engines, reason="needs kernels for x86"
)
def test_of_a_quantized_model_all_relus_are_read_fused_or_not() -> None:
    model = nn.Sequential(
        quantization.QuantStub(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(),
        quantization.DeQuantStub(),
    ).eval()  # fmt: skip
    model.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(quantization.fuse_modules(model, [["1", "2"]]))
    prepared(X)
    assert owners(quantization.convert(prepared), 4) == [
        ("1", 16, "1", 6, "1"),
        ("4", 16, "1", 4, "3"),
    ]


# A monitored model that is written out


def written(model: nn.Module, how: str) -> tuple[Callable[[Tensor], Tensor], str]:
    """A program of the model, and its text."""
    if how == "trace":
        traced = torch.jit.trace(model, X, check_trace=False)
        return traced, str(traced.inlined_graph)
    program = torch.export.export(model, (X,), strict=how == "strict")
    return program.module(), str(program.graph)


@pytest.mark.parametrize("how", ["export", "strict", "trace"])
def test_a_monitored_model_can_be_exported_and_counts_nothing_of_it(how: str) -> None:
    torch._dynamo.reset()
    model = Plain()
    expected, text = written(copy.deepcopy(model), how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=2) as monitor:
        for step in range(2):
            model(X).sum().backward()
            optimizer.step()
            if step == 0:
                found, found_text = written(model, how)
                assert torch.equal(found(X), expected(X))
                assert "reludiag::" not in found_text and "reludiag." not in found_text
                assert len(found_text.splitlines()) == len(text.splitlines())
    assert events(monitor.diagnose()) == {"relu": 16, "fc:relu": 16}


def test_a_model_can_be_scripted_once_it_is_watched_no_longer() -> None:
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=1):
        model(X).sum().backward()
        optimizer.step()
    reludiag.scan(model, [X])
    assert torch.equal(torch.jit.script(model)(X), model(X))

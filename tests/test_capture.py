"""Capture: every rectifier call seen once, at the right owner, however it is spelled."""

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import reludiag


class Spelled(nn.Module):
    """One Linear and one way to rectify, inside a block of its own."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block = Block(rectify)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + 1


class Block(nn.Module):
    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.rectify = nn.Linear(4, 6), rectify

    def forward(self, x: Tensor) -> Tensor:
        return self.rectify(self.fc(x))


def _where(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


def _set(x: Tensor) -> Tensor:
    x[x < 0] = 0
    return x


def _set_ones(x: Tensor) -> Tensor:
    x[x < 0] = 1
    x[0] = 0
    return x


def _zeros(x: Tensor) -> Tensor:
    zeros = torch.zeros_like(x)
    return torch.maximum(zeros, x)


SPELLINGS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "F.relu": ("relu", F.relu),
    "F.relu in place": ("relu", lambda x: F.relu(x, inplace=True)),
    "F.relu_": ("relu", lambda x: F.relu_(x)),
    "torch.relu": ("relu", torch.relu),
    "torch.relu_": ("relu", torch.relu_),
    "x.relu()": ("relu", lambda x: x.relu()),
    "x.relu_()": ("relu", lambda x: x.relu_()),
    "aten": ("relu", lambda x: torch.ops.aten.relu(x)),
    "an overload of aten": ("relu", lambda x: torch.ops.aten.relu.default(x)),
    "an operator in place": ("relu", lambda x: torch.ops.aten.relu_(x)),
    "F.relu by name": ("relu", lambda x: F.relu(input=x)),
    "squared": ("relu", lambda x: F.relu(x).square()),
    "squared by a power": ("relu", lambda x: F.relu(x) ** 2),
    "F.relu6 in place": ("relu6", lambda x: F.relu6(x, inplace=True)),
    "F.hardtanh_": ("hardtanh", lambda x: F.hardtanh_(x, 0.0, 6.0)),
    "torch.clamp by name": ("clamp", lambda x: torch.clamp(input=x, min=0)),
    "x.clip_(0)": ("clip", lambda x: x.clip_(0)),
    "torch.clamp_min": ("clamp_min", lambda x: torch.clamp_min(x, 0)),
    "torch.threshold": ("threshold", lambda x: torch.threshold(x, 0, 0)),
    "F.hardswish in place": ("hardswish", lambda x: F.hardswish(x, inplace=True)),
    "F.relu6": ("relu6", F.relu6),
    "F.hardtanh": ("hardtanh", lambda x: F.hardtanh(x, 0.0, 6.0)),
    "F.hardtanh by name": ("hardtanh", lambda x: F.hardtanh(x, min_val=0.0, max_val=6.0)),
    "x.clamp(min=0)": ("clamp", lambda x: x.clamp(min=0)),
    "x.clamp(0)": ("clamp", lambda x: x.clamp(0)),
    "x.clamp_(min=0)": ("clamp", lambda x: x.clamp_(min=0)),
    "x.clamp(0, 6)": ("clamp", lambda x: x.clamp(0, 6)),
    "torch.clamp": ("clamp", lambda x: torch.clamp(x, min=0.0)),
    "clamp with a tensor": ("clamp", lambda x: x.clamp(min=torch.tensor(0.0))),
    "x.clip(0)": ("clip", lambda x: x.clip(0)),
    "torch.clip": ("clip", lambda x: torch.clip(x, min=0)),
    "x.clamp_min(0)": ("clamp_min", lambda x: x.clamp_min(0)),
    "torch.clamp_min_": ("clamp_min", lambda x: torch.clamp_min_(x, 0)),
    "F.threshold": ("threshold", lambda x: F.threshold(x, 0, 0)),
    "F.threshold in place": ("threshold", lambda x: F.threshold_(x, 0, 0)),
    "F.hardswish": ("hardswish", F.hardswish),
    "maximum": ("maximum", _zeros),
    "maximum of a scalar": ("maximum", lambda x: torch.maximum(x, torch.tensor(0.0))),
    "max of two": ("max", lambda x: torch.max(x, torch.zeros(()))),
    "where": ("where", _where),
    "where, turned": ("where", lambda x: torch.where(x < 0, torch.zeros_like(x), x)),
    "x * (x > 0)": ("mul", lambda x: x * (x > 0)),
    "(x > 0).float() * x": ("mul", lambda x: (x > 0).float() * x),
    "masked_fill": ("masked_fill", lambda x: x.masked_fill(x < 0, 0)),
    "masked_fill by name": ("masked_fill", lambda x: x.masked_fill(x < 0, value=0)),
    "maximum by name": ("maximum", lambda x: torch.maximum(x, other=torch.zeros_like(x))),
    "maximum of a full": ("maximum", lambda x: x.maximum(torch.full_like(x, 0.0))),
    "a method where": ("where", lambda x: x.where(x > 0, 0.0)),
    "where by name": ("where", lambda x: torch.where(x > 0, input=x, other=torch.zeros(()))),
    "in place with a mask": ("mul", lambda x: x.mul_(x > 0)),
    "x[x < 0] = 0": ("setitem", _set),
    "clamp at zeros": ("clamp", lambda x: x.clamp(min=torch.zeros_like(x))),
    "clamp_min at zeros": ("clamp_min", lambda x: torch.clamp_min(x, torch.zeros(6))),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_is_one_site_of_its_owner(spelling: str) -> None:
    operator, rectify = SPELLINGS[spelling]
    torch.manual_seed(0)
    model, x = Spelled(rectify), torch.randn(64, 4)
    with torch.no_grad():
        model.block.fc.bias[2] = -100.0
        expected = model(x)
    diagnosis = reludiag.scan(model, [x[:32], x[32:]])
    row = diagnosis.sites.iloc[0]
    assert len(diagnosis.sites) == 1
    assert row["site"] == f"block:{operator}"
    assert (row["producer"], row["unit_axis"], row["units"]) == ("block.fc", "1", 6)
    assert list(diagnosis.units["verdict"] == "dead") == [u == 2 for u in range(6)]
    assert row["samples"] == 64
    assert diagnosis.unjudged == ()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    "rectify",
    [
        lambda x: x.clamp(-1, 1),
        lambda x: x.clamp(max=0),
        lambda x: torch.maximum(x, x.roll(1)),
        lambda x: torch.maximum(x, torch.zeros_like(x).add_(1)),
        lambda x: x * (x + 1 > 0),
        lambda x: torch.where(x > 0, x, -x),
        lambda x: x.where(x < 0, 0.0),
        lambda x: torch.maximum(x, torch.full_like(x, 1.0)),
        lambda x: F.threshold(x, 0, 1),
        lambda x: x.clamp(min=torch.zeros_like(x) + 1),
        _set_ones,
        lambda x: F.hardtanh(x),
        lambda x: torch.max(x, dim=0).values,
        lambda x: x[x.argmax(0).clamp(min=0)],
        lambda x: x[torch.maximum(x.argmax(0), torch.tensor(0))],
    ],
)
def test_what_only_looks_like_a_rectifier_is_none(rectify: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(reludiag.ModelError, match="no rectifier"):
        reludiag.scan(Spelled(rectify), [torch.randn(8, 4)])


def sites(model: nn.Module, *batches: Any) -> dict[str, int]:
    """Site -> samples, of the sites that were called."""
    found = reludiag.scan(model, list(batches) or [torch.randn(8, 4)]).sites
    called = found[found["samples"] > 0]
    return dict(zip(called["site"], called["samples"], strict=True))


def notes(model: nn.Module, *batches: Any) -> str:
    return " ".join(reludiag.scan(model, list(batches) or [torch.randn(8, 4)]).head.notes)


class Net(nn.Module):
    """A Linear and whatever `run` makes of it."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.fc, self.run = nn.Linear(4, 4), run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def test_a_relu_module_called_by_its_forward_is_seen_once() -> None:
    model = Net(lambda m, x: m.relu.forward(m.relu(m.fc(x))), relu=nn.ReLU())
    assert sites(model) == {"relu": 8, "relu#1": 8}


def test_modules_and_functions_side_by_side() -> None:
    model = Net(lambda m, x: F.relu(m.relu(F.relu(m.fc(x)))), relu=nn.ReLU(inplace=True))
    assert sites(model) == {"fc:relu": 8, "relu": 8, "fc:relu#1": 8}


def test_one_module_under_two_names_is_two_sites_of_the_first() -> None:
    model = Net(lambda m, x: m.again(m.last(m.relu(m.fc(x)))), relu=nn.ReLU(), last=nn.Linear(4, 4))
    model.again = model.relu
    found = reludiag.scan(model, [torch.randn(8, 4)]).sites
    assert list(zip(found["site"], found["samples"], found["producer"], strict=True)) == [
        ("relu", 8, "fc"),
        ("relu#1", 8, "last"),
    ]


def test_one_module_in_a_loop_is_one_site() -> None:
    def loop(m: Net, x: Tensor) -> Tensor:
        for _ in range(3):
            x = m.relu(m.fc(x))
        return x

    assert sites(Net(loop, relu=nn.ReLU(inplace=True))) == {"relu": 8}


def test_a_function_in_a_helper_belongs_to_the_module_that_called_it() -> None:
    def helper(x: Tensor) -> Tensor:
        return (lambda y: F.relu(y))(x)

    model = nn.Sequential(nn.Linear(4, 4), Net(lambda m, x: helper(m.fc(x))))
    assert sites(model) == {"1:relu": 8}


def test_a_loop_over_a_shared_layer() -> None:
    def loop(m: Net, x: Tensor) -> Tensor:
        for _ in range(3):
            x = F.relu(m.fc(x))
        return x

    assert sites(Net(loop)) == {"fc:relu": 8}


def test_a_name_follows_from_the_paths_taken_and_not_from_their_order() -> None:
    def branch(m: Net, x: Tensor) -> Tensor:
        x = m.relu(m.fc(x))
        if x.shape[0] > 4:
            x = m.relu(m.extra(x))
        return m.relu(m.last(x))

    def model() -> Net:
        return Net(branch, relu=nn.ReLU(), extra=nn.Linear(4, 4), last=nn.Linear(4, 4))

    long, short = torch.randn(8, 4), torch.randn(3, 4)
    expected = {"relu": 11, "relu@extra": 8, "relu@last": 11}
    assert sites(model(), long, short) == expected
    assert sites(model(), short, long) == expected
    assert sites(model(), long) == {"relu": 8, "relu#1": 8, "relu#2": 8}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", F.relu, nn.ReLU()])
def test_an_encoder_is_seen_in_training_and_off_its_fast_path(
    training: bool, activation: Any
) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    diagnosis = reludiag.scan(model, [torch.randn(3, 5, 8)], train_mode=training)
    end = ".activation" if isinstance(activation, nn.Module) else ":relu"
    assert list(diagnosis.sites["site"]) == [f"layers.{i}{end}" for i in range(2)]
    assert set(diagnosis.sites["units"]) == {16}
    assert list(diagnosis.sites["producer"]) == ["layers.0.linear1", "layers.1.linear1"]
    assert diagnosis.unjudged == ()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_with_padding_is_seen_though_it_would_use_nested_tensors(
    training: bool, norm_first: bool
) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    model = Net(
        lambda m, x: m.encoder(x, src_key_padding_mask=padding),
        encoder=nn.TransformerEncoder(layer, 2),
    )
    diagnosis = reludiag.scan(model, [torch.randn(3, 5, 8)], train_mode=training)
    assert list(diagnosis.sites["site"]) == ["encoder.layers.0:relu", "encoder.layers.1:relu"]
    assert list(diagnosis.sites["samples"]) == [3, 3]
    assert diagnosis.unjudged == ()


def test_attention_has_no_rectifier() -> None:
    model = Net(
        lambda m, x: F.relu(m.attention(m.fc(x), x, x)[0]),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
    )
    assert sites(model, torch.randn(3, 5, 4)) == {"attention.out_proj:relu": 3}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("functional", [True, False])
def test_a_checkpointed_call_counts_once(reentrant: bool, functional: bool) -> None:
    def segment(m: Net, x: Tensor) -> Tensor:
        return F.relu(m.fc(x)) if functional else m.relu(m.fc(x))

    model = Net(lambda m, x: checkpoint(segment, m, x, use_reentrant=reentrant), relu=nn.ReLU())
    batches = [torch.randn(8, 4, requires_grad=True) for _ in range(3)]
    found = watched(model, *batches).sites
    called = found[found["samples"] > 0]
    owner = "fc:relu" if functional else "relu"
    assert list(zip(called["site"], called["samples"], called["producer"], strict=True)) == [
        (owner, 24, "fc")
    ]


def watched(model: nn.Module, *batches: Tensor, **settings: Any) -> reludiag.Diagnosis:
    """A Diagnosis of training steps, one on each batch, with one window for all."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    every = len(batches)
    with reludiag.Monitor(model, optimizer, every=every, **settings) as monitor:
        for batch in batches:
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()
    return monitor.diagnose()


@pytest.mark.parametrize("functional", [True, False])
def test_evaluation_between_steps_is_not_counted_as_training(functional: bool) -> None:
    model = Net(lambda m, x: F.relu(m.fc(x)) if functional else m.relu(m.fc(x)), relu=nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=2) as monitor:
        for _ in range(2):
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
            model.eval()
            model(torch.randn(50, 4))
            model.train()
    diagnosis = monitor.diagnose()
    assert set(diagnosis.units.dropna(subset="unit")["samples"]) == {16}
    assert any("evaluation mode" in note for note in diagnosis.head.notes)


def test_autocast_is_read_in_its_own_precision() -> None:
    model = Net(lambda m, x: F.relu(m.fc(x)))
    x = torch.randn(300, 4)
    with torch.autocast("cpu", torch.bfloat16):
        diagnosis = reludiag.scan(model, [x])
        reference = torch.relu(model.fc(x)).double()
    units = diagnosis.units
    assert set(zip(units["site"], units["samples"], strict=True)) == {("fc:relu", 300)}
    assert list(units["fired"]) == (reference > 0).sum(0).tolist()
    assert list(units["mean_activation"]) == pytest.approx(reference.mean(0).tolist(), rel=1e-5)


def test_a_forward_in_another_thread_is_seen() -> None:
    model = Net(lambda m, x: F.relu(m.relu(m.fc(x))), relu=nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def work() -> None:
        for _ in range(10):
            model(torch.randn(8, 4)).sum().backward()

    with reludiag.Monitor(model, optimizer, every=1) as monitor:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        optimizer.step()
    units = monitor.diagnose().units
    assert set(units["samples"]) == {240}
    assert set(units["site"]) == {"relu", "fc:relu"}


def test_a_part_of_a_forward_in_another_thread_is_announced() -> None:
    def spread(m: Net, x: Tensor) -> Tensor:
        results: list[Tensor] = []
        thread = threading.Thread(target=lambda: results.append(F.relu(m.relu(m.fc(x)))))
        thread.start()
        thread.join()
        return F.relu(results[0])

    model = Net(spread, relu=nn.ReLU())
    assert sites(model) == {"relu": 8, "Net:relu": 8}
    assert "in another thread" in notes(model)


def test_functional_call_and_data_parallel() -> None:
    model = Net(lambda m, x: F.relu(m.relu(m.fc(x))), relu=nn.ReLU())
    assert sites(nn.DataParallel(model)) == {"module.relu": 8, "module:relu": 8}

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            weights = {name: p * 2 for name, p in self.inner.named_parameters()}
            return torch.func.functional_call(self.inner, weights, (x,))

    assert sites(Called()) == {"inner.relu": 8, "inner:relu": 8}


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_function_transforms_are_left_out_and_said_so(transform: str) -> None:
    model = Net(lambda m, x: F.relu(m.relu(m.fc(x))), relu=nn.ReLU())

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            if transform == "vmap":
                y = torch.func.vmap(self.inner)(x)
            elif transform == "grad":
                y = torch.func.grad(lambda v: self.inner(v).sum())(x)
            else:
                y = torch.func.jvp(self.inner, (x,), (x,))[0]
            return y + self.inner(x)

    outer, x = Outer(), torch.randn(8, 4)
    expected = outer(x)
    assert sites(outer, x) == {"inner.relu": 8, "inner:relu": 8}
    assert "torch.func" in notes(outer, x)
    assert torch.equal(outer(x), expected)


def test_traced_modules_are_seen() -> None:
    model = Net(lambda m, x: F.relu(m.relu(m.fc(x))), relu=nn.ReLU())

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = model.fc, nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.relu(self.fc(x)))

    traced = torch.fx.symbolic_trace(Plain())
    assert sites(traced) == {"relu": 8, "fc:relu": 8}


def test_fused_quantization_aware_modules_are_seen() -> None:
    fused = torch.ao.nn.intrinsic.LinearReLU(nn.Linear(4, 4), nn.ReLU())
    aware = torch.ao.nn.intrinsic.qat.LinearReLU(
        4, 4, qconfig=torch.ao.quantization.get_default_qat_qconfig("x86")
    )
    assert sites(nn.Sequential(fused, aware)) == {"0.1": 8, "1:relu": 8}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_observed_is_listed() -> None:
    scripted = Net(lambda m, x: m.relu(m.part(x)), relu=nn.ReLU())
    scripted.part = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert "'part:relu' was called, but cannot be read (1 call)" in notes(scripted)


def test_parts_called_on_their_own_are_seen() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Net(lambda m, x: m.relu(m.relu(F.relu(m.fc(x)))), relu=nn.ReLU())
            self.blocks = nn.ModuleList([Spelled(F.relu)])

    model = Parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=1) as monitor:
        for block in (model.encoder, *model.blocks):
            block(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    found = monitor.diagnose().sites
    assert list(found["site"]) == [
        "encoder:relu",
        "encoder.relu",
        "encoder.relu#1",
        "blocks.0.block:relu",
    ]
    assert set(found["samples"]) == {8}


def test_no_hook_and_no_mode_where_none_is_needed() -> None:
    def active(m: Net, x: Tensor) -> Tensor:
        modes.append(torch._C._len_torch_function_stack())
        return m.relu(m.fc(x))

    modes: list[int] = []
    sites(Net(active, relu=nn.ReLU()), *[torch.randn(8, 4)] * 3)
    assert modes == [1, 0, 0]  # while the first forward is followed


def test_outputs_of_a_monitored_model_are_equal_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(8 * 36, 4), Spelled(lambda x: x.clamp_(min=0)),
    )  # fmt: skip
    reference = copy.deepcopy(model)
    x = torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    other = torch.optim.SGD(reference.parameters(), lr=1e-4)
    with reludiag.Monitor(model, optimizer, every=2, stats_every=2):
        for _ in range(5):
            outputs = []
            for m, o in ((model, optimizer), (reference, other)):
                o.zero_grad()
                outputs.append(m(x))
                outputs[-1].square().sum().backward()
                o.step()
            assert torch.equal(*outputs)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "batches",
    [
        [(8, False), (8, True), (8, True)],
        [(8, False), (1, True), (8, True)],
        [(1, True), (8, False), (8, True)],
        [(1, False), (1, True), (8, False), (8, True)],
        [(1, True), (8, True)],
        [(8, True), (1, False), (8, True)],
    ],
)
def test_samples_are_found_behind_others_on_a_path_that_is_taken_late(
    batches: list[tuple[int, bool]],
) -> None:
    """Inside, samples are the second axis, of which a pass that is not followed tells nothing."""

    def run(model: Net, x: Tensor) -> Tensor:
        y = F.relu(model.fc(x.transpose(0, 1)))
        return model.relu(model.late(y)) if x[0, 0, 0] > 100 else y

    # In float64: below, all samples are added up at once, and none fires by a rounding.
    model = Net(run, late=nn.Linear(4, 6), relu=nn.ReLU()).double()
    with torch.no_grad():
        model.late.bias[2] = -1e6
    inputs = [torch.randn(rows, 5, 4, dtype=torch.float64) for rows, _ in batches]
    for x, (_, late) in zip(inputs, batches, strict=True):
        x[0, 0, 0] = 1000.0 if late else 0.0
    diagnosis = reludiag.scan(model, inputs)
    late = torch.cat([x for x, (_, late) in zip(inputs, batches, strict=True) if late])
    assert dict(zip(diagnosis.sites["site"], diagnosis.sites["samples"], strict=True)) == {
        "fc:relu": sum(rows for rows, _ in batches),
        "relu": len(late),
    }
    assert set(diagnosis.sites["unit_axis"]) == {"2"}
    with torch.no_grad():
        fires = model.late(F.relu(model.fc(late))) > 0
    found = diagnosis.units.query("site == 'relu'")
    assert list(found["fired"]) == fires.any(dim=1).sum(dim=0).tolist()
    assert list(found["active_fraction"]) == pytest.approx(fires.double().mean((0, 1)).tolist())


def test_each_of_many_paths_that_are_taken_late_costs_no_other_site_a_sample() -> None:
    def run(model: Net, x: Tensor) -> Tensor:
        y = F.relu(model.fc(x.transpose(0, 1)))
        for late, at in ((model.late, 100), (model.later, 200)):
            if x[0, 0, 0] > at:
                y = F.relu(late(y))
        return model.relu(model.last(y))

    layers = {name: nn.Linear(4, 4) for name in ("late", "later", "last")}
    model = Net(run, **layers, relu=nn.ReLU())
    inputs = [torch.randn(8, 5, 4) for _ in range(6)]
    for x, first in zip(inputs, (0.0, 150.0, 0.0, 250.0, 250.0, 0.0), strict=True):
        x[0, 0, 0] = first
    assert sites(model, *inputs) == {
        "fc:relu": 48,
        "relu": 48,
        "late:relu": 24,
        "later:relu": 16,
    }


def test_sites_of_a_late_path_are_in_the_order_of_their_calls() -> None:
    def run(model: Net, x: Tensor) -> Tensor:
        y = F.relu(model.fc(x.transpose(0, 1)))
        if x[0, 0, 0] <= 100:
            return y
        return model.relu(model.last(F.relu(model.late(y)).transpose(0, 1)))

    model = Net(run, late=nn.Linear(4, 4), last=nn.Linear(4, 4), relu=nn.ReLU())
    inputs = [torch.randn(8, 5, 4) for _ in range(2)]
    inputs[1][0, 0, 0] = 150.0
    assert list(sites(model, *inputs).items()) == [("fc:relu", 16), ("late:relu", 8), ("relu", 8)]


def test_a_batch_that_the_model_changes_is_not_run_again_and_that_is_said() -> None:
    def run(model: Net, x: Tensor) -> Tensor:
        late = bool(x[0, 0, 0] > 100)
        y = F.relu(model.fc(x.mul_(0.5).transpose(0, 1)))
        return F.relu(model.late(y)) if late else y

    model = Net(run, late=nn.Linear(4, 4))
    inputs = [torch.randn(8, 5, 4) for _ in range(4)]
    for x in inputs[1:3]:
        x[0, 0, 0] = 1000.0
    expected = [x * 0.5 for x in inputs]
    diagnosis = reludiag.scan(model, inputs)
    assert all(map(torch.equal, inputs, expected))
    assert list(diagnosis.sites["samples"]) == [32, 8]
    assert any(note.startswith("Rectifier calls (1 call) are not") for note in diagnosis.head.notes)


def test_what_is_not_observed_on_one_path_is_not_forgotten_on_another() -> None:
    def run(model: Net, x: Tensor) -> Tensor:
        y = F.relu(model.fc(x.transpose(0, 1)))
        return F.relu(model.late(y)) if x[0, 0, 0] > 100 else model.part(y)

    model = Net(run, late=nn.Linear(4, 4))
    model.part = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    inputs = [torch.randn(8, 5, 4) for _ in range(3)]
    inputs[1][0, 0, 0] = 150.0
    diagnosis = reludiag.scan(model, inputs)
    assert list(diagnosis.sites["samples"]) == [24, 8]
    assert [place.where for place in diagnosis.unjudged] == ["part:relu"]


def test_a_forward_that_copies_the_model_is_scanned() -> None:
    """As meta-learning does, which adapts a copy of the network to each task.

    A copy takes no hooks along; it is no part of the model, so its rectifiers are the caller's.
    """

    def adapt(model: Net, x: Tensor) -> Tensor:
        for twin in (copy.deepcopy(model.inner), pickle.loads(pickle.dumps(model.inner))):
            x = x + twin(x)
        return model.inner(x)

    model = Net(adapt, inner=nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)))
    found = sites(model, torch.randn(8, 4), torch.randn(5, 4))
    assert found == {"inner.1": 13, "Net:relu": 13, "Net:relu#1": 13}


def test_a_copy_and_a_pickle_of_a_monitored_model_are_free_of_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), Spelled(F.relu))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=1) as monitor:
        model(torch.randn(8, 4)).sum().backward()
        copied = copy.deepcopy(model)
        for _ in range(3):
            copied(torch.randn(8, 4))
        optimizer.step()
    assert set(monitor.diagnose().units["samples"]) == {8}
    buffer = io.BytesIO()
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.0)
    with reludiag.Monitor(plain, optimizer, every=1):
        torch.save(plain, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=False)(torch.randn(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("rectify", [F.relu, nn.ReLU(inplace=True)], ids=["function", "module"])
def test_an_output_that_is_changed_later_was_read_before(rectify: Any) -> None:
    model = Spelled(lambda x: rectify(x).add_(5) if not x.requires_grad else rectify(x).add(5))
    with torch.no_grad():
        model.block.fc.bias[2] = -100.0
    x = torch.randn(64, 4)
    dead = [False, False, True, False, False, False]
    assert list(reludiag.scan(model, [x]).units["verdict"] == "dead") == dead
    model.requires_grad_(False)
    with reludiag.Monitor(model, every=2, stats_every=1) as monitor:
        for _ in range(2):
            model(x)
            monitor.step()
    units = monitor.diagnose().units
    assert list(units["verdict"] == "dead") == dead
    assert list(units["fired"]) == (2 * (model.block.fc(x) > 0).sum(0)).tolist()


@pytest.mark.parametrize("flush", [False, True])
def test_a_denormal_fires_unless_the_processor_takes_it_for_zero(flush: bool, reading: str) -> None:
    model, x = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU()), torch.full((4, 1), 1e-22)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1e-20], [1.0]]))
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor cannot")
    try:
        fired = (model(x) > 0).sum(0).tolist()
        assert fired == [0 if flush else 4, 4]
        units = [reludiag.scan(model, [x]).units, watched(model, x, stats_every=1).units]
    finally:
        torch.set_flush_denormal(False)
    for found in units:
        assert found["fired"].tolist() == fired
        assert (found["verdict"] == "dead").tolist() == [flush, False]


def test_an_empty_batch_in_training_counts_nothing() -> None:
    model = Net(lambda m, x: F.relu(m.relu(m.fc(x))), relu=nn.ReLU(inplace=True))
    empty, full = torch.randn(0, 4), torch.randn(8, 4)
    for batches in ([full, empty, full], [empty, full, full]):
        found = watched(model, *batches, stats_every=1).sites
        assert dict(zip(found["site"], found["samples"], strict=True)) == {
            "relu": 16,
            "fc:relu": 16,
        }


def test_the_unit_axis_can_be_overruled() -> None:
    model = Net(lambda m, x: F.relu(m.relu(m.fc(x))), relu=nn.ReLU())
    x = torch.randn(8, 5, 4)
    found = reludiag.scan(model, [x], unit_axes={"relu": 1}).sites.set_index("site")
    assert list(found["unit_axis"]) == ["1", "2"]
    assert list(found["units"]) == [5, 4]
    for wrong in ({"nothing": 1}, {"relu": 7}):
        with pytest.raises(reludiag.UsageError, match="relu, fc:relu"):
            reludiag.scan(model, [x], unit_axes=wrong)


def test_the_preactivation_tells_how_far_a_unit_is_from_firing() -> None:
    for rectify in (F.relu, lambda x: F.relu_(x), lambda x: x.clamp(min=0)):
        model, x = Spelled(rectify), torch.randn(64, 4)
        with torch.no_grad():
            model.block.fc.weight[1] = 0.0
            model.block.fc.bias[1] = -3.0
            expected = model.block.fc(x).amax(0)
        units = reludiag.scan(model, [x]).units
        assert list(units["max_preactivation"]) == pytest.approx(expected.tolist())
    for module in (nn.ReLU(), nn.ReLU(inplace=True)):
        chain = nn.Sequential(nn.Linear(4, 6), module)
        expected = chain[0](x).amax(0)
        units = reludiag.scan(chain, [x]).units
        assert list(units["max_preactivation"]) == pytest.approx(expected.tolist())

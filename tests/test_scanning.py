"""scan(): which sites and units it finds, and what it leaves behind."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reludiag


def dead_units(diagnosis: reludiag.Diagnosis) -> set[tuple[str, int]]:
    dead = diagnosis.units[diagnosis.units["verdict"] == "dead"]
    return set(zip(dead["site"], dead["unit"].astype(int), strict=True))


def axes(diagnosis: reludiag.Diagnosis) -> dict[str, str]:
    return dict(zip(diagnosis.sites["site"], diagnosis.sites["unit_axis"], strict=True))


def mlp(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3), nn.ReLU())


class Reused(nn.Module):
    """Two layers, one inplace ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 5), nn.Linear(5, 7)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.fc2(self.relu(self.fc1(x))))


class Branching(nn.Module):
    """Which layer feeds the shared ReLU depends on the data; one ReLU is on no path at all."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu, self.never = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        side = self.left if x.sum() > 0 else self.right
        return self.relu(self.last(self.relu(side(x))))


def test_a_planted_death_is_found() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].bias[2] = -100.0
    diagnosis = reludiag.scan(model, [torch.randn(16, 4), torch.randn(3, 4)])
    assert ("1", 2) in dead_units(diagnosis)
    row = diagnosis.units.query("site == '1' and unit == 2").iloc[0]
    assert row["samples"] == 19
    assert row["firing_rate_upper"] == pytest.approx(1 - 0.05 ** (1 / 19))
    assert row["producer"] == "0"


def test_reused_relu_is_two_sites() -> None:
    model = Reused()
    with torch.no_grad():
        model.fc1.bias[1] = model.fc2.bias[6] = -100.0
    diagnosis = reludiag.scan(model, [torch.randn(64, 4)])
    assert list(diagnosis.sites["site"]) == ["relu", "relu#1"]
    assert list(diagnosis.sites["units"]) == [5, 7]
    assert list(diagnosis.sites["producer"]) == ["fc1", "fc2"]
    assert {("relu", 1), ("relu#1", 6)} <= dead_units(diagnosis)


def test_a_skipped_branch_does_not_shift_the_sites_after_it() -> None:
    model = Branching()
    with torch.no_grad():
        model.left.bias[0] = model.right.bias[1] = model.last.bias[2] = -100.0
    batches = [torch.rand(8, 4), -torch.rand(8, 4), torch.rand(8, 4)]
    diagnosis = reludiag.scan(model, batches)
    sites = diagnosis.sites.set_index("producer")
    assert [sites["samples"][name] for name in ("left", "last", "right")] == [16, 24, 8]
    named = {producer: row["site"] for producer, row in sites.iterrows()}
    expected = {(named["left"], 0), (named["right"], 1), (named["last"], 2)}
    assert expected <= dead_units(diagnosis)


def test_a_rectifier_that_is_never_called_is_unobserved() -> None:
    diagnosis = reludiag.scan(Branching(), [torch.rand(8, 4)])
    row = diagnosis.units.query("site == 'never'").iloc[0]
    assert row["verdict"] == "unobserved"
    assert row.isna()["unit"]
    assert "never called" in str(diagnosis)


def test_a_shared_layer_in_a_loop_is_one_site_or_a_site_per_turn() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.relu(self.fc(x))
            return x

    merged = reludiag.scan(Loop(), [torch.rand(8, 4)] * 2)
    assert list(merged.sites["site"]) == ["relu"]
    assert list(merged.sites["samples"]) == [16]
    diagnosis = reludiag.scan(Loop(), [torch.rand(8, 4)] * 2, merge_calls=False)
    assert list(diagnosis.sites["site"]) == ["relu", "relu#1", "relu#2"]
    assert set(diagnosis.sites["samples"]) == {16}


@pytest.mark.parametrize(
    ("model", "shape", "axis", "units"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (8, 8, 4), "2", 8),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (8, 8, 8, 4), "3", 8),
        (nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU()), (8, 3, 8), "1", 8),
        (nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU()), (4, 3, 4, 4, 4), "1", 4),
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.ReLU()), (2, 3, 7, 7), "1", 8),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.ReLU()), (2, 3, 4, 4), "1//16", 8),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.ReLU()), (2, 3, 16, 16), "1", 8),
        (nn.Sequential(nn.Embedding(9, 8), nn.ReLU()), (2, 8), "2", 8),
        (nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 8), nn.ReLU()), (2, 5, 4), "1", 8),
        (nn.Sequential(nn.Linear(4, 8), nn.Unflatten(2, (2, 4)), nn.ReLU()), (3, 5, 4), "2,3", 8),
        (nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU()), (8, 8, 8, 8), "1", 8),
        (nn.ReLU(), (3, 4), "unknown", 4),
    ],
)
def test_the_unit_axis_is_found(
    model: nn.Module, shape: tuple[int, ...], axis: str, units: int
) -> None:
    is_embedding = any(isinstance(module, nn.Embedding) for module in model.modules())
    x = torch.zeros(shape, dtype=torch.long) if is_embedding else torch.randn(shape)
    site = reludiag.scan(model, [x]).sites.iloc[0]
    assert site["unit_axis"] == axis
    assert site["units"] == units


def test_a_transpose_before_batch_norm_moves_the_axis() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.bn, self.relu = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.bn(self.fc(x).transpose(1, 2)))

    model = Transposed().eval()
    with torch.no_grad():
        model.bn.bias[4] = -100.0
    diagnosis = reludiag.scan(model, [torch.randn(6, 6, 6)])
    assert axes(diagnosis) == {"relu": "1"}
    assert dead_units(diagnosis) == {("relu", 4)}
    assert diagnosis.sites["producer"][0] == "fc"


def test_attention_keeps_the_units_of_its_values() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.key = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            value, key = self.value(x).flatten(2), self.key(x).flatten(2)
            weights = (key.transpose(1, 2) @ key).softmax(-1)
            return self.relu((value @ weights.transpose(1, 2)).view(len(x), 8, *x.shape[2:]))

    model = Attention()
    with torch.no_grad():
        model.value.bias[5] = -100.0
    diagnosis = reludiag.scan(model, [torch.randn(2, 3, 5, 4)])
    assert axes(diagnosis) == {"relu": "1"}
    assert diagnosis.sites["producer"][0] == "value"
    assert ("relu", 5) in dead_units(diagnosis)


def test_learned_queries_are_activations_and_a_folded_weight_is_none() -> None:
    class Queries(nn.Module):
        """A layer fed by parameters only, and one whose weight is a product of two."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.fc = nn.Embedding(5, 8), nn.Linear(8, 6)
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 7, bias=False)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            queries = self.query.weight.unsqueeze(0).repeat(len(x), 1, 1)
            hidden = self.relu(self.fc(queries)) + x.mean()
            folded = self.up.weight @ self.down.weight
            return self.relu(nn.functional.linear(hidden, folded))

    sites = reludiag.scan(Queries(), [torch.randn(2, 3)]).sites
    assert list(sites["unit_axis"]) == ["2", "2"]
    assert list(sites["units"]) == [6, 7]
    assert list(sites["producer"]) == ["fc", "up"]


def test_positions_are_not_samples() -> None:
    """A sequence-first model: the second axis is the batch, and it is what is counted."""

    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(4, 8), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.fc(x.transpose(0, 1))).transpose(0, 1)

    diagnosis = reludiag.scan(SequenceFirst(), [torch.randn(5, 11, 4), torch.randn(3, 9, 4)])
    assert set(diagnosis.units["samples"]) == {8}


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize("sizes", [[1, 4], [1, 1, 3], [1, 1, 1, 1, 1]])
def test_a_first_batch_of_one_sample_does_not_mislead(length: int, sizes: list[int]) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 4, 1), nn.ReLU(), Transpose(), nn.Linear(4, 4), nn.ReLU()]
    # In float64: samples that come alone may be added up in another order than all at once.
    model, x = nn.Sequential(*layers).double(), torch.randn(5, 4, length, dtype=torch.float64)
    whole = reludiag.scan(model, [x]).units
    split = reludiag.scan(model, list(x.split(sizes))).units
    for column in ("site", "unit", "samples", "fired", "unit_axis", "verdict"):
        assert list(split[column]) == list(whole[column])


def test_a_row_that_is_chosen_several_times_is_one_sample() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(4, 8), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.fc(x[torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 1])]))

    diagnosis = reludiag.scan(Mixed(), [torch.randn(6, 4)] * 3)
    assert set(diagnosis.units["samples"]) == {9}


@pytest.mark.parametrize(
    ("activation", "can_die"),
    [
        (nn.ReLU(), True),
        (nn.ReLU6(), True),
        (nn.Hardtanh(0, 2), True),
        (nn.Threshold(0, 0), True),
        (nn.Threshold(0.1, 0), True),
        (nn.Hardswish(), True),
        (nn.Softshrink(), True),
        (nn.LeakyReLU(0.0), True),
        (nn.LeakyReLU(0.01), False),
        (nn.PReLU(), False),
        (nn.ELU(), False),
        (nn.GELU(), False),
        (nn.SiLU(), False),
    ],
    ids=str,
)
def test_only_what_has_a_zero_gradient_region_can_die(activation: nn.Module, can_die: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 2), activation)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([-4.0 if can_die else -50.0, 1.0]))
        if isinstance(activation, nn.Softshrink):
            model[0].bias.copy_(torch.tensor([0.1, 1.0]))
    verdicts = reludiag.scan(model, [torch.randn(8, 4)]).units["verdict"]
    assert (verdicts[0] == "dead") == can_die
    assert verdicts[1] != "dead"


def test_a_hardswish_that_is_negative_lives() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Hardswish())
    with torch.no_grad():
        model[0].weight.fill_(0.01)
        model[0].bias.fill_(-1.0)
    assert "dead" not in set(reludiag.scan(model, [torch.randn(8, 4)]).units["verdict"])


def test_a_model_without_rectifier_is_refused() -> None:
    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).clamp(-1, 1)

    for model in (Affine(), nn.Sequential(nn.Linear(4, 4))):
        with pytest.raises(reludiag.ModelError, match="no rectifier"):
            reludiag.scan(model, [torch.randn(2, 4)])


# What a scan leaves behind


class Awkward(nn.Module):
    """Batch norm in mixed modes, dropout, and a buffer that every forward writes."""

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = ValueError) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.fail_at, self.error, self.count = fail_at, error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.drop(self.relu(self.bn(self.conv(x))))
        self.count += 1
        if self.fail_at == self.count:
            raise self.error("half-way")
        return x + torch.rand(()) + random.random() + float(np.random.rand())


def fingerprint(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [
            [len(value) for name, value in vars(m).items() if "hooks" in name]
            for m in model.modules()
        ],
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "python": random.getstate(),
        "grad": [p.requires_grad for p in model.parameters()],
        "mode": torch.is_grad_enabled(),
        "dispatch_modes": torch._C._len_torch_dispatch_stack(),
    }


def assert_untouched(model: nn.Module, act: Any) -> None:
    """`act(model)` must leave the state, the outputs to the last bit, and all streams as is."""
    before, state = fingerprint(model), copy.deepcopy(model.state_dict())
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    act(model)
    assert fingerprint(model) == before
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers
    after = model.state_dict()
    assert all(torch.equal(after[key], state[key]) for key in state)


@pytest.mark.parametrize("train_mode", [False, True])
def test_a_scan_leaves_the_model_as_it_was(train_mode: bool) -> None:
    model = Awkward().train()
    model.bn.eval()
    batches = [torch.randn(4, 3, 6, 6) for _ in range(3)]
    assert_untouched(model, lambda m: reludiag.scan(m, batches, train_mode=train_mode))


def test_outputs_after_a_scan_are_equal_to_the_last_bit() -> None:
    model, x = Awkward().train(), torch.randn(4, 3, 6, 6)

    def output(m: nn.Module) -> Tensor:
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        return m(x)

    expected = output(copy.deepcopy(model))
    reludiag.scan(model, [x])
    assert torch.equal(output(model), expected)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_model_that_raises_half_way_is_as_it_was(
    error: type[BaseException], fail_at: int
) -> None:
    batches = [torch.randn(4, 3, 6, 6)] * 3

    def act(model: nn.Module) -> None:
        with pytest.raises((reludiag.ReludiagError, KeyboardInterrupt)):
            reludiag.scan(model, batches)

    assert_untouched(Awkward(fail_at, error).train(), act)


def test_the_cause_of_a_failing_forward_is_kept() -> None:
    with pytest.raises(reludiag.UserCodeError, match="KeyError") as caught:
        reludiag.scan(Awkward(1, KeyError), [torch.randn(4, 3, 6, 6)])
    assert "half-way" in caught.value.user_traceback
    assert isinstance(caught.value.__cause__, KeyError)


# Batches


def test_batches_may_be_tensors_tuples_and_dicts() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.relu(self.fc(x + shift))

    x = torch.randn(8, 4)
    plain = reludiag.scan(mlp(), [x]).units
    labelled = reludiag.scan(mlp(), [(x, torch.zeros(8)), [x, None]]).units
    assert list(labelled["fired"]) == [2 * fired for fired in plain["fired"]]
    batch = {"x": x, "shift": torch.zeros(4), "labels": torch.zeros(8), "idx": torch.zeros(8)}
    assert set(reludiag.scan(Named(), [batch]).units["samples"]) == {8}


@pytest.mark.parametrize(
    "data",
    [torch.randn(100, 4), np.zeros((100, 4), np.float32), (torch.randn(100, 4), torch.zeros(100))],
    ids=["tensor", "array", "inputs and labels"],
)
def test_all_inputs_at_once_are_cut_into_batches(data: Any) -> None:
    diagnosis = reludiag.scan(mlp(), data)
    assert set(diagnosis.units["samples"]) == {100}


def test_limit_draws_no_batch_too_many() -> None:
    drawn = []

    def stream() -> Iterator[Tensor]:
        for index in range(10):
            drawn.append(index)
            yield torch.randn(2, 4)

    diagnosis = reludiag.scan(mlp(), stream(), limit=3)
    assert drawn == [0, 1, 2]
    assert diagnosis.head.samples == 6


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "gave no batch"),
        (iter([]), "gave no batch"),
        ([torch.randn(0, 4)], "gave no batch"),
        ([torch.randn(2, 5)], r"refused batch 0 of the data, of shape \[2, 5\] float32"),
        ([torch.tensor([[1.0, float("nan"), 0, 0]])], "1 values that are NaN or infinite"),
        ([torch.full((2, 4), float("inf"))], "8 values that are NaN or infinite"),
        ([[]], "empty list"),
        (["text"], "no tensor among its inputs"),
    ],
)
def test_unusable_data_is_refused_with_a_sentence(batches: Any, sentence: str) -> None:
    with pytest.raises(reludiag.DataError, match=sentence):
        reludiag.scan(mlp(), batches)


def test_an_empty_batch_among_others_does_no_harm() -> None:
    x = torch.randn(8, 4)
    alone = reludiag.scan(mlp(), [x]).units
    mixed = reludiag.scan(mlp(), [x[:0], x, x[:0]]).units
    assert mixed.equals(alone)


def test_a_compiled_model_is_scanned_through_the_model_in_it() -> None:
    model, x = mlp(), torch.randn(8, 4)
    assert reludiag.scan(torch.compile(model), [x]).units.equals(reludiag.scan(model, [x]).units)


def test_a_scripted_model_is_refused() -> None:
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(mlp())
    with pytest.raises(reludiag.ModelError, match="TorchScript"):
        reludiag.scan(scripted, [torch.randn(2, 4)])


def test_inference_mode_and_half_precision_are_read() -> None:
    model, x = mlp().to(torch.bfloat16), torch.randn(8, 4, dtype=torch.bfloat16)
    with torch.inference_mode():
        inferred = reludiag.scan(model, [x])
    assert inferred.units.equals(reludiag.scan(model, [x]).units)
    assert axes(inferred) == {"1": "1", "3": "1"}

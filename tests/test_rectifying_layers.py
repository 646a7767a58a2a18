"""Layers that rectify their own product are read by what they return, exactly."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils.rnn import pack_sequence

import reludiag
from reludiag.measure.site_list import list_sites

INT8 = "x86" in torch.backends.quantized.supported_engines


@pytest.fixture(autouse=True)
def deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Recurrent(nn.Module):
    def __init__(self, sequences: list[Tensor] | None = None, **settings: Any) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 5, nonlinearity="relu", **settings)
        self.packed = sequences is not None
        with torch.no_grad():
            for name, bias in self.rnn.named_parameters():
                if "bias_ih" in name:
                    bias[:2] = -9.0
                    bias[2] = -1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:  # sequences of 1, 2, ... steps, of which two have the same length
            lengths = [1 + i % (x.shape[1] - 1) for i in range(len(x))]
            rows = [row[:length] for row, length in zip(x, lengths, strict=True)]
            return self.rnn(pack_sequence(rows, enforce_sorted=False))[0].data
        return self.rnn(x)[0]


def site(diagnosis: reludiag.Diagnosis) -> dict[str, Any]:
    assert len(diagnosis.sites) == 1
    return diagnosis.sites.to_dict("records")[0]


def assert_counts(diagnosis: reludiag.Diagnosis, samples: list[Tensor]) -> None:
    """The table is that of these samples, each `[step, unit]`, counted one by one."""
    units = diagnosis.units
    rows = [sample.double().numpy() for sample in samples]
    positions = np.concatenate(rows)
    assert units["samples"].unique().tolist() == [len(rows)]
    assert units["fired"].tolist() == sum((row > 0).any(0).astype(int) for row in rows).tolist()
    for name, expected in (
        ("active_fraction", (positions > 0).mean(0)),
        ("mean_activation", positions.mean(0)),
        ("max_activation", positions.max(0)),
    ):
        assert np.allclose(units[name].to_numpy(), expected, rtol=1e-6, atol=1e-9), name
    assert (units["verdict"] == "dead").tolist() == [
        not any((row[:, unit] > 0).any() for row in rows) for unit in range(positions.shape[1])
    ]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_layer_of_an_rnn_is_read_in_both_directions(
    bidirectional: bool, layers: int
) -> None:
    model = Recurrent(bidirectional=bidirectional, num_layers=layers, batch_first=True)
    x = torch.randn(8, 6, 3)
    diagnosis = reludiag.scan(model, [x[:4], x[4:]])
    with torch.no_grad():
        assert_counts(diagnosis, list(model(x)))
    row = site(diagnosis)
    assert (row["site"], row["units"], row["producer"]) == ("rnn", 5 * (1 + bidirectional), "rnn")
    reasons = [place.reason for place in diagnosis.unjudged]
    assert reasons == ["lower_layers"] * (layers - 1)


def test_the_samples_of_an_rnn_are_on_its_second_axis_by_default() -> None:
    class Turned(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.transpose(0, 1))[0]

    model, x = Turned(), torch.randn(8, 6, 3)
    with torch.no_grad():
        assert_counts(reludiag.scan(model, [x]), list(model(x).transpose(0, 1)))


def test_the_samples_of_a_packed_rnn_are_the_sequences() -> None:
    model, x = Recurrent(sequences=[]), torch.randn(8, 6, 3)
    plain = Recurrent(batch_first=True)
    plain.load_state_dict(model.state_dict())
    diagnosis = reludiag.scan(model, [x[:5], x[5:]])
    batches = (x[:5], x[5:])
    with torch.no_grad():
        samples = [plain(b[i : i + 1, : 1 + i % 5])[0] for b in batches for i in range(len(b))]
    assert_counts(diagnosis, samples)


def test_a_recurrent_cell_is_read() -> None:
    model, x = nn.Sequential(nn.RNNCell(3, 5, nonlinearity="relu")), torch.randn(8, 3)
    with torch.no_grad():
        model[0].bias_ih[:2] = -9.0
        assert_counts(reludiag.scan(model, [x]), list(model(x)[:, None]))


@pytest.mark.parametrize("packed", [False, True])
def test_an_rnn_is_watched_in_training(packed: bool) -> None:
    model = Recurrent([] if packed else None, **({} if packed else {"batch_first": True}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(8, 6, 3)
    with reludiag.Monitor(model, optimizer, every=40, stats_every=1) as monitor:
        for _ in range(40):  # long enough for the hooks to rest
            model(x).sum().backward()
            optimizer.step()
    diagnosis = monitor.diagnose()
    assert site(diagnosis)["samples"] == 320
    assert (diagnosis.units["verdict"] == "dead").tolist()[:2] == [True, True]


def test_an_rnn_that_is_not_a_rectifier_is_no_site() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.RNNCell(3, 5))
    assert list(reludiag.scan(model, [torch.randn(8, 3)]).sites["site"]) == ["1"]


class Int8(nn.Module):
    """A convolution, a linear layer and a function, before it is converted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.relu = nn.Conv2d(3, 6, 3), nn.ReLU()
        self.wide, self.other = nn.Conv2d(6, 5, 1), nn.ReLU(inplace=True)
        self.fc = nn.Linear(5, 7)
        with torch.no_grad():
            self.conv.bias[:2] = -50.0
            self.wide.bias[3] = -50.0
            self.fc.bias[0] = -50.0

    def forward(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        kept = [] if keep is None else keep
        kept.append(self.relu(self.conv(self.first(x))))
        kept.append(self.other(self.wide(kept[-1])))
        kept.append(torch.relu(self.fc(kept[-1].mean((2, 3)))))
        return self.last(kept[-1])


@pytest.mark.skipif(not INT8, reason="needs int8 kernels")
@pytest.mark.parametrize("fused", [False, True])
def test_the_rectifiers_of_an_int8_model_are_read_by_their_integers(fused: bool) -> None:
    model, x = Int8().eval(), torch.randn(16, 3, 6, 6)
    model.qconfig = quantization.get_default_qconfig("x86")
    if fused:
        model = quantization.fuse_modules(model, [["conv", "relu"]])
    quantization.prepare(model, inplace=True)
    model(x)
    quantization.convert(model, inplace=True)
    outputs: list[Tensor] = []
    before = model(x, outputs)
    diagnosis = reludiag.scan(model, [x[:8], x[8:]])
    assert diagnosis.unjudged == ()
    assert torch.equal(model(x), before)
    names = ["conv" if fused else "relu", "other", "fc:relu"]
    assert list(diagnosis.sites["site"]) == names
    assert list(diagnosis.sites["producer"]) == ["conv", "wide", "fc"]
    for name, output in zip(names, outputs, strict=True):
        units = diagnosis.units[diagnosis.units["site"] == name]
        fires = output.int_repr() > output.q_zero_point()
        fires = fires.flatten(2).any(2) if fires.ndim > 2 else fires
        assert units["fired"].tolist() == fires.sum(0).tolist(), name
        assert units["unit_axis"].unique().tolist() == ["1"]
        expected = output.dequantize().double().transpose(0, 1).flatten(1).mean(1)
        assert np.allclose(units["mean_activation"].to_numpy(), expected, rtol=1e-6, atol=1e-9)
    assert diagnosis.units.query("site == 'other'")["verdict"].tolist()[3] == "dead"


@pytest.mark.skipif(not INT8, reason="needs int8 kernels")
def test_an_int8_model_is_listed_and_watched_on_a_probe() -> None:
    """Both follow what reads the units, through operators that no rule knows."""
    model, x = Int8().eval(), torch.randn(16, 3, 6, 6)
    model.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(model, inplace=True)
    model(x)
    quantization.convert(model, inplace=True)
    assert [each.name for each in list_sites(model, [x]).sites] == ["relu", "other", "fc:relu"]
    with reludiag.Monitor(model, probe=x) as monitor:
        monitor.step()
    diagnosis = monitor.diagnose()
    assert diagnosis.dead == reludiag.scan(model, [x]).dead > 0
    # Its weights cannot be drawn again, to see how many would be dead by chance.
    assert not any("drawn again" in item.what for item in diagnosis.causes[0].evidence)


@pytest.mark.skipif(not INT8, reason="needs int8 kernels")
def test_a_fused_layer_of_dynamic_int8_is_read_over_tokens() -> None:
    """Its output is floating point; as many tokens as features, so that the shape says nothing."""
    layer = torch.ao.nn.intrinsic.quantized.dynamic.LinearReLU(4, 6)
    model = nn.Sequential(layer)
    diagnosis = reludiag.scan(model, [torch.randn(8, 6, 4)])
    assert diagnosis.sites[["samples", "units", "unit_axis"]].values.tolist() == [[8, 6, "2"]]


def test_a_recurrent_cell_in_a_loop_is_one_site_whose_steps_are_positions() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNNCell(4, 8, nonlinearity="relu")

        def forward(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
            state = x.new_zeros(len(x), 8)
            for step in range(x.shape[1]):
                state = self.cell(x[:, step], state)
                if keep is not None:
                    keep.append(state)
            return -state

    torch.manual_seed(0)
    model, batches = Loop().double(), [torch.randn(16, 7, 4), torch.randn(9, 3, 4)]
    with torch.no_grad():
        model.cell.bias_ih[:2] = -50.0
    expected = torch.zeros(8)
    for batch in batches:
        states: list[Tensor] = []
        model(batch.double(), states)
        expected += (torch.stack(states) > 0).any(0).sum(0)
    diagnosis = reludiag.scan(model, [batch.double() for batch in batches])
    (site,) = diagnosis.sites.to_dict("records")
    assert (site["site"], site["samples"], site["units"]) == ("cell", 25, 8)
    assert list(diagnosis.units.fired) == expected.tolist()
    apart = reludiag.scan(model, [batches[0].double()], merge_calls=False)
    assert len(apart.sites) == 7

"""Inputs as people have them: what `forward` gets of a batch, how many samples that is, and what is
said where it does not fit.
"""

import contextlib
import copy
import functools
import re
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

import reludiag
from reludiag.loading import load_batches, read_checkpoint
from reludiag.measure.site_list import list_sites
from reludiag.scanning import scan_checkpoints


class Net(nn.Module):
    """Four inputs, six units. `forward` remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu = nn.Linear(4, 6), nn.ReLU()
        self.calls: list[dict[str, Any]] = []

    def run(self, x: Tensor, **others: Any) -> Tensor:
        self.calls.append({"x": x, **others})
        return self.relu(self.fc(x))


class One(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Two(Net):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.run(x + shift, shift=shift)


class Masked(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.run(x, mask=mask)


class Loss(Net):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("targets are needed in training")
        return self.run(x, targets=targets)


class Labelled(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(x, y=y)


class Anything(Net):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.run(*args, **kwargs)


class Whole(Net):
    """It takes a whole batch, whatever that is."""

    def forward(self, data: Any) -> Tensor:
        x = data["x"] if isinstance(data, dict) else data.x
        return self.run(x, data=data)


class Pair(NamedTuple):
    x: Tensor
    mask: Tensor


class Unnamed(NamedTuple):
    image: Tensor
    label: Tensor


@dataclass(frozen=True)
class Record:
    x: Tensor
    shift: Tensor
    text: str = "a word"


class Graph:
    """As torch_geometric.data.Data and Batch are used: attributes, `keys()`, `num_nodes`."""

    def __init__(self, graphs: int = 1, **values: Tensor) -> None:
        vars(self).update(values)
        if graphs > 1:
            self.num_graphs = graphs

    def keys(self) -> list[str]:
        return [name for name in vars(self) if name != "num_graphs"]

    @property
    def num_nodes(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Any]:
        return iter([(name, getattr(self, name)) for name in self.keys()])

    def to(self, device: Any) -> "Graph":
        for name in self.keys():
            setattr(self, name, getattr(self, name).to(device))
        return self

    x: Tensor


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
Y = torch.arange(8)
ONES = torch.ones(8, 4)


def counts(model: nn.Module, batches: Any, **settings: Any) -> tuple[int, set[int], str]:
    """Samples of the header, samples of the sites, and the notes."""
    diagnosis = reludiag.scan(model, batches, **settings)
    notes = " ".join(diagnosis.head.notes)
    return diagnosis.head.samples, set(diagnosis.units["samples"]), notes


# What forward gets


@pytest.mark.parametrize(
    ("model", "batch", "names", "note"),
    [
        (One(), X, {"x"}, ""),
        (One(), X.numpy(), {"x"}, ""),
        (One(), [X], {"x"}, ""),
        (One(), (X, Y), {"x"}, ""),
        (One(), [X.numpy(), Y.numpy()], {"x"}, ""),
        (One(), (X, Y, Y), {"x"}, r"Of the 3 values in a batch, forward\(x\) was given the first"),
        (One(), [X, X.flip(0)], {"x"}, "If it is a list of samples, wrap it in a tuple"),
        (One(), {"x": X, "idx": Y}, {"x"}, r"forward\(x\) does not take it: idx"),
        (One(), ({"x": X}, Y), {"x"}, "was given the first value"),
        (Two(), (X, ONES), {"x", "shift"}, ""),
        (Two(), (X, ONES, Y), {"x", "shift"}, "was given the first 2 values"),
        (Two(), {"shift": ONES, "x": X, "labels": Y}, {"x", "shift"}, "labels"),
        (Two(), Record(X, ONES), {"x", "shift"}, "does not take it: text"),
        (Masked(), (X, Y), {"x"}, "To fill mask too, make each batch a dict"),
        (Masked(), Pair(X, Y), {"x", "mask"}, ""),
        (Masked(), UserDict({"x": X, "mask": Y}), {"x", "mask"}, ""),
        (Masked(), {"x": X, "labels": Y}, {"x"}, "labels"),
        (One(), Unnamed(X, Y), {"x"}, ""),
        (Loss(), (X, Y), {"x"}, "taken for labels"),
        (Loss(), {"x": X, "targets": Y}, {"x"}, "only the loss needs it: targets"),
        (Labelled(), (X, Y), {"x", "y"}, ""),
        (Labelled(), {"x": X, "y": Y}, {"x", "y"}, ""),
        (Anything(), (X, Y), {"x"}, "the first value"),
        (Anything(), {"x": X, "more": Y, "labels": Y}, {"x", "more"}, "labels"),
        (Whole(), {"x": X}, {"x", "data"}, ""),
        (Whole(), Record(X, ONES), {"x", "data"}, ""),
        (Whole(), Graph(x=X, edge_index=Y.view(2, 4)), {"x", "data"}, ""),
        (Two(), Graph(x=X, shift=ONES, edge_index=Y), {"x", "shift"}, "edge_index"),
    ],
)
def test_a_batch_is_matched_to_the_parameters_of_forward(
    model: Net, batch: Any, names: set[str], note: str
) -> None:
    model = copy.deepcopy(model)
    diagnosis = reludiag.scan(model, [batch])
    assert {name for name, value in model.calls[0].items() if value is not None} == names
    notes = "\n".join(diagnosis.head.notes)
    assert len(diagnosis.head.notes) == (1 if note else 0), notes
    assert re.search(note, notes), notes
    assert (diagnosis.head.samples, set(diagnosis.units["samples"])) == (8, {8})


def test_in_training_mode_forward_gets_the_targets_that_it_takes() -> None:
    for batch in ((X, Y), {"x": X, "targets": Y}):
        model = Loss()
        assert counts(model, [batch], train_mode=True) == (8, {8}, "")
        assert model.calls[0]["targets"] is Y


def wrapped(model: nn.Module, how: str) -> nn.Module:
    class PassesOn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    if how == "partial":
        model.forward = functools.partial(model.forward, shift=ONES)
    elif how == "decorated":
        model.forward = functools.wraps(model.forward)(lambda *a, f=model.forward, **k: f(*a, **k))
    return {
        "parallel": lambda: nn.DataParallel(model),
        "averaged": lambda: torch.optim.swa_utils.AveragedModel(model),
        "passes on": PassesOn,
    }.get(how, lambda: model)()


@pytest.mark.parametrize("how", ["parallel", "averaged", "passes on", "decorated"])
def test_a_wrapper_takes_what_the_model_in_it_takes(how: str) -> None:
    for batch in ((X, ONES, Y), {"x": X, "shift": ONES, "idx": Y}):
        samples, of_sites, notes = counts(wrapped(Two(), how), [batch])
        assert (samples, of_sites) == (8, {8})
        assert "forward(x, shift)" in notes


def test_a_parameter_that_is_bound_already_is_not_filled() -> None:
    assert counts(wrapped(Two(), "partial"), [(X, Y)])[:2] == (8, {8})


@pytest.mark.parametrize(
    ("model", "batch", "sentence"),
    [
        (Two(), X, r"forward\(x, shift\) does not fit a batch of \[8, 4\] float32"),
        (Two(), [(X,)], r"forward\(x, shift\) does not fit"),
        (Two(), {"x": X}, r"forward\(x, shift\) does not fit a batch of x \[8, 4\] float32"),
        (Two(), {"a": X, "b": Y}, r"takes none of the names in the batch: a \[8, 4\] float32, b"),
        (One(), {"text": "abc"}, "no tensor among its inputs"),
    ],
)
def test_a_batch_that_does_not_fit_is_told_with_what_forward_takes(
    model: nn.Module, batch: Any, sentence: str
) -> None:
    with pytest.raises(reludiag.DataError, match=sentence):
        reludiag.scan(model, [batch] if isinstance(batch, Tensor | dict) else batch)


def test_data_may_be_one_batch_or_a_function() -> None:
    sources: list[Any] = [
        {"x": X}, Pair(X, Y), Record(X, ONES), Graph(x=X), lambda: [X], lambda: X, lambda: {"x": X}
    ]  # fmt: skip
    for source in sources:
        model = Whole() if isinstance(source, Graph) else Masked()
        assert counts(model, source)[:2] == (8, {8})


def test_a_spec_gives_any_kind_of_batch(tmp_path: Path) -> None:
    (tmp_path / "sources.py").write_text(
        "from tests.test_inputs import ONES, X, Y, Graph, Record\n"
        "record = Record(X, ONES)\n"
        "def pairs(): return [(X, ONES, Y)]\n"
        "def named(): return {'x': X, 'shift': ONES}\n"
        "def graph(): return Graph(x=X, shift=ONES)\n"
    )
    for name in ("record", "pairs", "named", "graph"):
        batches = load_batches(f"{tmp_path / 'sources.py'}:{name}")
        assert counts(Two(), batches())[:2] == (8, {8})
        assert counts(Two(), batches)[:2] == (8, {8})


def test_an_object_of_which_nothing_is_known_is_passed_whole_and_is_one_sample() -> None:
    class Opaque:
        __slots__ = ("x",)

        def __init__(self, x: Tensor) -> None:
            self.x = x

        def to(self, device: Any) -> "Opaque":
            return Opaque(self.x.to(device))

    assert counts(Whole(), [Opaque(X), Opaque(X)])[:2] == (2, {2})


def test_a_batch_is_not_changed() -> None:
    graph = Graph(x=X.double())
    samples, _, notes = counts(Whole(), graph)
    assert samples == 8
    assert graph.x.dtype == torch.float64
    assert "The data is float64 and the model's weights are float32" in notes


# How many samples it is


class Padded(Net):
    def forward(self, sequences: list[Tensor]) -> Tensor:
        return self.run(pad_sequence(sequences, batch_first=True))


class Unpacked(Net):
    def forward(self, packed: Any) -> Tensor:
        return self.run(pad_packed_sequence(packed, batch_first=True)[0])


class Pooled(Net):
    """The mean over the nodes of each graph."""

    def forward(self, data: Any) -> Tensor:
        sums = torch.zeros(data.num_graphs, 4).index_add(0, data.batch, data.x)
        return self.run(sums)


SEQUENCES = [torch.randn(50, 4), torch.randn(48, 4), torch.randn(3, 4)]


@pytest.mark.parametrize(
    ("model", "batch", "samples"),
    [
        (Padded(), (SEQUENCES,), 3),
        (Padded(), (SEQUENCES, Y[:3]), 3),
        (Padded(), SEQUENCES, 3),
        (Padded(), {"sequences": SEQUENCES}, 3),
        (Unpacked(), pack_sequence(SEQUENCES), 3),
        (Unpacked(), (pack_sequence(SEQUENCES), Y[:3]), 3),
        (Pooled(), Graph(2, x=X, batch=Y // 4), 2),
        (Whole(), Graph(1, x=X), 8),
        (Whole(), Record(X, ONES), 8),
    ],
)
def test_the_header_counts_samples_and_no_site_counts_more(
    model: nn.Module, batch: Any, samples: int
) -> None:
    model.fc.bias.data[:2] = -1e4  # type: ignore[union-attr, index, operator]
    for batches in ([batch], [batch, batch]):
        of_header, of_sites, _ = counts(model, batches)
        assert of_header == len(batches) * samples
        # Where the rows of a site cannot be followed to the samples, a call is one sample.
        assert of_sites <= {of_header, len(batches)}


class Detector(nn.Module):
    """As torchvision's detectors: a list of images, and targets that training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 6, 3), nn.ReLU()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training:
            assert targets is not None
            assert [set(target) for target in targets] == [{"boxes"}] * len(images)
        images = [nn.functional.pad(image, (0, 9 - image.shape[-1])) for image in images]
        return self.relu(self.conv(torch.stack(images)))


@pytest.mark.parametrize("train_mode", [False, True])
@pytest.mark.parametrize("kind", [list, tuple])
def test_images_in_a_list_are_samples(train_mode: bool, kind: Any) -> None:
    images = kind(torch.randn(3, 9, width) for width in (9, 8, 7, 9))
    targets = kind({"boxes": torch.zeros(2, 4)} for _ in images)
    of_header, of_sites, _ = counts(Detector(), [(images, targets)], train_mode=train_mode)
    assert of_header == 4
    assert of_sites <= {4, 1}


def test_a_list_for_which_forward_declares_a_list_is_one_value() -> None:
    of_header, of_sites, _ = counts(Detector(), [[torch.randn(3, 9, 9)] * 5])
    assert of_header == 5
    assert of_sites <= {5, 1}


def unbatched() -> dict[str, tuple[nn.Module, Tensor]]:
    return {
        "linear": (nn.Sequential(nn.Linear(64, 6), nn.ReLU()), torch.randn(64)),
        "norm": (
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 6), nn.ReLU()),
            torch.randn(64),
        ),
        "convolution": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), torch.randn(3, 8, 8)),
        "sequence": (nn.Sequential(nn.Conv1d(5, 6, 3), nn.ReLU()), torch.randn(5, 9)),
        "volume": (nn.Sequential(nn.Conv3d(2, 6, 3), nn.ReLU()), torch.randn(2, 5, 5, 5)),
        "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.ReLU()), torch.randn(3, 8, 8)),
    }


@pytest.mark.parametrize("name", sorted(unbatched()))
def test_one_sample_without_a_batch_axis_is_one_sample(name: str) -> None:
    model, x = unbatched()[name]
    assert counts(model, x[None])[:2] == (1, {1})
    assert counts(model, [x])[:2] == (1, {1})
    assert counts(model, [x] * 5)[:2] == (5, {5})
    assert counts(model, [(x, 3), (x, 4)])[:2] == (2, {2})
    if x.ndim == 1:
        assert counts(model, x)[:2] == (1, {1})


@pytest.mark.parametrize(
    ("layers", "x"),
    [
        ([nn.Unflatten(0, (1, 64)), nn.Linear(64, 6)], torch.randn(64)),
        ([nn.Flatten(0), nn.Linear(48, 6)], torch.randn(3, 4, 4)),
        ([nn.Unflatten(0, (1, 3)), nn.Conv2d(3, 6, 3)], torch.randn(3, 8, 8)),
    ],
)
def test_one_sample_that_the_model_reshapes_is_one_sample(
    layers: list[nn.Module], x: Tensor
) -> None:
    assert counts(nn.Sequential(*layers, nn.ReLU()), [x, x])[:2] == (2, {2})


def test_rows_remain_samples_where_a_layer_takes_them_for_samples() -> None:
    class Scalars(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(1, 6), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.fc(x[:, None]))

    assert counts(Scalars(), [torch.randn(8)])[:2] == (8, {8})
    ids = nn.Sequential(nn.Embedding(9, 6), nn.ReLU())
    assert counts(ids, [Y])[:2] == (8, {8})
    grey = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Conv2d(1, 6, 3), nn.ReLU())
    assert counts(grey, [torch.randn(4, 8, 8)])[0] == 4


def test_a_training_on_single_samples_counts_one_each() -> None:
    """As in reinforcement learning: `policy(observation)`. A Monitor rests after a while."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=100) as monitor:
        for _ in range(100):
            optimizer.zero_grad()
            model(torch.randn(64)).sum().backward()
            optimizer.step()
    assert set(monitor.diagnose().units["samples"]) == {100}


# Types


@pytest.mark.parametrize(
    ("data", "weights"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_floats_of_another_type_are_cast_and_that_is_said(
    data: torch.dtype, weights: torch.dtype
) -> None:
    model = One().to(weights)
    samples, of_sites, notes = counts(model, [X.to(data), X.to(data)])
    assert (samples, of_sites) == (16, {16})
    assert f"data was cast to {str(weights).removeprefix('torch.')}" in notes
    assert counts(model, [X.to(data)], dtype=weights) == (8, {8}, "")


def test_a_model_that_casts_for_itself_gets_its_data_as_it_is() -> None:
    class Fine(One):
        def forward(self, x: Tensor) -> Tensor:
            return self.run((x - 1e9).float())

    near = X.double() + 1e9
    fine = Fine()
    assert counts(fine, [near]) == (8, {8}, "")
    assert torch.allclose(fine.calls[-1]["x"], X, atol=1e-6)

    class Scaled(One):
        def forward(self, x: Tensor) -> Tensor:
            return self.run(x.float() / 255)

    assert counts(Scaled(), [torch.randint(256, (8, 4), dtype=torch.uint8)]) == (8, {8}, "")


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (torch.randint(256, (8, 4), dtype=torch.uint8), r"uint8 .* x\.float\(\) / 255"),
        ((torch.zeros(8, 4, dtype=torch.long), X), "int64 first.* put the inputs first"),
        (torch.zeros(8, 4, dtype=torch.bool), "bool first"),
        (torch.empty(8, 4, device="meta"), "on the meta device"),
        (torch.full((8, 4), float("nan")).to_sparse(), "NaN"),
    ],
)
def test_values_that_the_model_cannot_take_are_refused_with_a_sentence(
    batch: Any, sentence: str
) -> None:
    with pytest.raises(reludiag.DataError, match=sentence) as caught:
        reludiag.scan(One(), [batch])
    assert "Traceback" not in str(caught.value)
    assert "RuntimeError" not in str(caught.value)


def test_an_error_inside_the_model_is_told_as_it_is() -> None:
    class Broken(One):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.long:
                return self.run(torch.zeros(2, 4).double())
            return torch.relu(x, inplace=True)  # type: ignore[call-arg]

    for batch in (X, Y):
        with pytest.raises(reludiag.DataError, match="Error: ") as caught:
            reludiag.scan(Broken(), [batch])
        assert str(caught.value.__cause__) in str(caught.value)


def test_a_model_without_values_is_refused_with_a_sentence() -> None:
    with pytest.raises(reludiag.ModelError, match=r"meta device.*load_state_dict"):
        reludiag.scan(One().to("meta"), [X])


# Every way in


def test_every_way_in_takes_the_same_batches(tmp_path: Path) -> None:
    batches = [Record(X.double(), ONES.double()), (X.double(), ONES.double(), Y)]
    torch.save(Two().state_dict(), tmp_path / "two.pt")
    checkpoint = read_checkpoint(str(tmp_path / "two.pt"))
    over_time = scan_checkpoints(Two(), [checkpoint, checkpoint], lambda: batches)
    assert over_time.head.samples == 16
    examined = reludiag.examine_initialization(Two(), batches, seeds=1)
    assert examined.samples == 16
    assert any("cast to float32" in note for note in examined.notes)
    assert list_sites(Two(), batches).sites[0].units == 6
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with reludiag.Monitor(model, optimizer, probe=batches, every=1, warn_over=None) as monitor:
        with torch.no_grad():
            model.fc.bias[:2] = -1e4  # they die, so that deaths are examined too
        optimizer.step()
    diagnosis = monitor.diagnose()
    assert list(diagnosis.units["verdict"][:2]) == ["dead", "dead"]
    assert set(diagnosis.units["samples"]) == {16}
    assert any("cast to float32" in note for note in diagnosis.head.notes)


# Watching never ends a training


class Tagged(Tensor):
    """A subclass that carries something, as fastai's and MONAI's do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Boxed(Tensor):
    """A subclass whose operators are its own: it holds another tensor."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Boxed":
        boxed: Boxed = Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, requires_grad=inner.requires_grad
        )
        boxed.inner = inner
        return boxed

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def opened(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(opened(item) for item in value)
            return value.inner if isinstance(value, Boxed) else value

        result = func(*opened(args), **{k: opened(v) for k, v in (kwargs or {}).items()})
        return Boxed(result) if isinstance(result, Tensor) else result


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class Aggregated(nn.Module):
    """A graph convolution, with the edges as a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, edges: Tensor) -> Tensor:
        return torch.relu(torch.sparse.mm(edges, self.fc(X)))


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(torch.view_as_real(x)[..., 0]))


class Nesting(nn.Module):
    """It makes nested tensors on its way, of a site that can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        nested = torch.nested.as_nested_tensor([x[:3], x[3:]], layout=torch.jagged)
        return torch.cat([torch.relu(self.second(nested)).values(), x], dim=1)


def jagged() -> Tensor:
    return torch.nested.nested_tensor([X[:3], X[3:]], layout=torch.jagged)


def strided() -> Tensor:
    return torch.nested.nested_tensor([X[:3], X[3:]])


def modules() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], bool]] = {
    # how the model is made, its input, whether the rectifier can be read
    "jagged": (Functional, jagged, False),
    "jagged, modules": (modules, jagged, False),
    "strided nested": (Functional, strided, False),
    "strided nested, modules": (modules, strided, False),
    "made on the way": (Nesting, lambda: X, True),
    "COO": (Aggregated, lambda: torch.eye(8).to_sparse(), True),
    "CSR": (Aggregated, lambda: torch.eye(8).to_sparse_csr(), True),
    "tagged": (Functional, lambda: X.as_subclass(Tagged), True),
    "tagged, modules": (modules, lambda: X.as_subclass(Tagged), True),
    "own operators": (Functional, lambda: Boxed(X), False),
    "own operators, modules": (modules, lambda: Boxed(X), False),
    "complex": (Spectral, lambda: torch.complex(X, X), True),
}


def train(model: nn.Module, x: Tensor, steps: int = 3) -> list[Tensor]:
    """The weights after a few steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(x)
        if out.is_nested:
            out = torch.cat(list(out.unbind()))
        out.square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", KINDS)
def test_watching_any_kind_of_tensor_leaves_the_training_as_it_is(
    kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    make, make_input, is_read = KINDS[kind]
    torch.manual_seed(1)
    model = make()
    bare = train(copy.deepcopy(model), make_input())
    with reludiag.Monitor(model, every=2, warn_over=None) as monitor:
        hook = model.register_forward_hook(lambda *_: None)
        watched = train(model, make_input())
        hook.remove()
        monitor.step()
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    assert not [w for w in recwarn if "reludiag" in str(w.message)]
    diagnosis = monitor.diagnose()
    notes = " ".join(diagnosis.head.notes)
    if is_read:
        site = diagnosis.units[diagnosis.units["site"] == diagnosis.units["site"].iloc[0]]
        assert set(site["samples"]) == {24}
    else:
        assert set(diagnosis.units["samples"]) <= {0}
        assert "cannot be read" in notes
    assert ("cannot be read" in notes) == (not is_read or kind == "made on the way")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", KINDS)
def test_scanning_any_kind_of_tensor_reads_it_or_says_so(kind: str) -> None:
    make, make_input, is_read = KINDS[kind]
    model = make()
    expectation: Any = contextlib.nullcontext()
    if not is_read and make is Functional:  # a module is listed as unobserved
        expectation = pytest.raises(reludiag.ModelError, match="cannot be read")
    with expectation:
        diagnosis = reludiag.scan(model, [make_input()])
        if is_read:
            assert set(diagnosis.units["samples"]) >= {8}
        else:
            assert set(diagnosis.units["samples"]) <= {0}
            assert "cannot be read" in " ".join(diagnosis.head.notes)


@pytest.mark.parametrize("make", [Functional, modules])
def test_a_subclass_does_not_notice_that_it_is_watched(make: Callable[[], nn.Module]) -> None:
    class Logged(Tensor):
        calls: ClassVar[list[str]] = []

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            cls.calls.append(getattr(func, "__qualname__", str(func)))
            return super().__torch_function__(func, types, args, kwargs or {})

    model, x = make(), X.as_subclass(Logged)
    train(copy.deepcopy(model), x)
    bare = list(Logged.calls)
    Logged.calls.clear()
    with reludiag.Monitor(model, warn_over=None) as monitor:
        train(model, x)
        watched = list(Logged.calls)
        monitor.step()
    assert watched == bare


def test_a_part_in_inference_mode_is_watched() -> None:
    class Teacher(nn.Module):
        """Its first rectifier is in inference mode, the second is not."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                x = torch.where(x > 0, x * 1, torch.zeros_like(x))
                mask = x > 0
                x += 1
                x = mask * x  # this is none: the mask is from before
            return torch.relu(self.fc(x.clone()))

    model = Teacher()
    bare = train(copy.deepcopy(model), X)
    with reludiag.Monitor(model, warn_over=None, every=2) as monitor:
        watched = train(model, X)
        monitor.step()
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    with torch.inference_mode():
        scanned = reludiag.scan(model, [X]).sites
    assert len(scanned) == len(monitor.diagnose().sites)
    assert "fc:relu" in set(scanned["site"])
    assert not any("mul" in name for name in scanned["site"])


def test_units_that_go_into_a_nested_tensor_have_an_unknown_reader() -> None:
    site = list_sites(Nesting(), [X]).sites[0]
    assert site.consumers is not None
    assert "unknown" in {consumer.kind for consumer in site.consumers}


def test_a_pass_with_fake_tensors_counts_nothing() -> None:
    model = Functional()
    with reludiag.Monitor(model, every=2) as monitor:
        with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
            model(fakes.from_tensor(X))
        train(model, X)
        monitor.step()
    assert set(monitor.diagnose().units["samples"]) == {24}


def test_a_subclass_is_read_as_the_tensor_that_it_is() -> None:
    model = Functional()
    plain = reludiag.scan(model, [X]).units
    assert reludiag.scan(model, [X.as_subclass(Tagged)]).units.equals(plain)
    assert reludiag.scan(model, [np.asarray(X)]).units.equals(plain)


def test_two_inputs_in_a_tuple_beside_their_labels_are_both_passed() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 6), nn.Linear(3, 6)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return torch.relu(self.left(left) + self.right(right))

    batch = ((torch.randn(10, 5), torch.randn(10, 3)), torch.zeros(10, dtype=torch.int64))
    diagnosis = reludiag.scan(Two(), [batch])
    assert diagnosis.head.samples == 10

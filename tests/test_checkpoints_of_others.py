"""Checkpoints as people have them: with other objects in them, whole models, averages, parts."""

import argparse
import collections
import dataclasses
import datetime
import enum
import pathlib
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import reludiag
from reludiag.loading import load_weights, read_checkpoint

PROTOCOLS = (2, 3, 4, 5)


class Mode(enum.Enum):
    FAST = "fast"


@dataclasses.dataclass
class Config:
    width: int
    mode: Mode


class Settings(dict):  # type: ignore[type-arg]
    pass


Point = collections.namedtuple("Point", "x y")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x))
        return out


def trained(seed: int = 1) -> Net:
    torch.manual_seed(seed)
    model = Net()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value))
    return model


def state(seed: int = 1) -> dict[str, Tensor]:
    return dict(trained(seed).state_dict())


def loaded(path: Path, seed: int = 1, ema: bool = False, strict: bool = True) -> list[str]:
    """The notes, once the weights that were loaded are those of `trained(seed)`."""
    target = Net()
    notes = load_weights(target, read_checkpoint(path, ema), strict)
    for name, value in target.state_dict().items():
        assert torch.equal(value, state(seed)[name]), name
    return notes


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


BESIDE = {
    "arguments": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")),
    "path": pathlib.PurePosixPath("a/b"),
    "scalar": np.float64(0.5),
    "array": np.arange(5),
    "random state": np.random.get_state(),
    "enum": Mode.FAST,
    "dataclass": Config(3, Mode.FAST),
    "time": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "delta": datetime.timedelta(3),
    "set": {1, "a"},
    "complex": 1j,
    "default dict": collections.defaultdict(list, a=[1]),
    "named tuple": Point(1, 2),
    "dict of its own": Settings(a=1),
    "function": load_weights,
    "class": Net,
    "slice": slice(1, 2),
    "random": torch.get_rng_state(),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("old", [False, True])
def test_objects_beside_the_weights_are_no_hindrance(
    tmp_path: Path, protocol: int, old: bool
) -> None:
    content = {**BESIDE, "model": state(), "epoch": 3}
    path = saved(
        tmp_path / "w.pt",
        content,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not old,
    )
    notes = loaded(path)
    assert any("argparse.Namespace" in note and "nothing in them was run" in note for note in notes)
    assert read_checkpoint(path).step == 3


@pytest.mark.parametrize("name", BESIDE)
def test_each_object_alone_is_none_either(tmp_path: Path, name: str) -> None:
    loaded(saved(tmp_path / "w.pt", {"state_dict": state(), name: BESIDE[name]}))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("wrap", [nn.Module.eval, lambda m: {"model": m}, nn.DataParallel])
def test_a_whole_model_gives_its_weights(
    tmp_path: Path, protocol: int, old: bool, wrap: Any
) -> None:
    path = saved(
        tmp_path / "w.pt",
        wrap(trained()),
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not old,
    )
    assert any("torch.nn.modules.linear.Linear" in note for note in loaded(path))


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_gives_its_weights(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"net": state()}, protocol))
    loaded(tmp_path / "w.pkl")


@pytest.mark.parametrize("protocol", range(1, 6))
def test_weights_can_be_arrays_of_numpy(tmp_path: Path, protocol: int) -> None:
    arrays = {name: value.numpy() for name, value in state().items()}
    arrays["head.weight"] = np.asfortranarray(arrays["head.weight"])
    content = {"model": arrays, "by": "a model zoo"}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    loaded(tmp_path / "w.pkl")


def test_plain_weights_have_no_note(tmp_path: Path) -> None:
    for protocol in PROTOCOLS:
        assert loaded(saved(tmp_path / "w.pt", state(), pickle_protocol=protocol)) == []


def test_every_dtype_and_layout_is_read_as_it_was(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int8]
    dtypes += [torch.uint8, torch.int16, torch.int64, torch.bool, torch.uint16, torch.float8_e5m2]
    content = {str(dtype): torch.arange(6.0).view(2, 3).to(dtype) for dtype in dtypes}
    content |= {"view": torch.arange(12.0).view(3, 4).t()[1:], "same": torch.ones(1).expand(4)}
    content |= {"empty": torch.empty(0, 3), "number": torch.tensor(3.0)}
    for old in (False, True):
        path = saved(tmp_path / "w.pt", content, _use_new_zipfile_serialization=not old)
        weights = read_checkpoint(path).weights
        assert weights.keys() == content.keys()
        for name, value in content.items():
            assert weights[name].dtype is value.dtype
            assert weights[name].stride() == value.stride()
            assert torch.equal(weights[name].to(torch.complex64), value.to(torch.complex64))


def test_quantized_tensors_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, once in a process
        one = torch.quantize_per_tensor(x, 0.1, 3, torch.quint8)
    rows = torch.quantize_per_channel(
        x, torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.int64), 0, torch.qint8
    )
    weights = read_checkpoint(saved(tmp_path / "w.pt", {"one": one, "rows": rows})).weights
    for name, value in {"one": one, "rows": rows}.items():
        assert torch.equal(weights[name].int_repr(), value.int_repr())
        assert torch.equal(weights[name].dequantize(), value.dequantize())


def test_a_wrong_checksum_is_noted(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", state())
    content = bytearray(path.read_bytes())
    place = content.index(state()["head.weight"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    notes = load_weights(Net(), read_checkpoint(path))
    assert any("checksums of 1 tensors do not match" in note for note in notes)


# Where the weights are


PLACES: dict[str, Any] = {
    "any key": {"policy_weights": state(), "lr": 0.1},
    "deep": {"a": {"b": {"c": {"d": state()}}}},
    "in a list": [state(), {"lr": 0.1}],
    "in a tuple": (3, state()),
    "in an object": Config(3, state()),  # type: ignore[arg-type]
    "nested by part": {
        part: {n.partition(".")[2]: v for n, v in state().items() if n.startswith(part)}
        for part in ("encoder", "head")
    },
    "parts under keys that name them": {
        f"{part}_state_dict": {n.partition(".")[2]: v for n, v in state().items() if part in n}
        for part in ("encoder", "head")
    },
    "parts that are parallel": {
        part: {f"module.{n.partition('.')[2]}": v for n, v in state().items() if part in n}
        for part in ("encoder", "head")
    },
    "after any prefix": prefixed("backbone.trunk.", state()),
    "after a prefix of an adapter library, merged": prefixed("base_model.model.", state()),
    "after a prefix without a dot": prefixed("model_", state()),
    "compiled inside": {
        name.replace("encoder.", "encoder._orig_mod."): value for name, value in state().items()
    },
    "beside an optimizer": {
        "model": state(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 3)}}, "param_groups": []},
    },
    "beside another network": {
        "generator": state(),
        "discriminator": {"0.weight": torch.ones(2, 2)},
    },
    "beside another network, flat": {**prefixed("g.", state()), "d.0.weight": torch.ones(2, 2)},
    "twice": {"last": state(), "best": state()},
    "beside its state of before": {"model": state(), "previous": state(2)},
    "a student of a teacher": {"student": state(), "teacher": state(2)},
    "a student of a teacher, flat": prefixed("student.", state()) | prefixed("teacher.", state(2)),
    "beside an average": {"weights_of_net": state(), "net_ema": state(2)},
    "beside an average, flat": prefixed("net.", state()) | prefixed("ema.module.", state(2)),
    "beside an averaged model": {
        "model": state(),
        "swa_model": {"n_averaged": torch.tensor(3), **prefixed("module.", state(2))},
    },
    "with state of its own": {**state(), "_extra_state": {"a": 1}},
    "with a tensor of its own state": {**state(), "head._extra_state": torch.ones(3)},
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_by_their_fit(tmp_path: Path, place: str) -> None:
    loaded(saved(tmp_path / "w.pt", PLACES[place]))


@pytest.mark.parametrize(
    "place", [name for name in PLACES if "average" in name or "teacher" in name]
)
def test_averages_are_loaded_on_request_and_named(tmp_path: Path, place: str) -> None:
    notes = loaded(saved(tmp_path / "w.pt", PLACES[place]), seed=2, ema=True)
    assert any("averaged weights were loaded" in note for note in notes)


def test_an_average_alone_has_to_be_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"model_ema": state(), "model": {"0.weight": torch.ones(2)}})
    with pytest.raises(reludiag.CheckpointError, match="--ema loads the averaged"):
        loaded(path)
    loaded(path, ema=True)


def test_an_averaged_model_alone_is_loaded_and_named(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(trained())
    notes = loaded(saved(tmp_path / "w.pt", averaged.state_dict()))
    assert any("averaged weights were loaded" in note for note in notes)


def test_averages_that_do_not_fit_are_not_replaced_by_others(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"model": state(), "ema": {"0.weight": torch.ones(2)}})
    with pytest.raises(reludiag.CheckpointError, match="no averaged weights that fit"):
        loaded(path, ema=True)


def test_two_that_fit_and_differ_are_not_chosen_from(tmp_path: Path) -> None:
    for content in ({"first": state(1), "second": state(2)}, [state(1), state(2)]):
        with pytest.raises(reludiag.CheckpointError, match="several weights that fit"):
            loaded(saved(tmp_path / "w.pt", content))


def test_pruning_and_weight_norm_are_applied(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Conv1d(4, 2, 1), nn.Linear(1, 5))

    model = build()
    prune.random_unstructured(model[0], "weight", 0.5)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[2])
    nn.utils.parametrizations.weight_norm(model[3], dim=None)
    target = build()
    notes = load_weights(target, read_checkpoint(saved(tmp_path / "w.pt", model.state_dict())))
    assert {"the mask of pruning was applied", "weight_norm was applied"} <= {*notes}
    assert torch.equal(target[0].weight, model[0].weight_orig * model[0].weight_mask)
    x = torch.randn(5, 4, 1)
    assert torch.allclose(target[2](x), model[2](x), rtol=1e-6, atol=1e-7)
    assert torch.allclose(target[3](x), model[3](x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"encoder.0.lora_A.weight": torch.ones(2), "encoder.0.lora_B.weight": torch.ones(2)},
            "adapter alone",
        ),
        (
            {
                **{n.replace("head.", "head.base_layer."): v for n, v in state().items()},
                "head.lora_A.default.weight": torch.ones(2),
            },
            "adapters.*beside the weights",
        ),
        (
            {
                **{n: v for n, v in state().items() if n != "head.weight"},
                "head.weight": torch.ones(4, 1, dtype=torch.int8),
                "head.SCB": torch.ones(2),
            },
            "blocks of 8 or 4 bits",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused_by_name(
    tmp_path: Path, content: Any, sentence: str
) -> None:
    with pytest.raises(reludiag.CheckpointError, match=sentence):
        loaded(saved(tmp_path / "w.pt", content))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: t.to("meta"), "meta device"),
    ],
)
def test_a_tensor_that_is_not_read_is_a_hindrance_only_if_it_is_needed(
    tmp_path: Path, make: Any, sentence: str
) -> None:
    other = {"model": state(), "graph": make(torch.ones(2, 2))}
    loaded(saved(tmp_path / "w.pt", other))
    needed = {**state(), "head.weight": make(state()["head.weight"])}
    with pytest.raises(reludiag.CheckpointError, match=sentence):
        loaded(saved(tmp_path / "w.pt", needed))


def test_the_search_is_linear_in_names_and_wrappers(tmp_path: Path) -> None:
    keys = ("state_dict", "model", "module", "net", "network", "weights", "params", "a")
    content: Any = state()
    for _ in range(30):
        content = dict.fromkeys(keys, content)
    loaded(saved(tmp_path / "w.pt", content))
    many = {f"{'module.model.net.' * 20}x{i}": torch.zeros(1) for i in range(300)}
    with pytest.raises(reludiag.CheckpointError, match="lacks"):
        loaded(saved(tmp_path / "w.pt", many))


# What is no checkpoint


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x1f\x8b\x08\x00" + bytes(40), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (b"<html><body>404</body></html>", "web page"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "tar archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b"GGUF" + bytes(40), "GGUF"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(reludiag.CheckpointError, match=sentence):
        read_checkpoint(tmp_path / "w.pt")


def test_a_zip_around_a_checkpoint_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "w.pt", state())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "w.pt", "w.pt")
    with pytest.raises(reludiag.CheckpointError, match=r"unpack it.*w\.pt"):
        read_checkpoint(tmp_path / "all.zip")


def test_whole_numbers_are_not_taken_for_weights(tmp_path: Path) -> None:
    content = {**state(), "head.weight": torch.ones(2, 4, dtype=torch.int8)}
    with pytest.raises(reludiag.CheckpointError, match=r"int8 instead of torch\.float32"):
        loaded(saved(tmp_path / "w.pt", content))


def test_a_key_that_cannot_be_printed_is_named_all_the_same(tmp_path: Path) -> None:
    content = {**state(), "a\ud800": torch.ones(1)}
    with pytest.raises(reludiag.CheckpointError, match=r"a\?") as caught:
        loaded(saved(tmp_path / "w.pt", content))
    str(caught.value).encode()

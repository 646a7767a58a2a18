"""Loading: specs, checkpoints and data, good and bad."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import reludiag
from reludiag.loading import (
    load_batches,
    load_model,
    load_weights,
    noise_batches,
    parse_arguments,
    read_checkpoint,
)

MODEL_FILE = """
import sibling
from torch import nn

WIDTH = 3
model = nn.Sequential(nn.Linear(2, 4), nn.ReLU())

class Net(nn.Sequential):
    def __init__(self, width=WIDTH):
        super().__init__(nn.Linear(2, width), nn.ReLU())
    @classmethod
    def wide(cls):
        return cls(sibling.WIDE)

def broken():
    raise LookupError("the user's own mistake")

def not_a_model():
    return [1, 2]
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    (tmp_path / "sibling.py").write_text("WIDE = 9")
    path = tmp_path / "nets.py"
    path.write_text(MODEL_FILE)
    return path


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))


# Specs


def test_a_spec_names_an_object_a_class_or_a_factory(model_file: Path) -> None:
    assert load_model(f"{model_file}:model")[0].out_features == 4
    assert load_model(f"{model_file}:Net")[0].out_features == 3
    assert load_model(f"{model_file}:Net", {"width": 5})[0].out_features == 5
    assert load_model(f"{model_file}:Net.wide")[0].out_features == 9
    assert isinstance(load_model("torch.nn:ReLU"), nn.ReLU)


def test_a_module_is_found_in_the_current_folder(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_file.parent)
    monkeypatch.syspath_prepend("")
    (model_file.parent / "nets_in_cwd.py").write_text(MODEL_FILE)
    assert load_model("nets_in_cwd:Net")[0].out_features == 3
    assert load_model("nets.py:Net")[0].out_features == 3


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("{file}:Nett", r"no attribute 'Nett'. Did you mean Net\? It has: .*model.*Net.*broken"),
        ("{file}:model.nothing", "no attribute 'nothing'"),
        ("{file}:Net.widee", "Did you mean wide"),
        ("{file}:WIDTH", "is int 3; expected a torch.nn.Module"),
        ("{file}:not_a_model", "returned list"),
        ("{file}", "names no attribute"),
        ("{file}:", "names no attribute"),
        ("nowhere.py:build", "does not exist"),
        ("{folder}/net.py:Net", "Did you mean .*nets.py"),
        ("no_such_package.models:build", "no module 'no_such_package.models'"),
    ],
)
def test_a_spec_that_leads_nowhere_says_why(model_file: Path, spec: str, sentence: str) -> None:
    with pytest.raises(reludiag.ModelError, match=sentence):
        load_model(spec.format(file=model_file, folder=model_file.parent))


def test_what_a_file_has_to_offer_is_told_ahead_of_what_it_imports(tmp_path: Path) -> None:
    file = tmp_path / "crowded.py"
    file.write_text(
        "from collections import Counter, OrderedDict\nfrom torch import nn\n"
        "from torch.nn import Linear\n\ndef build():\n    return Linear(1, 1)\n\nmodel = build()\n"
    )
    with pytest.raises(reludiag.ModelError, match="It has: build, model, Counter"):
        load_model(f"{file}:buld")


def test_an_error_in_user_code_keeps_the_users_traceback(model_file: Path) -> None:
    with pytest.raises(reludiag.UserCodeError, match="LookupError: the user's own") as caught:
        load_model(f"{model_file}:broken")
    shown = caught.value.user_traceback
    assert "in broken" in shown
    assert "specs.py" not in shown
    (model_file.parent / "wrong.py").write_text("import sibling\nx = 1 / 0")
    with pytest.raises(reludiag.UserCodeError, match="ZeroDivisionError"):
        load_model(f"{model_file.parent}/wrong.py:x")
    (model_file.parent / "exits.py").write_text("raise SystemExit(3)")
    with pytest.raises(reludiag.UserCodeError, match="SystemExit"):
        load_model(f"{model_file.parent}/exits.py:x")


def test_arguments_are_json_or_text() -> None:
    pairs = ["width=64", "sizes=[1, 2]", "name=big", "flag=true", "eq=a=b"]
    assert parse_arguments(pairs, "--model-arg") == {
        "width": 64,
        "sizes": [1, 2],
        "name": "big",
        "flag": True,
        "eq": "a=b",
    }
    with pytest.raises(reludiag.UsageError, match="KEY=VALUE"):
        parse_arguments(["width"], "--model-arg")


# Checkpoints


def assert_loads(path: Path, ema: bool = False, strict: bool = True) -> list[str]:
    source, target = net().state_dict(), net()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    notes = load_weights(target, read_checkpoint(path, ema), strict)
    loaded = target.state_dict()
    assert all(torch.equal(loaded[key], source[key]) for key in source)
    return notes


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in net().state_dict().items()}


@pytest.mark.parametrize(
    "content",
    [
        net().state_dict(),
        {"state_dict": net().state_dict(), "epoch": 3},
        {"model_state_dict": net().state_dict(), "optimizer_state_dict": {"state": {}}},
        {"model": net().state_dict(), "step": torch.tensor(5)},
        {"module": net().state_dict()},
        {"net": {"state_dict": net().state_dict()}},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.6", "global_step": 7},
        {"state_dict": prefixed("model.net.")},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_usual_wrappers_and_prefixes(tmp_path: Path, content: Any, legacy: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert_loads(path)


def test_a_prefix_is_stripped_only_if_the_result_matches(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net()

    torch.save(Wrapped().state_dict(), tmp_path / "w.pt")
    assert load_weights(Wrapped(), read_checkpoint(tmp_path / "w.pt")) == []
    assert load_weights(net(), read_checkpoint(tmp_path / "w.pt")) == [
        '"model." was removed from the keys'
    ]


def test_averaged_weights_on_request(tmp_path: Path) -> None:
    other = {key: tensor + 1 for key, tensor in net().state_dict().items()}
    path = tmp_path / "w.pt"
    torch.save({"model": other, "ema": {"module": net().state_dict()}}, path)
    assert_loads(path, ema=True)
    torch.save({"model": other}, path)
    with pytest.raises(reludiag.CheckpointError, match="no averaged weights"):
        read_checkpoint(path, ema=True)


def test_safetensors_in_one_file_and_in_shards(tmp_path: Path) -> None:
    state = net().state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "disguised.bin")
    assert_loads(tmp_path / "disguised.bin")
    folder = tmp_path / "sharded"
    folder.mkdir()
    weight_map = {}
    for index, (key, _tensor) in enumerate(state.items()):
        shard = f"model-{index % 2}.safetensors"
        weight_map[key] = shard
    for shard in set(weight_map.values()):
        part = {key: state[key] for key, name in weight_map.items() if name == shard}
        safetensors.torch.save_file(part, folder / shard)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_loads(folder)
    index_file.write_text(json.dumps({"weight_map": {"0.weight": "../w.safetensors"}}))
    with pytest.raises(reludiag.CheckpointError, match="which is not in"):
        read_checkpoint(folder)


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.relu, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    safetensors.torch.save_model(Tied(), str(tmp_path / "w.safetensors"))
    load_weights(Tied(), read_checkpoint(tmp_path / "w.safetensors"))


def _truncated(path: Path) -> None:
    torch.save(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"jpeg")


def _scripted(path: Path) -> None:
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(net()), path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder without model.safetensors"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"garbage" * 99), "neither a PyTorch file nor safetensors"),
        (_truncated, "truncated"),
        (_other_zip, r"zip file of something else \(it holds photo.jpg\)"),
        (_scripted, "TorchScript"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds a list"),
        (lambda path: torch.save({"epoch": 3, "loss": 0.5}, path), "holds no weights.*epoch, loss"),
        (lambda path: torch.save({}, path), "holds no weights"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_with_a_sentence(
    tmp_path: Path, make: Any, sentence: str
) -> None:
    path = tmp_path / "file.pt"
    make(path)
    with pytest.raises(reludiag.CheckpointError, match=sentence):
        read_checkpoint(path)


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(reludiag.CheckpointError, match="truncated"):
        read_checkpoint(path)


def test_weights_of_another_architecture_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = net().state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["0.bias"] = torch.zeros(7)
    del state["2.bias"]
    torch.save(state, path)
    with pytest.raises(reludiag.CheckpointError) as caught:
        load_weights(net(), read_checkpoint(path))
    text = str(caught.value)
    for part in ("lacks 1 of the model's tensors: 2.bias", "extra.weight", "--no-strict"):
        assert part in text
    assert "0.bias [7] instead of [4]" in text
    target = net()
    notes = load_weights(target, read_checkpoint(path), strict=False)
    assert "2 of 4 tensors were loaded" in notes[0]
    assert torch.equal(target[0].weight, state["0.weight"])


def test_nothing_in_common_is_refused_even_when_not_strict(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(reludiag.CheckpointError, match="Nothing in it matches"):
        load_weights(net(), read_checkpoint(tmp_path / "w.pt"), strict=False)


# Data


def inputs(batches: Any) -> Tensor:
    return torch.cat(list(batches))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_file_of_inputs_is_split_into_batches(tmp_path: Path, suffix: str) -> None:
    x, path = torch.randn(10, 2), tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, x.numpy())
    elif suffix == ".npz":
        np.savez(path, labels=np.zeros(10), inputs=x.numpy())
    elif suffix == ".pt":
        torch.save((x, torch.zeros(10)), path)
    else:
        safetensors.torch.save_file({"x": x}, path)
    draw = load_batches(str(path), batch_size=4)
    assert [len(batch) for batch in draw()] == [4, 4, 2]
    assert torch.equal(inputs(draw()), x)
    assert torch.equal(inputs(draw()), x)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.npy", None, "does not exist"),
        ("x.npy", b"garbage", "cannot be read as .npy"),
        ("x.pt", b"", "cannot be read as .pt"),
        ("x.safetensors", b"garbage!", "cannot be read as .safetensors"),
    ],
)
def test_a_file_that_holds_no_inputs_is_refused(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(reludiag.DataError, match=sentence):
        load_batches(str(tmp_path / name))


def test_an_array_file_with_pickles_or_without_inputs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", first=np.zeros(3), second=np.zeros(3))
    for name, sentence in [("x.npy", "cannot be read"), ("x.npz", "holds first, second")]:
        with pytest.raises(reludiag.DataError, match=sentence):
            load_batches(str(tmp_path / name))


def test_a_data_spec_is_an_iterable_a_tensor_or_a_factory(tmp_path: Path) -> None:
    path = tmp_path / "data.py"
    path.write_text(
        "import torch\n"
        "listed = [torch.zeros(2, 2)] * 3\n"
        "tensor = torch.zeros(10, 2)\n"
        "def made(n=1): return listed * n\n"
        "def stream(): yield from listed\n"
        "number = 7\n"
        "def wrong(): return 'text'\n"
        "def raises(): raise OSError('no such disk')\n"
    )
    for spec, batches in [("listed", 3), ("tensor", 1), ("made", 3), ("stream", 3)]:
        draw = load_batches(f"{path}:{spec}")
        assert len(list(draw())) == len(list(draw())) == batches
    assert len(list(load_batches(f"{path}:made", {"n": 2})())) == 6
    for spec in ("number", "wrong"):
        with pytest.raises(reludiag.DataError, match="expected an iterable of batches"):
            load_batches(f"{path}:{spec}")()
    with pytest.raises(reludiag.UserCodeError, match="no such disk"):
        load_batches(f"{path}:raises")()
    with pytest.raises(reludiag.ModelError, match="no attribute 'lost'"):
        load_batches(f"{path}:lost")


def test_noise_is_the_same_each_time() -> None:
    draw = noise_batches((3, 4), batch_size=100)
    assert [tuple(batch.shape) for batch in draw()] == [(100, 3, 4), (100, 3, 4), (56, 3, 4)]
    assert torch.equal(inputs(draw()), inputs(noise_batches((3, 4))()))

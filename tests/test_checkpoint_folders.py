"""Folders of checkpoints: of Transformers, Diffusers, DeepSpeed, Accelerate and torch itself."""

import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import reludiag
from reludiag.loading import load_weights, read_checkpoint


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))


def state() -> dict[str, Tensor]:
    return dict(net(1).state_dict())


def loaded(path: Path) -> list[str]:
    target = net()
    notes = load_weights(target, read_checkpoint(path))
    for name, value in target.state_dict().items():
        assert torch.equal(value, state()[name]), name
    return notes


def pickled(path: Path, tensors: dict[str, Any]) -> None:
    torch.save(tensors, path)


def plain(path: Path, tensors: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(tensors, path)


Write = Callable[[Path, dict[str, Tensor]], None]


def sharded(folder: Path, index: str, shard: str, write: Write) -> None:
    weight_map = {}
    for number, (name, value) in enumerate(state().items(), start=1):
        weight_map[name] = shard.format(number)
        write(folder / weight_map[name], {name: value})
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


FILES: dict[str, Write] = {
    "model.safetensors": plain,
    "pytorch_model.bin": pickled,
    "diffusion_pytorch_model.safetensors": plain,
    "diffusion_pytorch_model.bin": pickled,
    "model.fp16.safetensors": plain,
    "pytorch_model.fp16.bin": pickled,
    "diffusion_pytorch_model.fp16.safetensors": plain,
    "last.ckpt": pickled,
    "mp_rank_00_model_states.pt": lambda path, tensors: pickled(
        path, {"module": tensors, "optimizer": None, "ds_config": {}, "global_steps": 3}
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_weights_in_a_folder_are_found(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name, state())
    other = {"state": {0: {"exp_avg": torch.ones(4, 2)}}, "param_groups": []}
    for beside in ("optimizer.pt", "optimizer.bin", "scheduler.pt", "training_args.bin"):
        pickled(tmp_path / beside, other)
    (tmp_path / "config.json").write_text("{}")
    assert loaded(tmp_path) in ([], ['"module." was removed from the keys'])


@pytest.mark.parametrize(
    ("index", "shard", "write"),
    [
        ("pytorch_model.bin.index.json", "pytorch_model-{:05}-of-00004.bin", pickled),
        ("pytorch_model.bin.index.fp16.json", "pytorch_model.fp16-{:05}-of-00004.bin", pickled),
        ("model.safetensors.index.fp16.json", "model.fp16-{:05}-of-00004.safetensors", plain),
        (
            "diffusion_pytorch_model.safetensors.index.json",
            "diffusion_pytorch_model-{:05}-of-00004.safetensors",
            plain,
        ),
    ],
)
def test_shards_are_joined(tmp_path: Path, index: str, shard: str, write: Write) -> None:
    sharded(tmp_path, index, shard, write)
    loaded(tmp_path)
    if not index.endswith("fp16.json"):
        loaded(tmp_path / index)


def test_plain_weights_come_before_pickles_and_variants(tmp_path: Path) -> None:
    plain(tmp_path / "model.safetensors", state())
    plain(tmp_path / "model.fp16.safetensors", {"a": torch.ones(1)})
    pickled(tmp_path / "pytorch_model.bin", {"a": torch.ones(1)})
    loaded(tmp_path)


def test_deepspeed_names_its_latest_part(tmp_path: Path) -> None:
    for step in (1, 2):
        part = tmp_path / f"global_step{step}"
        part.mkdir()
        tensors = state() if step == 2 else net(5).state_dict()
        pickled(part / "mp_rank_00_model_states.pt", {"module": tensors})
    (tmp_path / "latest").write_text("global_step2\n")
    loaded(tmp_path)
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(reludiag.CheckpointError, match="which is not in it"):
        loaded(tmp_path)


def _stage_3(path: Path) -> None:
    pickled(path / "zero_pp_rank_0_mp_rank_00_model_states.pt", {"module": {}})


def _parallel(path: Path) -> None:
    for rank in range(2):
        pickled(path / f"mp_rank_0{rank}_model_states.pt", {"module": state()})


def _runs(path: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2"):
        (path / name).mkdir()
        plain(path / name / "model.safetensors", state())


def _several(path: Path) -> None:
    for name in ("epoch1.pt", "epoch2.pt"):
        pickled(path / name, state())


def _variants(path: Path) -> None:
    for name in ("model.fp16.safetensors", "model.bf16.safetensors"):
        plain(path / name, state())


def _adapter(path: Path) -> None:
    plain(path / "adapter_model.safetensors", {"a.lora_A.weight": torch.ones(1)})


def _outside(path: Path) -> None:
    (path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../w.bin"}}')


def _deep_index(path: Path) -> None:
    (path / "pytorch_model.bin.index.json").write_text("[" * 100_000)


def _pipe(path: Path) -> None:
    os.mkfifo(path / "pytorch_model.bin")


def _empty(path: Path) -> None:
    (path / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_stage_3, "zero_to_fp32"),
        (_parallel, "tensor parallelism"),
        (_runs, "pass a folder in it.*checkpoint-1"),
        (_several, "several checkpoints.*epoch1"),
        (_variants, "several variants"),
        (_adapter, "adapter alone"),
        (_outside, "which is not in"),
        (_deep_index, "not an index"),
        (_pipe, "not a regular file"),
        (_empty, r"pytorch_model\.bin.*is empty"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused_with_a_sentence(
    tmp_path: Path, make: Callable[[Path], None], sentence: str
) -> None:
    make(tmp_path)
    with pytest.raises(reludiag.CheckpointError, match=sentence):
        read_checkpoint(tmp_path)


# torch.distributed.checkpoint


@pytest.fixture
def distributed(tmp_path: Path) -> Path:
    """What `dcp.save` writes for a model, its optimizer and more, in a process of its own."""
    content = {
        "model": net(1).state_dict(),
        "optim": {"state": {"0.weight": {"exp_avg": torch.ones(4, 2)}}},
        "epoch": 3,
    }
    with warnings.catch_warnings(action="ignore"):
        dcp.save(content, checkpoint_id=tmp_path / "saved", no_dist=True)
    return tmp_path / "saved"


def test_a_distributed_checkpoint_is_read(distributed: Path) -> None:
    assert loaded(distributed) == ['"model." was removed from the keys']
    assert not any("optim" in name for name in read_checkpoint(distributed).weights)
    for part in distributed.iterdir():
        with pytest.raises(reludiag.CheckpointError, match="pass the folder"):
            read_checkpoint(part)


def test_accelerate_keeps_one_in_a_folder(distributed: Path) -> None:
    distributed.rename(distributed.parent / "pytorch_model_fsdp_0")
    loaded(distributed.parent)


def chunks(folder: Path, parts: dict[tuple[int, ...], Tensor], size: tuple[int, ...]) -> None:
    """A distributed checkpoint of one tensor, `weight`, in parts."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    listed, stored = [], {}
    with (folder / "__0_0.distcp").open("wb") as file:
        for offsets, value in parts.items():
            start = file.tell()
            torch.save(value, file)
            shape = torch.Size(value.shape)
            listed.append(ChunkStorageMetadata(torch.Size(offsets), shape))
            stored[MetadataIndex("weight", torch.Size(offsets))] = _StorageInfo(
                "__0_0.distcp", start, file.tell() - start
            )
    properties = TensorProperties(torch.float32)
    entry = TensorStorageMetadata(properties, torch.Size(size), listed)
    (folder / ".metadata").write_bytes(
        pickle.dumps(Metadata({"weight": entry}, storage_data=stored))
    )


def test_parts_of_a_tensor_are_put_in_their_places(tmp_path: Path) -> None:
    whole = torch.randn(5, 3)
    chunks(tmp_path, {(0, 0): whole[:2].clone(), (2, 0): whole[2:].clone()}, (5, 3))
    target = nn.Linear(3, 5, bias=False)
    load_weights(target, read_checkpoint(tmp_path))
    assert torch.equal(target.weight, whole)


@pytest.mark.parametrize(
    ("offsets", "size", "sentence"),
    [
        ([(0, 0)], (5, 3), "not the whole"),
        ([(0, 0), (1, 0)], (4, 3), "overlap"),
        ([(0, 0), (3, 0)], (4, 3), "outside"),
        ([(0, 0)], (1 << 30, 1 << 20), "more bytes than its files"),
    ],
)
def test_parts_that_lie_are_refused(
    tmp_path: Path, offsets: list[tuple[int, int]], size: tuple[int, int], sentence: str
) -> None:
    chunks(tmp_path, {place: torch.ones(2, 3) for place in offsets}, size)
    with pytest.raises(reludiag.CheckpointError, match=sentence):
        read_checkpoint(tmp_path)


def test_nothing_in_a_distributed_checkpoint_is_run(distributed: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    metadata = pickle.loads((distributed / ".metadata").read_bytes())
    metadata.planner_data = Evil()
    (distributed / ".metadata").write_bytes(pickle.dumps(metadata))
    loaded(distributed)
    (distributed / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(reludiag.CheckpointError, match="not that of torch"):
        read_checkpoint(distributed)
    assert not (tmp_path / "ran").exists()


def test_a_part_outside_the_folder_is_not_read(distributed: Path) -> None:
    metadata = pickle.loads((distributed / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = f"../{distributed.name}/{info.relative_path}"
    (distributed / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(reludiag.CheckpointError, match="outside the folder"):
        read_checkpoint(distributed)


def test_a_distributed_checkpoint_that_is_cut_is_refused(distributed: Path) -> None:
    (part,) = distributed.glob("*.distcp")
    part.write_bytes(part.read_bytes()[:500])
    with pytest.raises(reludiag.CheckpointError, match="truncated"):
        read_checkpoint(distributed)
    (distributed / ".metadata").unlink()
    with pytest.raises(reludiag.CheckpointError, match=r"lacks \.metadata"):
        read_checkpoint(distributed)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_tensor_of_dtensor_is_read_if_its_local_part_is_all(tmp_path: Path, shards: int) -> None:
    """As `torch.save` writes a DTensor: its parts are made here without a process group."""
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

    class Part:
        """Pickles as a DTensor does."""

        def __init__(self, value: Tensor) -> None:
            self.value = value

        def __reduce__(self) -> Any:
            size, kind = tuple(self.value.shape), torch.float32
            spec = DTensorSpec.__new__(DTensorSpec)
            spec.__dict__["placements"] = (Shard(0) if shards == 2 else Replicate(),)
            local = self.value[: len(self.value) // shards].clone()
            arguments = (DTensor, kind, size, (1,), 0, torch.strided, torch.device("cpu"), False)
            wrapper = torch._utils._rebuild_wrapper_subclass
            held = {"_local_tensor": local, "_spec": spec}
            rebuild = torch._tensor._rebuild_from_type_v2
            return rebuild, (wrapper, DTensor, arguments, (None, held))

    content = {**state(), "2.bias": Part(torch.cat([state()["2.bias"]]))}
    torch.save(content, tmp_path / "w.pt")
    if shards == 1:
        loaded(tmp_path / "w.pt")
        return
    with pytest.raises(reludiag.CheckpointError, match="one rank's part of a DTensor"):
        loaded(tmp_path / "w.pt")

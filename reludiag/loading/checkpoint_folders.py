"""Folders as Transformers, Diffusers, Accelerate, DeepSpeed and torch.distributed write them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from reludiag.loading.checkpoint_files import (
    STAGE_3,
    STAGE_3_END,
    STAGE_3_REASON,
    FileContent,
    read_file,
)
from reludiag.loading.distributed_checkpoints import read_distributed
from reludiag.loading.tensor_records import UnreadableError

# The names of the weights in a folder, without their endings.
_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
_ENDINGS = ("safetensors", "bin")
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# What lies beside the weights and has such an ending too.
_BESIDE = re.compile(
    r"optim|sched|scaler|rng_state|random_states|training_args|sampler|custom_checkpoint"
)
_MAX_INDEX = 200_000_000  # bytes
_LISTED = 5


def read_folder(path: Path) -> FileContent:
    """The tensors in a folder. Raises UnreadableError, whose text follows the path."""
    names = sorted(entry.name for entry in path.iterdir())
    weights = _weights_file(path, names)
    if weights is not None:
        return read_index(weights) if weights.suffix == ".json" else _inside(weights)
    if ".metadata" in names:
        return read_distributed(path)
    states = _deepspeed(path, names)
    if states is not None:
        return _inside(states)
    inner = [n for n in names if n.startswith("pytorch_model") and (path / n).is_dir()]
    if len(inner) == 1:  # Accelerate: of FSDP or DeepSpeed
        return read_folder(path / inner[0])
    if any(name.startswith("adapter_model.") for name in names):
        raise UnreadableError(
            "holds an adapter alone, without the weights it was trained on. Merge it into its "
            "model first: merge_and_unload() of PEFT"
        )
    if any(name.endswith(".distcp") for name in names):
        raise UnreadableError("is a distributed checkpoint that lacks .metadata: it is unfinished")
    files = [n for n in names if n.endswith(_WEIGHT_FILES) and not _BESIDE.search(n)]
    files = [name for name in files if (path / name).is_file()]
    if len(files) == 1:
        return _inside(path / files[0])
    if files:
        raise UnreadableError(f"is a folder with several checkpoints: pass one ({_listed(files)})")
    below = [name for name in names if _holds_weights(path / name)]
    if below:
        raise UnreadableError(
            f"is a folder without weights of its own: pass a folder in it ({_listed(below)})"
        )
    raise UnreadableError(
        "is a folder without model.safetensors, pytorch_model.bin, their index, .metadata, or any "
        "other checkpoint"
    )


def read_index(path: Path) -> FileContent:
    """The tensors in the shards that an index names. Raises UnreadableError."""
    folder = path.parent
    try:
        if path.stat().st_size > _MAX_INDEX:
            raise ValueError("too large")
        content = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(shard) for shard in content})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UnreadableError(f"cannot be read: {path.name} is not an index of shards") from error
    parts = []
    for shard in shards:
        # A name only: an index must not reach outside its folder.
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UnreadableError(
                f"cannot be read: {path.name} names the shard {shard[:80]!r}, which is not in "
                f"{folder}"
            )
        parts.append(_inside(folder / shard))
    return _joined(parts)


def _inside(path: Path) -> FileContent:
    if not path.is_file():
        raise UnreadableError(f"cannot be read: {path.name} in it is not a regular file")
    try:
        return read_file(path)
    except UnreadableError as error:
        raise UnreadableError(f"cannot be read: {path.name} in it {error}") from error


def _joined(parts: Iterable[FileContent]) -> FileContent:
    parts = list(parts)
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return FileContent(
        tensors,
        {name: place for part in parts for name, place in part.containers.items()},
        {name: why for part in parts for name, why in part.problems.items()},
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        next((part.step for part in parts if part.step is not None), None),
        f"{len(tensors)} tensors in {len(parts)} shards",
    )


def _weights_file(path: Path, names: list[str]) -> Path | None:
    """The file of weights or the index of its shards; a variant (fp16) where there is no other."""
    for ending in _ENDINGS:
        for stem in _STEMS:
            for name in (f"{stem}.{ending}.index.json", f"{stem}.{ending}"):
                if name in names and not (path / name).is_dir():
                    return path / name
    for ending in _ENDINGS:
        stems = "|".join(_STEMS)
        kind = re.compile(
            rf"(?:{stems})\.(?:{ending}\.index\.(?P<index>\w+)\.json|(?P<variant>\w+)\.{ending})"
        )
        matches = [match for match in map(kind.fullmatch, names) if match]
        if len(matches) == 1:
            return path / matches[0].group()
        if matches:
            listed = _listed([match.group() for match in matches])
            raise UnreadableError(f"is a folder with several variants: pass one ({listed})")
    return None


def _deepspeed(path: Path, names: list[str]) -> Path | None:
    """DeepSpeed's file of the weights, of stages 1 and 2; raises UnreadableError for others."""
    if "latest" in names and (path / "latest").is_file():
        with (path / "latest").open("rb") as file:
            tag = file.read(200).decode("utf-8", "replace").strip()
        if Path(tag).name != tag or not (path / tag).is_dir():
            raise UnreadableError(f"says that {tag[:80]!r} is its latest part, which is not in it")
        path = path / tag
        names = sorted(entry.name for entry in path.iterdir())
    if any(name.startswith(STAGE_3) and name.endswith(STAGE_3_END) for name in names):
        raise UnreadableError(STAGE_3_REASON)
    states = [name for name in names if re.fullmatch(r"mp_rank_\d+_model_states\.pt", name)]
    if len(states) > 1:
        raise UnreadableError(
            f"is split into {len(states)} parts by tensor parallelism of DeepSpeed: join them first"
        )
    return path / states[0] if states else None


def _holds_weights(path: Path) -> bool:
    if not path.is_dir():
        return False
    return any(
        name == ".metadata" or (name.endswith(_WEIGHT_FILES) and not _BESIDE.search(name))
        for name in (entry.name for entry in path.iterdir())
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")

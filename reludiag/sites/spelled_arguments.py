"""Spelled arguments: those of the operators that a rectifier is made of, by position."""

from typing import Any

import torch
from torch import Tensor

from reludiag.sites.rectifiers import Arguments, Keywords

READS = frozenset({"embedding", "embedding_bag", "getitem", "index_select"})
"""They take rows of a weight by their indices."""
_NAMES = frozenset({"input", "condition", "self", "other", "mask", "value", "fill_value"})
_SCATTER = ("self", "dim", "index", "src")
_TOPK = ("input", "k", "dim", "largest")
_GATHER = ("input", "dim", "index")
_EMBEDDING_BAG = ("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq",
                  "mode", "sparse", "per_sample_weights")  # fmt: skip
_INDEX_SELECT = ("input", "dim", "index")


def in_order(operator: str, args: Arguments, kwargs: Keywords) -> Arguments:
    """The arguments by position, as the function has them."""
    if operator in READS:
        return _read_by(operator, args, kwargs)
    if operator == "gather":
        values = dict(zip(_GATHER, args, strict=False)) | kwargs
        return values.get("input"), values.get("dim"), values.get("index")
    if operator in {"topk", "scatter"}:
        names = _TOPK if operator == "topk" else _SCATTER
        values = dict(zip(names, args, strict=False)) | kwargs
        values.setdefault(names[0], values.pop("input", None))
        if operator == "scatter" and (len(args) > 4 or "reduce" in kwargs):
            return ()  # that adds or multiplies
        src = values.get("src", values.get("value"))
        if operator == "topk":
            return values["input"], values.get("dim", -1), values.get("largest", True)
        return values["self"], values.get("dim"), values.get("index"), src
    parts = args
    if kwargs:  # in the order of the signature, or it is a call that is not known
        parts = (*args, *(value for name, value in kwargs.items() if name in _NAMES))
    if operator == "where" and len(parts) == 3 and getattr(parts[1], "dtype", None) == torch.bool:
        return parts[1], parts[0], parts[2]  # x.where(mask, other)
    return parts


def _read_by(operator: str, args: Arguments, kwargs: Keywords) -> Arguments:
    """The weight of which rows are taken, along which axis, by which indices, and the values by
    which they are multiplied: None where the call does not get them.
    """
    if operator == "getitem":
        weight, key = args
        keys = key if isinstance(key, tuple) else (key,)
        places = [place for place, each in enumerate(keys) if isinstance(each, Tensor)]
        others = [each for each in keys if not isinstance(each, Tensor)]
        if len(places) != 1 or not all(map(_is_whole, others)):
            return ()
        return weight, places[0], keys[places[0]], None
    if operator == "index_select":
        values = dict(zip(_INDEX_SELECT, args, strict=False)) | kwargs
        return values.get("input"), values.get("dim"), values.get("index"), None
    names = _EMBEDDING_BAG if operator == "embedding_bag" else _EMBEDDING_BAG[:2]
    values = dict(zip(names, args, strict=False)) | kwargs
    if operator == "embedding_bag" and values.get("offsets") is not None:
        return ()
    return values.get("weight"), 0, values.get("input"), values.get("per_sample_weights")


def _is_whole(key: Any) -> bool:
    """Whether this is `:`."""
    return isinstance(key, slice) and key.start is None and key.stop is None and key.step is None

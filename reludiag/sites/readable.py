"""Which tensors are ordinary ones, in memory that can be read by shape and strides."""

import torch
from torch import Tensor, nn

from reludiag.sites.torch_internals import DisableTorchFunction


def readable(tensor: Tensor) -> Tensor | None:
    """The tensor as an ordinary one; None if its values cannot be read as those of one.

    A subclass that only adds to PyTorch's functions (`__torch_function__`) is seen through. Not
    read are nested and sparse tensors, and those of a subclass that makes the operators its own
    (`__torch_dispatch__`), as masked and fake tensors do.
    """
    if type(tensor) is Tensor or type(tensor) is nn.Parameter:
        # In a training loop this runs in every call of a rectifier.
        is_plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
        return tensor if is_plain else None
    if has_own_operators(tensor):
        return None
    with DisableTorchFunction():  # the subclass must not notice
        if tensor.layout is not torch.strided or tensor.is_meta:
            return None
        return tensor if _is_distributed(tensor) else tensor.as_subclass(Tensor)


def has_own_operators(tensor: Tensor) -> bool:
    """Whether it is of a subclass with operators of its own; not a distributed tensor."""
    dispatch = getattr(type(tensor), "__torch_dispatch__", None)
    usual = dispatch is None or dispatch is getattr(Tensor, "__torch_dispatch__", None)
    return not usual and not _is_distributed(tensor)


def kind_of(tensor: Tensor) -> str:
    """What a tensor that cannot be read is, for a report."""
    with DisableTorchFunction():
        if tensor.is_nested:
            return "nested tensor"
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            return type(tensor).__name__
        if tensor.is_meta:
            return "tensor without values (meta)"
        return f"tensor of layout {str(tensor.layout).removeprefix('torch.')}"


def values_of(tensor: Tensor) -> Tensor | None:
    """All the values in a tensor, in any shape; None if they cannot be read."""
    if tensor.layout is torch.sparse_coo:
        return tensor.coalesce().values()
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()]) if tensor.size(0) else None
    if tensor.layout is torch.strided:
        return readable(tensor)
    return None if tensor.is_mkldnn else tensor.values()


def _is_distributed(tensor: Tensor) -> bool:
    return type(tensor).__module__.startswith("torch.distributed.tensor")


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that one of a subclass is made of; itself, if it does not say."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or not has_own_operators(tensor):
        return [tensor]
    return [getattr(tensor, name) for name in flatten()[0]]


def memory_layout(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Where a tensor is in its memory: offset, shape and strides, empty where it has none."""
    if tensor.is_nested:
        return 0, (), ()
    if tensor.layout is not torch.strided or has_own_operators(tensor):
        return 0, tuple(tensor.shape), ()
    return int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()

"""What a frozen pass changes in a model, and how that is restored."""

import contextlib
import copy
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from reludiag.sites.torch_internals import buffers_of


@contextlib.contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Restore training flags, buffers and random streams on exit, also after an exception.

    What fails to be restored, for want of memory, does not keep the rest from it.
    """
    with contextlib.ExitStack() as restoring:
        for module in model.modules():
            # Module by module: model.train() would wake a frozen BatchNorm.
            restoring.callback(setattr, module, "training", module.training)
            buffers = buffers_of(module)
            for name, buffer in buffers.items():
                if buffer is not None:
                    saved = buffer.detach().clone()
                    restoring.callback(_restore, buffers, name, buffer, saved)
        restoring.callback(random.setstate, random.getstate())
        restoring.callback(np.random.set_state, np.random.get_state())
        cuda = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
        restoring.enter_context(torch.random.fork_rng(devices=sorted(cuda)))
        yield


def _restore(buffers: dict[str, Tensor | None], name: str, buffer: Tensor, saved: Tensor) -> None:
    with torch.no_grad():
        if not torch.equal(buffer, saved):
            buffer.resize_(saved.shape).copy_(saved)
    buffers[name] = buffer


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that holds weights that were computed from others, as those that
    `torch.nn.utils.prune` masks: PyTorch copies no tensor with a history, so they come without.
    """
    memo = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo)

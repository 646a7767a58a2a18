"""What a frozen pass changes in a model, and how that is restored."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from reludiag.sites.torch_internals import buffers_of


@contextlib.contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Restore training flags, buffers and random streams on exit, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (buffers_of(module), name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in buffers_of(module).items()
        if buffer is not None
    ]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        # Module by module: model.train() would wake a frozen BatchNorm.
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for owner, name, buffer, saved in buffers:
                if not torch.equal(buffer, saved):
                    buffer.resize_(saved.shape).copy_(saved)
                owner[name] = buffer
        random.setstate(python_state)
        np.random.set_state(numpy_state)

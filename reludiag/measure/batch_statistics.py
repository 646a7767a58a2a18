"""Batch statistics: what units do where BatchNorm uses those of the batch, as in training.

In eval mode BatchNorm uses running statistics. Where these do not fit the data, since they have
seen too few batches, follow them too slowly, or are of other data, a unit that is dead in eval mode
may fire in every step of the training, and the other way round.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from reludiag.errors import ReludiagError
from reludiag.measure.frozen_pass import Scanner
from reludiag.measure.unit_counts import SiteCounts
from reludiag.measure.verdicts import is_dead
from reludiag.sites.torch_internals import AnyBatchNorm, buffers_of

Mask = np.ndarray[Any, np.dtype[np.bool_]]

_STATISTICS = ("running_mean", "running_var")


def running_norms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers that have running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, AnyBatchNorm)
        and all(buffers_of(module).get(name) is not None for name in _STATISTICS)
    ]


def has_seen_no_batch(norm: nn.Module) -> bool:
    """Whether its running statistics are those that it was built with.

    Old checkpoints do not say how many batches there were, but have other statistics.
    """
    buffers = buffers_of(norm)
    mean, variance, seen = (buffers.get(name) for name in (*_STATISTICS, "num_batches_tracked"))
    if mean is None or variance is None or (seen is not None and int(seen)):
        return False
    return not bool(mean.any()) and bool((variance == 1).all())


@contextlib.contextmanager
def on_batch_statistics(model: nn.Module) -> Iterator[None]:
    """In eval mode, BatchNorm uses the statistics of the batch.

    A layer without running statistics does so. In training mode it would also update them, count
    the batch, and wait for the other processes of a distributed run.
    """
    norms = running_norms(model)
    saved = [{name: buffers_of(norm)[name] for name in _STATISTICS} for norm in norms]
    try:
        for norm in norms:
            buffers_of(norm).update(dict.fromkeys(_STATISTICS))
        yield
    finally:
        for norm, statistics in zip(norms, saved, strict=True):
            buffers_of(norm).update(statistics)


def fires_in(counts: SiteCounts) -> Mask:
    """`[unit]`: whether it fired, and was finite."""
    seen = ~counts.counts.nonfinite & (counts.counts.samples > 0)
    return seen & ~is_dead(counts.counts, counts.site.rectifier)


def firing_on_batch_statistics(
    scanner: Scanner, batches: Sequence[Any], **options: Any
) -> dict[str, Mask] | None:
    """Which units fire on `batches` where BatchNorm uses the statistics of each batch.

    Key of each site that can die -> `[unit]`. None if the model cannot be run so: a batch of one
    sample has no statistics. `options` are those of `Scanner.run`.
    """
    try:
        with on_batch_statistics(scanner.model):
            sites = scanner.run(batches, **options).sites
    except (ReludiagError, torch.cuda.OutOfMemoryError):
        return None
    return {
        each.site.key: fires_in(each)
        for each in sites
        if each.site.units and each.site.rectifier.can_die
    }

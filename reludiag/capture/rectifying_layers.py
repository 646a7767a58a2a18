"""Layers that rectify their own product: recurrent layers, and fused modules of int8 models.

What enters their rectifier never leaves them, but what they return is what it returned. That of an
int8 model is read as the real numbers that its integers stand for, which are 0 or below exactly
where the integer is the zero point or below.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reludiag.sites.axes import Coordinate, Origin
from reludiag.sites.products import Product
from reludiag.sites.rectifiers import is_int8_layer

RECURRENT = (nn.RNN, nn.RNNCell)


class Part(NamedTuple):
    """A tensor to read of what a rectifier returned: all of it, or sequences of one length."""

    output: Tensor
    """What is counted."""
    returned: Tensor
    """The model's own tensor that it was read from."""
    origin: Origin | None
    """Where its units and samples are; None if that has to be found."""
    samples: int | None
    """How many samples it holds; None for those of the pass."""


def is_rectifying_layer(module: nn.Module) -> bool:
    """Whether a rectifier module has the weights that feed it inside."""
    return isinstance(module, RECURRENT) or is_int8_layer(module)


def parts_of(module: nn.Module, output: Any, path: str) -> Iterator[Part]:
    """What there is to read of the output of a rectifier at `path`; nothing if it cannot be."""
    if isinstance(module, nn.RNN) and isinstance(output, tuple) and output:
        output = output[0]
        if isinstance(output, PackedSequence):
            yield from _sequences(output, path)
            return
        if isinstance(output, Tensor):
            origin = product_of(module, output, path)
            samples = None if origin is None or origin.sample is None else origin.sample.size
            yield Part(output, output, origin, samples)
    elif isinstance(output, Tensor):
        real = output.dequantize() if output.is_quantized else output
        yield Part(real, output, product_of(module, output, path), None)


def product_of(module: nn.Module, output: Tensor, path: str) -> Origin | None:
    """Where units and samples are in what such a layer, or another of an int8 model, returned.

    None for other modules. Without a sample axis, it has to be found.
    """
    if not is_rectifying_layer(module):  # of others, an output may have no shape
        return None
    made = (Product(path, ""),)  # with weights that cannot be read
    last = (Coordinate(output.ndim - 1, output.shape[-1]) if output.ndim else Coordinate(0, 1),)
    if isinstance(module, nn.RNN):
        sample = 0 if module.batch_first else 1
        rows = Coordinate(sample, output.shape[sample]) if output.ndim == 3 else None
        return Origin(last, rows, made)
    if isinstance(module, nn.RNNCell):
        return Origin(last, None, made)
    if hasattr(module, "out_features"):
        return Origin(last, None, made)
    return Origin((Coordinate(1, output.shape[1]),), None, made) if output.ndim > 2 else None


def _sequences(packed: PackedSequence, path: str) -> Iterator[Part]:
    """The sequences, `[sequence, step, unit]`, those of one length together: they are samples."""
    data, sizes = packed.data, packed.batch_sizes
    starts = sizes.cumsum(0) - sizes  # of each step in the data, longest sequences first
    ends = (*sizes.tolist(), 0)
    for length in range(len(sizes), 0, -1):
        first, last = ends[length], ends[length - 1]
        if first == last:
            continue
        columns = torch.arange(first, last)
        rows = (starts[:length, None] + columns).T.to(data.device)
        unit, sample = Coordinate(2, data.shape[1]), Coordinate(0, last - first)
        yield Part(data[rows], data, Origin((unit,), sample, (Product(path, ""),)), last - first)

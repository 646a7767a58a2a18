"""The scale of the model's input, where a first layer reads it."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.capture.hooks import FrozenHook, hookable_modules
from reludiag.loading.batch_contents import tensors_of
from reludiag.measure.structure import FEWEST_ROWS, InputScale
from reludiag.sites.guard import Guard
from reludiag.sites.readable import readable
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    storage_of,
    without_dispatch_modes,
)

_MOST_VALUES = 2**18  # of an input, to be read
_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class InputScales:
    """The scales of the model's inputs in one batch, which `watch` measures."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.scales: list[InputScale] = []
        """Of each layer that reads the model's input unchanged, in the order of the calls."""

    @contextlib.contextmanager
    def watch(self, arguments: Sequence[Any], guard: Guard) -> Iterator[None]:
        """Look at a forward of the model with these arguments. `guard` keeps errors."""
        inputs = {storage_of(tensor) for tensor in tensors_of(list(arguments))}
        done = set[str]()

        def look(path: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0] if args else None
            if isinstance(x, Tensor) and storage_of(x) in inputs and path not in done:
                done.add(path)
                with DisableTorchFunction(), without_dispatch_modes():  # not part of the model
                    scale = input_scale(path, layer, x)
                self.scales += [] if scale is None else [scale]

        undo = guard.undo_list()
        for path, module in hookable_modules(self._model):
            if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
                hook = FrozenHook(partial(look, path), guard)
                undo.append(module.register_forward_pre_hook(hook).remove)
        try:
            yield
        finally:
            while undo:
                undo.pop()()


def input_scale(path: str, layer: nn.Module, x: Tensor) -> InputScale | None:
    """The scale of the input `[..., feature]` of a linear layer or `[..., channel, *position]` of a
    convolution; None if it is not one of numbers, or is too small to tell.
    """
    plain = readable(x)
    if plain is None or not x.is_floating_point() or x.numel() == 0:
        return None
    kernel = len(layer.kernel_size) if isinstance(layer, _CONVOLUTIONS) else 0
    if x.ndim < 2 + kernel:  # one sample without a batch axis
        return None
    rows = plain.detach().movedim(x.ndim - 1 - kernel, -1).flatten(0, -2)
    step = math.ceil(rows.numel() / _MOST_VALUES)
    rows = rows[::step]
    low, high = rows.amin(0), rows.amax(0)
    measured = ~((rows == low) | (rows == high)).all(0)
    if len(rows) < FEWEST_ROWS or not bool(measured.any()):
        return None
    values = rows[:, measured].double()
    std, mean = torch.std_mean(values, 0, correction=0)
    worst = int((mean.abs() / std).argmax())
    return InputScale(
        layer=path,
        channels=rows.shape[1],
        gamma=float(mean.norm() / std.norm()),
        rms=float(values.square().mean().sqrt()),
        low=float(values.min()),
        high=float(values.max()),
        channel=int(measured.nonzero()[worst, 0]),
        mean=float(mean[worst]),
        std=float(std[worst]),
    )

"""Edited: something beside the optimizer changes the weights."""

from functools import partial

import torch
from torch import nn

from benchmarks.deadbench.tasks import IMAGES, cnn, layers
from benchmarks.deadbench.training import Settings, Training, no_edit


def floored(at: int, grid: float, step: int, model: nn.Module) -> None:
    """Rounded down to a grid, as a careless quantization does."""
    if step == at:
        for parameter in model.parameters():
            parameter.copy_(torch.floor(parameter / grid) * grid)


def pruned(at: int, step: int, model: nn.Module) -> None:
    """A third of the rows set to 0, with their biases."""
    if step == at:
        for layer in layers(model):
            layer.weight[::3] = 0
            layer.bias[::3] = 0


def loaded(at: int, step: int, model: nn.Module) -> None:
    """A state of another network is loaded: its weights have the other sign."""
    if step == at:
        for layer in layers(model):
            layer.weight.copy_(-layer.weight.abs())


def clipped(limit: float, step: int, model: nn.Module) -> None:
    """Weights are kept within limits after every step, of which the upper one is wrong."""
    for layer in layers(model):
        layer.weight.clamp_(-limit, 0.02)


TRAININGS = (
    Training(
        "weights rounded down",
        Settings(lr=0.1, edit=partial(floored, 100, 0.15)),
        {"edited": {"edit": no_edit}},
    ),
    Training(
        "rows pruned in training",
        Settings(lr=0.1, edit=partial(pruned, 100)),
        {"edited": {"edit": no_edit}},
    ),
    Training(
        "a wrong state loaded, CNN",
        Settings(
            IMAGES, cnn, batch=32, optimizer="adam", lr=1e-3, steps=150, edit=partial(loaded, 75)
        ),
        {"edited": {"edit": no_edit}},
    ),
    Training(
        "weights clamped after each step",
        Settings(optimizer="adam", lr=3e-3, edit=partial(clipped, 0.3)),
        {"edited": {"edit": no_edit}},
    ),
)

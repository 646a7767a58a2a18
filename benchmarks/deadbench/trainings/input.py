"""The input: not centred, or on a scale that the learning rate is not made for."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.deadbench.tasks import (
    CANCER,
    IMAGES,
    RAW_CANCER,
    RAW_DIGITS,
    cnn,
    mlp,
    standardized,
)
from benchmarks.deadbench.training import Settings, Training


def shifted(by: float, x: Tensor) -> Tensor:
    return x + by


def bytes_of(x: Tensor) -> Tensor:
    """Pixels from 0 to 255, as images are stored."""
    return x * (255 / 16)


def one_large(x: Tensor) -> Tensor:
    """One feature in another unit: grams for kilograms."""
    return torch.cat([1000 * x[:, :1], x[:, 1:]], 1)


CELLS = partial(mlp, 30, (48, 48), 2)
TRAININGS = (
    Training(
        "input + 30",
        Settings(optimizer="adam", lr=1e-3, inputs=(partial(shifted, 30.0),)),
        {"input": {"inputs": ()}},
    ),
    Training(
        "input + 10, SGD",
        Settings(lr=0.1, inputs=(partial(shifted, 10.0),)),
        {"input": {"inputs": ()}},
    ),
    Training(
        "input + 30, CNN",
        Settings(
            IMAGES,
            cnn,
            batch=32,
            optimizer="adam",
            lr=1e-3,
            steps=100,
            inputs=(partial(shifted, 30.0),),
        ),
        {"input": {"inputs": ()}},
    ),
    Training(
        "pixels from 0 to 255",
        Settings(RAW_DIGITS, optimizer="adam", lr=0.01, inputs=(bytes_of,)),
        {"input": {"inputs": (standardized,)}},
    ),
    Training(
        "measurements in their own units",
        Settings(RAW_CANCER, CELLS, optimizer="adam", lr=3e-3),
        {"input": {"inputs": (standardized,)}},
    ),
    Training(
        "one feature in another unit",
        Settings(CANCER, CELLS, lr=0.05, inputs=(one_large,)),
        {"input": {"inputs": ()}},
    ),
)

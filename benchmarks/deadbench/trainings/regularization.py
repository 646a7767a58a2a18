"""Regularization: a penalty on activations or on weights that costs more than it is told to."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.deadbench.tasks import IMAGES, REBUILD, TEXT, Transformer, cnn, mlp
from benchmarks.deadbench.training import Group, Settings, Training


def sparsity(weight: float, outputs: list[Tensor]) -> Tensor:
    """The mean activation of each layer, which is L1, as no activation is below 0."""
    return weight * torch.stack([output.mean() for output in outputs]).sum()


def summed(weight: float, outputs: list[Tensor]) -> Tensor:
    """The sum over the units of a sample, as sparse autoencoders use it."""
    return weight * torch.stack([output.flatten(1).sum(1).mean() for output in outputs]).sum()


NOT_BIASES = (Group("weight"), Group("bias", decays=False))
TRAININGS = (
    Training(
        "sparsity penalty, SGD",
        Settings(lr=0.05, penalty=partial(sparsity, 5.0)),
        {"regularization": {"penalty": None}},
    ),
    Training(
        "sparsity penalty, CNN",
        Settings(
            IMAGES,
            cnn,
            batch=32,
            optimizer="adam",
            lr=1e-3,
            steps=200,
            penalty=partial(sparsity, 5.0),
        ),
        {"regularization": {"penalty": None}},
    ),
    Training(
        "sparse autoencoder",
        Settings(
            REBUILD,
            partial(mlp, 64, (128,), 64),
            optimizer="adam",
            lr=3e-3,
            steps=300,
            penalty=partial(summed, 0.08),
        ),
        {"regularization": {"penalty": None}},
    ),
    Training(
        "weight decay, but not of biases",
        Settings(lr=0.1, groups=NOT_BIASES, weight_decay=0.1, steps=300),
        {"regularization": {"weight_decay": 0.0}},
    ),
    Training(
        "weight decay, Adam",
        Settings(optimizer="adam", lr=3e-3, weight_decay=0.1, steps=300),
        {"regularization": {"weight_decay": 0.0}},
    ),
    Training(
        "weight decay, AdamW",
        Settings(optimizer="adamw", lr=3e-3, weight_decay=100.0),
        {"regularization": {"weight_decay": 0.0}},
    ),
    Training(
        "sparsity penalty, transformer",
        Settings(
            TEXT,
            Transformer,
            batch=16,
            optimizer="adam",
            lr=3e-3,
            steps=150,
            penalty=partial(sparsity, 30.0),
        ),
        {"regularization": {"penalty": None}},
    ),
)

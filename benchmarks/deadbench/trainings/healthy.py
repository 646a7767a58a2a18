"""Healthy trainings that look ill: sparse, fast, deep, or at the first step of their statistics."""

from functools import partial

from torch import nn

from benchmarks.deadbench.advice import kaiming
from benchmarks.deadbench.tasks import CANCER, IMAGES, TEXT, Transformer, cnn, layers, mlp
from benchmarks.deadbench.training import Settings, Training
from benchmarks.deadbench.trainings.learning_rate import spike, warm_up
from benchmarks.deadbench.trainings.regularization import sparsity


def sparse_bias(model: nn.Module) -> None:
    """Units fire on few samples, but they do."""
    for layer in layers(model):
        nn.init.constant_(layer.bias, -0.5)


ADAM = Settings(optimizer="adam", lr=1e-3)
TRAININGS = (
    Training("Adam", ADAM),
    Training("SGD at a high rate, clipped", Settings(lr=1.0, clip=1.0, init=(kaiming,))),
    Training("CNN", Settings(IMAGES, cnn, batch=32, optimizer="adam", lr=1e-3, steps=150)),
    Training(
        "transformer", Settings(TEXT, Transformer, batch=16, optimizer="adam", lr=3e-3, steps=150)
    ),
    Training("deep", ADAM.but(network=partial(mlp, 64, (64,) * 12, 10), init=(kaiming,), lr=3e-4)),
    Training("highly sparse", Settings(lr=0.05, init=(kaiming, sparse_bias))),
    Training("mild sparsity penalty", Settings(lr=0.05, penalty=partial(sparsity, 0.1))),
    Training(
        "BatchNorm, a few steps",
        Settings(CANCER, partial(mlp, 30, (48, 48), 2, nn.BatchNorm1d), lr=0.1, steps=20),
    ),
    Training(
        "BatchNorm at a high rate",
        Settings(network=partial(mlp, 64, (64, 64), 10, nn.BatchNorm1d), lr=0.5),
    ),
    Training("GELU", ADAM.but(network=partial(mlp, 64, (64, 64), 10, rectifier=nn.GELU))),
    Training("warm-up", ADAM.but(lr=5e-3, schedule=partial(warm_up, 50))),
    Training("a small spike", ADAM.but(schedule=partial(spike, 100, 5, 5.0))),
    Training("fine-tuned", ADAM.but(lr=3e-4, steps=100, start=ADAM)),
)

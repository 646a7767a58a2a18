"""An outlier: one batch or one step among hundreds."""

from functools import partial

from torch import Tensor

from benchmarks.deadbench.tasks import CANCER, IMAGES, VALUES, cnn, mlp
from benchmarks.deadbench.training import Settings, Training, as_drawn, constant


def scaled_batch(at: int, factor: float, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A batch in other units, as a broken sensor or a bad shard gives it."""
    return (factor * x, y) if step == at else (x, y)


def large_targets(at: int, factor: float, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return (x, factor * y) if step == at else (x, y)


def one_sample(at: int, value: float, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A single broken sample of the batch."""
    if step == at:
        x = x.clone()
        x[0] = value
    return x, y


def summed_loss(at: int, samples: int, step: int) -> float:
    """A step whose loss is a sum where it is a mean elsewhere."""
    return float(samples) if step == at else 1.0


TRAININGS = (
    Training(
        "a batch in other units",
        Settings(lr=0.1, corrupt=partial(scaled_batch, 100, 1000.0)),
        {"outlier": {"corrupt": as_drawn}},
    ),
    Training(
        "a batch in other units, CNN",
        Settings(
            IMAGES,
            cnn,
            batch=32,
            lr=0.05,
            momentum=0.9,
            steps=150,
            corrupt=partial(scaled_batch, 75, 30.0),
        ),
        {"outlier": {"corrupt": as_drawn}},
    ),
    Training(
        "one broken sample",
        Settings(CANCER, partial(mlp, 30, (48, 48), 2), corrupt=partial(one_sample, 100, 3000.0)),
        {"outlier": {"corrupt": as_drawn}},
    ),
    Training(
        "a batch of large targets",
        Settings(
            VALUES, partial(mlp, 4, (64, 64), 1), lr=0.05, corrupt=partial(large_targets, 100, 40.0)
        ),
        {"outlier": {"corrupt": as_drawn}},
    ),
    Training(
        "a step with a summed loss",
        Settings(lr=0.1, loss_scale=partial(summed_loss, 100, 300)),
        {"outlier": {"loss_scale": constant}},
    ),
)

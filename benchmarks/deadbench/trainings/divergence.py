"""Divergence: units are not finite, neither dead nor alive; the reason of it is right as well."""

from functools import partial

from torch import Tensor

from benchmarks.deadbench.advice import kaiming
from benchmarks.deadbench.tasks import REBUILD, VALUES, mlp
from benchmarks.deadbench.training import Settings, Training, same


def times(factor: float, x: Tensor) -> Tensor:
    return factor * x


REBUILDS = Settings(REBUILD, partial(mlp, 64, (64,), 64), momentum=0.9)
LOWER = {"divergence": {"lr": 0.02}, "learning_rate": {"lr": 0.02}}
PENDULUM = partial(mlp, 4, (64, 64), 1)
TRAININGS = (
    Training("SGD diverges", Settings(lr=3.0, init=(kaiming,)), LOWER),
    Training("SGD with momentum diverges, autoencoder", REBUILDS.but(lr=3.0), LOWER),
    Training(
        "diverges by the scale of the targets",
        Settings(VALUES, PENDULUM, lr=0.05, targets=partial(times, 1e4)),
        {"divergence": {"targets": same}, "scale_of_targets": {"targets": same}},
    ),
    Training(
        "diverges by the scale of the input",
        Settings(VALUES, PENDULUM, lr=0.05, inputs=(partial(times, 1e4),)),
        {"divergence": {"inputs": ()}, "input": {"inputs": ()}},
    ),
)

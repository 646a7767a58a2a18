"""The scale of the targets: gradients are as large as they are, and so are the steps."""

from functools import partial

from torch import Tensor

from benchmarks.deadbench.tasks import REBUILD, VALUES, mlp
from benchmarks.deadbench.training import Settings, Training, same


def scaled(by: float, y: Tensor) -> Tensor:
    return by * y


def offset(by: float, y: Tensor) -> Tensor:
    """Returns far from 0, as those of a reward of 1 a step are."""
    return y + by


PENDULUM = partial(mlp, 4, (64, 64), 1)
TRAININGS = (
    Training(
        "returns not normalized, SGD",
        Settings(VALUES, PENDULUM, lr=0.05, targets=partial(scaled, 30.0), clip=1e3),
        {"scale_of_targets": {"targets": same}},
    ),
    Training(
        "returns far from 0, SGD",
        Settings(VALUES, PENDULUM, lr=0.05, targets=partial(offset, 30.0)),
        {"scale_of_targets": {"targets": same}},
    ),
    Training(
        "pixels to rebuild not normalized",
        Settings(REBUILD, partial(mlp, 64, (64, 64), 64), lr=0.1, targets=partial(scaled, 30.0)),
        {"scale_of_targets": {"targets": same}},
    ),
)

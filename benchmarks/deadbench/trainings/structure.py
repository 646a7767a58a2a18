"""Structure: where the rectifier stands, no weights and no rate would keep its units alive."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from benchmarks.deadbench.tasks import REBUILD, VALUES, mlp
from benchmarks.deadbench.training import Settings, Training, same


class Negated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """The other half of a concatenated ReLU, but of what is rectified already."""
        return -x


def below_zero(last: Callable[[], nn.Module]) -> nn.Module:
    """A rectifier over what is never above 0."""
    first = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48)]
    return nn.Sequential(*first, nn.LogSoftmax(dim=1), last(), nn.Linear(48, 10))


def negated(second: Callable[[], nn.Module]) -> nn.Module:
    first = [nn.Linear(64, 64), nn.ReLU(), Negated(), second()]
    return nn.Sequential(*first, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def low_targets(y: Tensor) -> Tensor:
    """Costs, rather than returns."""
    return y - 3


TRAININGS = (
    Training(
        "ReLU as the output",
        Settings(
            REBUILD,
            partial(mlp, 64, (64,), 64, last=(nn.ReLU(),)),
            optimizer="adam",
            lr=0.01,
        ),
        {"structure": {"network": partial(mlp, 64, (64,), 64)}},
    ),
    Training(
        "ReLU as the output, values below 0",
        Settings(
            VALUES,
            partial(mlp, 4, (64, 64), 1, last=(nn.ReLU(),)),
            optimizer="adam",
            lr=3e-3,
            targets=low_targets,
        ),
        {
            "structure": {"network": partial(mlp, 4, (64, 64), 1)},
            "scale_of_targets": {"targets": same},
        },
        site="5",
    ),
    Training(
        "ReLU of a log-softmax",
        Settings(network=partial(below_zero, nn.ReLU), optimizer="adam", lr=1e-3),
        {"structure": {"network": partial(below_zero, nn.Identity)}},
    ),
    Training(
        "ReLU of a negated ReLU",
        Settings(network=partial(negated, nn.ReLU), optimizer="adam", lr=1e-3),
        {"structure": {"network": partial(negated, nn.Identity)}},
    ),
)

"""Running statistics of BatchNorm that do not fit: units fire in training, not in eval mode."""

from functools import partial

from torch import Tensor, nn

from benchmarks.deadbench.tasks import IMAGES, cnn, mlp
from benchmarks.deadbench.training import Settings, Training


def slow(momentum: float, model: nn.Module) -> None:
    """Statistics follow the batches by this share a step."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = momentum


def of_other_data(model: nn.Module) -> None:
    """Statistics of other data, which this training hardly moves."""
    slow(1e-4, model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean += 3.0
            module.running_var.fill_(0.25)


def raised(by: float, x: Tensor) -> Tensor:
    return x + by


NORMED = partial(mlp, 64, (64, 64), 10, nn.BatchNorm1d)
IMAGES_NORMED = Settings(IMAGES, partial(cnn, norm=True), batch=32, lr=0.1, steps=100)
TRAININGS = (
    Training(
        "statistics that follow too slowly",
        Settings(network=NORMED, inputs=(partial(raised, 10.0),), init=(partial(slow, 1e-4),)),
        {"batchnorm_statistics": {"init": ()}, "input": {"inputs": ()}},
    ),
    Training(
        "statistics of other data",
        Settings(network=NORMED, init=(of_other_data,)),
        {"batchnorm_statistics": {"init": ()}},
    ),
    Training(
        "statistics of other data, CNN",
        IMAGES_NORMED.but(init=(of_other_data,)),
        {"batchnorm_statistics": {"init": ()}},
    ),
    Training(
        "too few steps for the statistics",
        Settings(network=NORMED, inputs=(partial(raised, 30.0),), steps=20),
        {"batchnorm_statistics": {"init": (partial(slow, 0.9),)}, "input": {"inputs": ()}},
    ),
)

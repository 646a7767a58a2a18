"""The initialization: biases, the mean of weights, norms, masks, and widths."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn.utils import prune

from benchmarks.deadbench.advice import kaiming
from benchmarks.deadbench.tasks import IMAGES, TEXT, Transformer, cnn, layers, mlp
from benchmarks.deadbench.training import Settings, Training


def bias(value: float, model: nn.Module) -> None:
    for layer in layers(model):
        nn.init.constant_(layer.bias, value)


def negative_mean(model: nn.Module) -> None:
    """After a rectifier inputs are positive: weights far below 0 on average silence a unit."""
    for layer in layers(model)[1:]:
        layer.weight -= 0.3


def one_sided(model: nn.Module) -> None:
    """Uniform from -a to 0, where from -a to a was meant."""
    for layer in layers(model):
        layer.weight.copy_(-layer.weight.abs())


def low_norm(value: float, model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.bias, value)


def masked(model: nn.Module) -> None:
    """Half of the rows pruned before training, as a sparse ticket is; their biases are below 0."""
    for layer in layers(model):
        prune.ln_structured(layer, "weight", 0.5, 2, dim=0)
        layer.bias[layer.weight_mask.flatten(1).amax(1) == 0] = -0.01


def batch_normed(widths: tuple[int, ...]) -> Callable[[], nn.Module]:
    return partial(mlp, 64, widths, 10, nn.BatchNorm1d)


ADAM = Settings(optimizer="adam", lr=1e-3)
TRAININGS = (
    Training("biases of -3", ADAM.but(init=(partial(bias, -3),)), {"initialization": {"init": ()}}),
    Training(
        "biases of -3, SGD",
        Settings(lr=0.05, init=(partial(bias, -3),)),
        {"initialization": {"init": ()}},
    ),
    Training(
        "biases of -3, transformer",
        Settings(
            TEXT,
            Transformer,
            batch=16,
            optimizer="adam",
            lr=1e-3,
            steps=100,
            init=(partial(bias, -3),),
        ),
        {"initialization": {"init": ()}},
    ),
    Training(
        "weights below 0 on average",
        ADAM.but(init=(negative_mean,)),
        {"initialization": {"init": ()}},
    ),
    Training(
        "one-sided weights, CNN",
        Settings(IMAGES, cnn, batch=32, optimizer="adam", lr=1e-3, steps=100, init=(one_sided,)),
        {"initialization": {"init": ()}},
    ),
    Training(
        "BatchNorm starts at -4",
        Settings(network=batch_normed((64, 64)), init=(partial(low_norm, -4.0),)),
        {"initialization": {"init": ()}},
    ),
    Training("half of the rows masked", ADAM.but(init=(masked,)), {"initialization": {"init": ()}}),
    Training(
        "narrow and deep",
        ADAM.but(network=partial(mlp, 64, (4,) * 12, 10), init=(kaiming,)),
        {"initialization": {"network": partial(mlp, 64, (64,) * 12, 10)}},
    ),
)

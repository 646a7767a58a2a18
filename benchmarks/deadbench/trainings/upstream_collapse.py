"""Upstream collapse: asked of one rectifier, which is dead because an earlier one is."""

from functools import partial

from torch import nn

from benchmarks.deadbench.tasks import layers
from benchmarks.deadbench.training import Settings, Training, no_edit


def first_bias(value: float, model: nn.Module) -> None:
    """The first layer is silent; biases of 0 elsewhere leave the others with no input at all."""
    for layer in layers(model):
        nn.init.zeros_(layer.bias)
    nn.init.constant_(layers(model)[0].bias, value)


def silenced(at: int, step: int, model: nn.Module) -> None:
    if step == at:
        layers(model)[0].bias.fill_(-30.0)


ADAM = Settings(optimizer="adam", lr=1e-3)
TRAININGS = (
    Training(
        "below a layer that was born dead",
        ADAM.but(init=(partial(first_bias, -30.0),)),
        {"upstream_collapse": {"init": (partial(first_bias, 0.0),)}},
        site="3",
    ),
    Training(
        "below a layer that was silenced",
        Settings(lr=0.1, edit=partial(silenced, 100)),
        {"upstream_collapse": {"edit": no_edit}},
        site="3",
    ),
)

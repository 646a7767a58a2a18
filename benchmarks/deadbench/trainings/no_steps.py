"""No steps: the optimizer never steps, so units that training would revive stay dead."""

from functools import partial

from torch import nn

from benchmarks.deadbench.tasks import layers
from benchmarks.deadbench.training import Group, Settings, Training


def low_second_bias(value: float, model: nn.Module) -> None:
    nn.init.constant_(layers(model)[1].bias, value)


def always(step: int) -> bool:
    return True


def never(step: int) -> bool:
    return False


LOW = Settings(
    lr=0.1,
    weight_decay=0.1,
    groups=(Group("weight", decays=False), Group("bias")),
    steps=400,
    init=(partial(low_second_bias, -1.0),),
)
TRAININGS = (
    Training(
        "every step is skipped",
        LOW.but(skipped=always),
        {"no_steps": {"skipped": never}, "initialization": {"init": ()}},
    ),
)

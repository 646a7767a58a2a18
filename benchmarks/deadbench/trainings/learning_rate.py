"""The learning rate: too high, for too long or for a moment, for all weights or for some."""

import math
from functools import partial

from benchmarks.deadbench.tasks import CANCER, IMAGES, TEXT, VALUES, Transformer, cnn, mlp
from benchmarks.deadbench.training import Group, Settings, Training, constant


def cosine(warm_up: int, steps: int, step: int) -> float:
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def spike(first: int, length: int, factor: float, step: int) -> float:
    return factor if first <= step < first + length else 1.0


def warm_up(length: int, step: int) -> float:
    return min(1.0, (step + 1) / length)


def raised(at: int, factor: float, step: int) -> float:
    return factor if step >= at else 1.0


def restarts(length: int, step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step % length) / length))


CONVOLUTIONS = Settings(IMAGES, cnn, batch=32, optimizer="adam", lr=0.1, steps=150)
LANGUAGE = Settings(TEXT, Transformer, batch=16, optimizer="adam", lr=0.1, steps=150)
CELLS = Settings(CANCER, lambda: mlp(30, (48, 48), 2), optimizer="adam", lr=0.3)
PENDULUM = Settings(VALUES, lambda: mlp(4, (64, 64), 1), optimizer="adam", lr=0.1)
WEIGHTS_AND_BIASES = (Group("weight"), Group("bias", rate=300.0))
TRAININGS = (
    Training(
        "Adam too high",
        Settings(optimizer="adam", lr=0.1),
        {"learning_rate": {"lr": 1e-3}},
    ),
    Training(
        "SGD too high, clipped",
        Settings(lr=10.0, clip=1.0),
        {"learning_rate": {"lr": 0.1}},
    ),
    Training(
        "RMSprop too high",
        Settings(optimizer="rmsprop", lr=0.03),
        {"learning_rate": {"lr": 1e-3}},
    ),
    Training("Adam too high, CNN", CONVOLUTIONS, {"learning_rate": {"lr": 1e-3}}),
    Training("Adam too high, transformer", LANGUAGE, {"learning_rate": {"lr": 3e-3}}),
    Training("Adam too high, values", PENDULUM, {"learning_rate": {"lr": 1e-3}}),
    Training(
        "Adam too high, warm-up and cosine",
        CELLS.but(schedule=partial(cosine, 40, 200)),
        {"learning_rate": {"lr": 1e-3}},
    ),
    Training(
        "Adam too high, warm restarts",
        Settings(optimizer="adam", lr=0.05, schedule=partial(restarts, 50)),
        {"learning_rate": {"lr": 5e-3}},
    ),
    Training(
        "raised in the middle",
        Settings(optimizer="adam", lr=1e-3, schedule=partial(raised, 100, 100.0)),
        {"learning_rate": {"schedule": constant}},
    ),
    Training(
        "spike of 5 steps",
        Settings(optimizer="adam", lr=1e-3, schedule=partial(spike, 100, 5, 100.0)),
        {"learning_rate": {"schedule": constant}},
    ),
    Training(
        "rate of the biases too high",
        Settings(optimizer="adam", lr=1e-3, groups=WEIGHTS_AND_BIASES),
        {"learning_rate": {"groups": (Group(),)}},
    ),
    Training(
        "SGD with momentum too high",
        Settings(lr=0.1, momentum=0.99),
        {"learning_rate": {"lr": 1e-3}},
    ),
)

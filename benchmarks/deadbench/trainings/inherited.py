"""Inherited: the units came dead with the checkpoint that the training goes on from."""

from functools import partial

from torch import nn

from benchmarks.deadbench.tasks import IMAGES, TEXT, Transformer, cnn, layers
from benchmarks.deadbench.training import Settings, Training


def pruned_half(at: int, step: int, model: nn.Module) -> None:
    """Half of the units cut out by zeros at the end of the earlier training, to compress it."""
    if step == at:
        for layer in layers(model):
            layer.weight[::2] = 0
            layer.bias[::2] = 0


SANE = Settings(optimizer="adam", lr=1e-3, steps=100)
HOT = SANE.but(lr=0.06)
IMAGES_SANE = Settings(IMAGES, cnn, batch=32, optimizer="adam", lr=1e-3, steps=100)
TEXT_SANE = Settings(TEXT, Transformer, batch=16, optimizer="adam", lr=3e-3, steps=100)
TRAININGS = (
    Training(
        "fine-tuned from a killed checkpoint",
        SANE.but(start=HOT),
        {"inherited": {"start": SANE}},
    ),
    Training(
        "fine-tuned from a killed checkpoint, CNN",
        IMAGES_SANE.but(start=IMAGES_SANE.but(lr=0.1)),
        {"inherited": {"start": IMAGES_SANE}},
    ),
    Training(
        "fine-tuned from a killed checkpoint, transformer",
        TEXT_SANE.but(start=TEXT_SANE.but(lr=0.1)),
        {"inherited": {"start": TEXT_SANE}},
    ),
    Training(
        "fine-tuned from a pruned checkpoint",
        SANE.but(start=SANE.but(edit=partial(pruned_half, 99))),
        {"inherited": {"start": SANE}},
    ),
)

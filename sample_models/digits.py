"""Image classification: an MLP and a small ResNet on scikit-learn's 8x8 digits.

    python sample_models/digits.py --lr 0.1 --checkpoint digits.pt --recording run.reludiag

In the ResNet each block calls one inplace ReLU twice, so a block has two sites.
"""

import math
from functools import cache
from typing import Any

import torch
from run import Attach, attached, main, seeded, unwatched
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

HEALTHY = {"lr": 1e-3}
DYING = {"lr": 0.1}
_TRAINING = 1_437  # of 1,797 digits; the rest is held out


class MLP(nn.Sequential):
    """`[batch, 1, 8, 8]` through three hidden layers of 64 units to 10 class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        for index in (1, 2, 3):
            self.add_module(f"fc{index}", nn.Linear(64, 64))
            self.add_module(f"relu{index}", nn.ReLU())
        self.head = nn.Linear(64, 10)


def build(seed: int | None = None) -> nn.Module:
    """The MLP with fresh weights."""
    with seeded(seed):
        return MLP()


class Block(nn.Module):
    """A residual block `[batch, channel, height, width]` that calls one inplace ReLU twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions and the shortcut."""
        y = self.conv2(self.relu(self.conv1(x)))
        return self.relu(y + self.skip(x))


class ResNet(nn.Sequential):
    """`[batch, 1, 8, 8]` to 10 class scores; no batch norm, so that deaths are deaths of ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(inplace=True)
        self.block1, self.block2, self.block3 = Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.head = nn.Linear(32, 10)


def build_resnet(seed: int | None = None) -> nn.Module:
    """The ResNet with fresh weights."""
    with seeded(seed):
        return ResNet()


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images `[1797, 1, 8, 8]`, each pixel centred on the training part, and labels `[1797]`."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)[order]
    training = images[:_TRAINING]
    return (images - training.mean(0)) / training.std(), torch.tensor(data.target)[order]


def batches(size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """All 1,797 digits in their order, with labels."""
    images, labels = _digits()
    return list(zip(images.split(size), labels.split(size), strict=True))


def probe() -> Tensor:
    """512 training digits, on which a recording judges the units."""
    return _digits()[0][:512]


def fit(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    steps: int = 600,
    batch_size: int = 64,
    seed: int = 0,
    attach: Attach = unwatched,
) -> dict[str, float]:
    """Train with Adam; returns the accuracy on the 360 digits held out, and the last loss."""
    images, labels = _digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    loss = torch.tensor(math.nan)
    with attach(model, optimizer):
        for _ in range(steps):
            chosen = torch.randint(0, _TRAINING, (batch_size,), generator=generator)
            optimizer.zero_grad()
            loss = cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        guesses = model(images[_TRAINING:]).argmax(1)
    accuracy = (guesses == labels[_TRAINING:]).float().mean().item()
    return {"accuracy": accuracy, "loss": loss.item()}


def train(trial: Any) -> dict[str, float]:
    """What an experiment varies, `reludiag sweep` or `replay`: by itself, the run that dies."""
    model = trial.init(build(trial.seed))
    lr = trial.lr(DYING["lr"])
    return fit(model, lr=lr, seed=trial.seed, attach=attached(trial, probe()))


def train_resnet(trial: Any) -> dict[str, float]:
    """The same with the ResNet."""
    model = trial.init(build_resnet(trial.seed))
    lr = trial.lr(DYING["lr"])
    return fit(model, lr=lr, seed=trial.seed, attach=attached(trial, probe()))


if __name__ == "__main__":
    main(build, fit, probe, HEALTHY, DYING, models={"mlp": build, "resnet": build_resnet})

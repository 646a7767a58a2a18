"""Tasks and networks for the trainings: small, on a CPU, from data that is installed anyway."""

import pydoc_data.topics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn import functional

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What is to be learned. The first axis of both tensors of `data` is the sample."""

    name: str
    data: Callable[[], Data]
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy


# Data


@cache
def raw_digits() -> Data:
    """Pixels from 0 to 16, `[1797, 64]`, and the digit."""
    data = load_digits()
    return torch.tensor(data.data).float(), torch.tensor(data.target)


@cache
def standardized_digits() -> Data:
    x, y = raw_digits()
    return standardized(x), y


@cache
def digit_images() -> Data:
    """Standardized pixels as images, `[1797, 1, 8, 8]`."""
    x, y = standardized_digits()
    return x.unflatten(1, (1, 8, 8)), y


@cache
def digits_to_rebuild() -> Data:
    """Standardized pixels, `[1797, 64]`, twice: an autoencoder's input and target."""
    x, _ = standardized_digits()
    return x, x


@cache
def raw_cancer() -> Data:
    """Measurements in their own units, from 0 to 4,254, `[569, 30]`, and the diagnosis."""
    data = load_breast_cancer()
    return torch.tensor(data.data).float(), torch.tensor(data.target)


@cache
def standardized_cancer() -> Data:
    x, y = raw_cancer()
    return standardized(x), y


@cache
def characters() -> Data:
    """Windows of 16 characters of Python's manual, `[600, 16]`, and the character after each."""
    codes = torch.tensor([min(ord(c), 127) for c in "".join(pydoc_data.topics.topics.values())])
    starts = torch.randint(0, len(codes) - 17, (600,), generator=generator(0))
    return torch.stack([codes[s : s + 16] for s in starts]), codes[starts + 16]


@cache
def returns() -> Data:
    """States of a pendulum under a random policy, `[2000, 4]`, and their discounted returns,
    `[2000, 1]`, with mean 0 and standard deviation 1.
    """
    steps, discount, noise = 2200, 0.95, torch.randn(2200, 2, generator=generator(0))
    state, states, rewards = torch.zeros(2), [], []
    for step in range(steps):
        angle, speed = state
        push = 0.5 * noise[step]
        state = torch.stack([angle + 0.1 * speed, 0.97 * speed - 0.3 * angle.sin() + push[0]])
        states.append(torch.stack([angle.sin(), angle.cos(), speed, push[1]]))
        rewards.append(angle.cos() - 0.1 * speed**2)
    total, values = torch.zeros(()), []
    for reward in reversed(rewards):
        total = reward + discount * total
        values.append(total)
    y = torch.stack(values[::-1])[:2000].unsqueeze(1)
    return standardized(torch.stack(states)[:2000]), standardized(y)


def standardized(x: Tensor) -> Tensor:
    return ((x - x.mean(0)) / x.std(0).clamp(min=1e-6)).float()


def generator(seed: int) -> torch.Generator:
    """A separate stream of random numbers."""
    return torch.Generator().manual_seed(seed)


def relative_error(output: Tensor, y: Tensor) -> Tensor:
    """Mean squared error over the variance of the targets: the same in any unit of the targets."""
    return functional.mse_loss(output, y) / y.var()


DIGITS = Task("digits", standardized_digits)
RAW_DIGITS = Task("raw digits", raw_digits)
IMAGES = Task("images", digit_images)
REBUILD = Task("autoencoder", digits_to_rebuild, functional.mse_loss)
CANCER = Task("breast cancer", standardized_cancer)
RAW_CANCER = Task("raw breast cancer", raw_cancer)
TEXT = Task("text", characters)
VALUES = Task("values", returns, functional.mse_loss)


# Networks. Each call of a rectifier is a module of its own, so that any oracle can count its units.


def mlp(
    inputs: int,
    widths: Sequence[int],
    outputs: int,
    norm: Callable[[int], nn.Module] | None = None,
    last: Sequence[nn.Module] = (),
    rectifier: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers, each with `norm` (if any) and a rectifier, a head, and `last` modules."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), *([norm(width)] if norm else []), rectifier()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs), *last)


def cnn(norm: bool = False) -> nn.Sequential:
    def normed(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if norm else []

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), *normed(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), *normed(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), *normed(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


class Block(nn.Module):
    """Attention and an MLP of 64 units, each behind a LayerNorm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.up, self.relu, self.down = nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        """`[sample, position, 32]` to the same shape."""
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(self.relu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Predicts the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.position = nn.Parameter(0.02 * torch.randn(16, 32))
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(32, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[sample, 16]` to the scores of the next character, `[sample, 128]`."""
        return self.head(self.blocks(self.embedding(tokens) + self.position)[:, -1])


def leaky(model: nn.Module, slope: float) -> nn.Module:
    """The same model with LeakyReLU in place of each ReLU, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(slope))
    return model


def layers(model: nn.Module) -> list[Any]:
    """The layers that feed a rectifier."""
    if isinstance(model, Transformer):
        return [block.up for block in model.blocks]
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1]

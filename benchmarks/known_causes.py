"""Runs whose deaths have a known cause: networks, their data, and what is wrong with each run."""

import math
import pydoc_data.topics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn

from reludiag.initialization.schemes import reinitialize

Schedule = Callable[[int], float]
"""Step -> factor of the learning rate."""


# Set-ups


@dataclass(frozen=True)
class Setup:
    """A network, its data, and the settings at which its units die."""

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    steps: int
    takes_shift: bool = True
    """Whether its input can be shifted: numbers can, tokens cannot."""


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Standardized pixels `[1797, 64]`."""
    data = load_digits()
    return _standardized(torch.tensor(data.data)), torch.tensor(data.target)


@cache
def breast_cancer() -> tuple[Tensor, Tensor]:
    """Standardized measurements `[569, 30]`."""
    data = load_breast_cancer()
    return _standardized(torch.tensor(data.data)), torch.tensor(data.target)


@cache
def images() -> tuple[Tensor, Tensor]:
    """Standardized digits as images `[1797, 1, 8, 8]`."""
    x, y = digits()
    return x.unflatten(1, (1, 8, 8)), y


@cache
def text() -> tuple[Tensor, Tensor]:
    """Windows of 24 characters of Python's manual, `[600, 24]`, and the character after each."""
    codes = torch.tensor([min(ord(c), 127) for c in "".join(pydoc_data.topics.topics.values())])
    starts = torch.randint(0, len(codes) - 25, (600,), generator=generator(0))
    return torch.stack([codes[s : s + 24] for s in starts]), codes[starts + 24]


def _standardized(x: Tensor) -> Tensor:
    return ((x - x.mean(0)) / x.std(0).clamp(min=1e-6)).float()


def _mlp(inputs: int, width: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(inputs, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, outputs),
    )


def _cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


class Transformer(nn.Module):
    """Two layers of attention and ReLU over characters; predicts the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.position = nn.Parameter(0.02 * torch.randn(24, 32))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(32, 2, batch_first=True) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.up = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(96, 32) for _ in range(2))
        self.head = nn.Linear(32, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next character, from the last position."""
        x = self.embedding(tokens) + self.position
        for layer in range(2):
            y = self.norms[2 * layer](x)
            x = x + self.attention[layer](y, y, y, need_weights=False)[0]
            y = self.norms[2 * layer + 1](x)
            x = x + self.down[layer](self.up[layer](y).relu())
        return self.head(x[:, -1])


SETUPS = (
    Setup("digits", partial(_mlp, 64, 64, 10), digits, 224),
    Setup("breast cancer", partial(_mlp, 30, 48, 2), breast_cancer, 200),
    Setup("cnn", _cnn, images, 224),
    Setup("transformer", Transformer, text, 200, takes_shift=False),
)


# What goes wrong


def hidden(model: nn.Module) -> list[nn.Module]:
    """Layers that feed a rectifier."""
    if isinstance(model, Transformer):
        return list(model.up)
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1]


def biased(by: float, model: nn.Module) -> None:
    for layer in hidden(model):
        nn.init.constant_(layer.bias, by)


def negative_mean(model: nn.Module) -> None:
    """Weights whose mean is far below 0, in layers with positive inputs: after a rectifier."""
    layers = hidden(model)
    with torch.no_grad():
        for layer in layers[1:]:
            layer.weight -= 0.3


def scaled(by: float, model: nn.Module) -> None:
    with torch.no_grad():
        for layer in hidden(model):
            layer.weight *= by / math.sqrt(2)


def default(model: nn.Module) -> None:
    reinitialize(model, "pytorch", 1)


def as_it_is(model: nn.Module) -> None:
    """Leave the weights as drawn."""


def constant(step: int) -> float:
    return 1.0


def warm_up(length: int, step: int) -> float:
    return min(1.0, step / length)


def spike(times: float, step: int) -> float:
    return times if 100 <= step < 105 else 1.0


def cosine(step: int) -> float:
    """A warm-up of 40 steps, then down to 0 at step 230."""
    return step / 40 if step < 40 else 0.5 * (1 + math.cos(math.pi * (step - 40) / 190))


@dataclass(frozen=True)
class Case:
    """One thing that is wrong with a run."""

    name: str
    label: frozenset[str]
    """The right answers."""
    identifiable: bool | None = None
    """Whether the run alone can prove it; None if both answers are accepted."""
    optimizer: str = "adam"
    lr: float = 1e-3
    schedule: Schedule = constant
    init: Callable[[nn.Module], None] = as_it_is
    shift: float = 0.0
    only: frozenset[str] = field(default_factory=frozenset)
    """Set-ups that it applies to; all if empty."""


LR, INIT, INPUT, LOST, NOTHING = (
    frozenset({kind})
    for kind in ("learning_rate", "initialization", "input_shift", "divergence", "none")
)
FACTS = frozenset({"digits"})
OTHERS = frozenset({"breast cancer", "cnn", "transformer"})
CASES = (
    # The cases of reludiag's specification, section by section, on digits.
    Case("1 Adam 0.1", LR, False, lr=0.1, only=FACTS),
    Case("1 Adam 0.1, default init", LR, False, lr=0.1, init=default, only=FACTS),
    Case("1 SGD 10, clipped", LR, False, "clipped", 10.0, only=FACTS),
    Case("2 bias -3, Adam", INIT, True, init=partial(biased, -3), only=FACTS),
    Case(
        "2 bias -3, SGD clipped", INIT, True, "clipped", 0.1, init=partial(biased, -3), only=FACTS
    ),
    Case("2 bias -3, Adam 0.1", LR, None, lr=0.1, init=partial(biased, -3), only=FACTS),
    Case("3 negative weights, Adam", INIT, True, init=negative_mean, only=FACTS),
    Case("3 negative weights, SGD", INIT, True, "clipped", 0.1, init=negative_mean, only=FACTS),
    Case("3 negative weights, Adam 0.1", INIT, True, lr=0.1, init=negative_mean, only=FACTS),
    Case("4 bias -10, Adam", INIT, True, init=partial(biased, -10), only=FACTS),
    Case("4 bias -10, Adam 0.1", INIT, True, lr=0.1, init=partial(biased, -10), only=FACTS),
    Case("4 bias -10, SGD", INIT, True, "clipped", 0.1, init=partial(biased, -10), only=FACTS),
    Case("5 input + 1", INPUT | NOTHING, None, shift=1.0, only=FACTS),
    Case("5 input + 10, Adam", INPUT, True, shift=10.0, only=FACTS),
    Case("5 input + 10, SGD", INPUT, True, "clipped", 0.1, shift=10.0, only=FACTS),
    Case("5 input + 30, default init", INPUT, True, shift=30.0, init=default, only=FACTS),
    Case("5 input + 100", INPUT, True, shift=100.0, only=FACTS),
    Case("6 gain 0.1", LR | NOTHING, None, init=partial(scaled, 0.1), only=FACTS),
    Case("6 gain 10", NOTHING, None, init=partial(scaled, 10.0), only=FACTS),
    Case("7 Adam 0.03", LR, False, lr=0.03, only=FACTS),
    Case("7 Adam 0.03, warm-up 20", LR, None, lr=0.03, schedule=partial(warm_up, 20), only=FACTS),
    Case(
        "7 Adam 0.03, warm-up 100",
        LR | NOTHING,
        None,
        lr=0.03,
        schedule=partial(warm_up, 100),
        only=FACTS,
    ),
    Case("7 Adam 0.1, warm-up 20", LR, None, lr=0.1, schedule=partial(warm_up, 20), only=FACTS),
    Case("7 Adam 0.1, warm-up 100", LR, None, lr=0.1, schedule=partial(warm_up, 100), only=FACTS),
    Case("8 spike, Adam", LR, True, schedule=partial(spike, 100), only=FACTS),
    Case("8 spike, SGD clipped", LR, True, "clipped", 0.1, partial(spike, 100), only=FACTS),
    Case("9 SGD 10", LOST, True, "sgd", 10.0, only=FACTS),
    Case("control, Adam", NOTHING, None, only=FACTS),
    Case("control, SGD clipped", NOTHING, None, "clipped", 0.1, only=FACTS),
    # The same kinds on the other set-ups.
    Case("Adam too high", LR, False, lr=0.2, only=OTHERS),
    Case("Adam too high, cosine", LR, None, lr=0.2, schedule=cosine, only=OTHERS),
    Case("SGD clipped too high", LR, False, "clipped", 20.0, only=OTHERS),
    Case("bias -10", INIT, True, init=partial(biased, -10), only=OTHERS),
    Case("bias -10, SGD", INIT, True, "clipped", 0.05, init=partial(biased, -10), only=OTHERS),
    Case("negative weights", INIT, True, init=negative_mean, only=OTHERS),
    Case("input + 30", INPUT, True, shift=30.0, only=OTHERS),
    Case("input + 30, SGD", INPUT, True, "clipped", 0.05, shift=30.0, only=OTHERS),
    Case("spike", LR, True, schedule=partial(spike, 300), only=OTHERS),
    Case("diverged", LOST, True, "sgd", 1e4, only=OTHERS),
    Case("control, Adam", NOTHING, None, only=OTHERS),
    Case("control, SGD clipped", NOTHING, None, "clipped", 0.05, only=OTHERS),
)


def cases_of(setup: Setup) -> Iterator[Case]:
    for case in CASES:
        if setup.name in case.only and (setup.takes_shift or not case.shift):
            yield case


def generator(seed: int) -> torch.Generator:
    """A separate stream of random numbers."""
    return torch.Generator().manual_seed(seed)

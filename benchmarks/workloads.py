"""The measured networks, and a training step for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A basic residual block, with one in-place ReLU called twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Of shape `[sample, channel, height, width]`."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def mlp() -> nn.Module:
    """784-1024-1024-10."""
    layers = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 10))


def cnn() -> nn.Module:
    """Four convolutions with batch norm."""
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((3, 32, False), (32, 64, True), (64, 64, False), (64, 128, True)):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def resnet() -> nn.Module:
    """ResNet-18."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)]
    layers += [nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        layers += [Block(inputs, outputs, 1 + (outputs > inputs)), Block(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Transformer(nn.Module):
    """Four encoder layers with functional ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(384, 6, 1024, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(384, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Of shape `[sample, token, feature]`."""
        return self.head(self.layers(x)).mean(1)


@dataclass(frozen=True)
class Workload:
    """A network and the shape of its batches."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


WORKLOADS = (
    Workload("mlp", mlp, (128, 784)),
    Workload("cnn", cnn, (64, 3, 32, 32)),
    Workload("resnet", resnet, (16, 3, 64, 64)),
    Workload("transformer", Transformer, (8, 128, 384)),
)


class Training:
    """A network in training, one step at a time."""

    def __init__(self, workload: Workload, half_dead: bool = False) -> None:
        torch.manual_seed(0)
        self.model = workload.build()
        if half_dead:
            silence_half(self.model)
        # As in real training, consecutive batches differ.
        self.batches = [
            (torch.randn(workload.shape), torch.randint(0, 10, (workload.shape[0],)))
            for _ in range(16)
        ]
        self.steps = 0
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)

    def step(self) -> None:
        """Forward, backward, update."""
        x, y = self.batches[self.steps % len(self.batches)]
        self.steps += 1
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()


def silence_half(model: nn.Module) -> None:
    """Give half of the units before each ReLU a bias that keeps them dead.

    A block's second ReLU also gets the shortcut, which is positive: it is left as it is.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features >= 1024]
    with torch.no_grad():
        for module in norms or linears:
            module.bias[: len(module.bias) // 2] = -1000.0

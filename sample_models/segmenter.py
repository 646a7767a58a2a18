"""Semantic segmentation: a small U-Net that labels each pixel with the digit it belongs to.

python sample_models/segmenter.py --dying --checkpoint unet.pt --recording run.reludiag
"""

from typing import Any

import torch
from run import Attach, attached, main, seeded, unwatched
from scenes import scenes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

HEALTHY = {"lr": 3e-3}
DYING = {"lr": 0.1}
_CLASSES = 11  # background and ten digits


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and a ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            layers += [
                nn.Conv2d(width, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """`[batch, 1, height, width]` to class scores `[batch, 11, height, width]`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = DoubleConv(1, width), DoubleConv(width, 2 * width)
        self.bottom = DoubleConv(2 * width, 4 * width)
        self.widen2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = DoubleConv(4 * width, 2 * width)
        self.widen1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = DoubleConv(2 * width, width)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, _CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Down twice, up twice, each time beside what was seen on the way down."""
        fine = self.down1(images)
        coarse = self.down2(self.pool(fine))
        y = self.bottom(self.pool(coarse))
        y = self.up2(torch.cat([self.widen2(y), coarse], dim=1))
        y = self.up1(torch.cat([self.widen1(y), fine], dim=1))
        return self.head(y)


def build(seed: int | None = None) -> nn.Module:
    """A U-Net with fresh weights."""
    with seeded(seed):
        return UNet()


def batches(count: int = 256, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    """Held-out scenes with their masks."""
    held_out = scenes(count, held_out=True)
    return list(zip(held_out.images.split(size), held_out.masks.split(size), strict=True))


def probe() -> Tensor:
    """128 training scenes, on which a recording judges the units."""
    return scenes(2_000, held_out=False).images[:128]


def fit(
    model: nn.Module,
    *,
    lr: float = 3e-3,
    steps: int = 400,
    batch_size: int = 16,
    seed: int = 0,
    attach: Attach = unwatched,
) -> dict[str, float]:
    """Train with Adam; returns the mean IoU over the 11 classes on held-out scenes."""
    data = scenes(2_000, held_out=False)
    # Nine pixels of ten are background.
    weights = torch.tensor([0.2, *[1.0] * (_CLASSES - 1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    with attach(model, optimizer):
        for _ in range(steps):
            chosen = torch.randint(0, len(data.images), (batch_size,), generator=generator)
            loss = cross_entropy(model(data.images[chosen]), data.masks[chosen], weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    return {"mean_iou": mean_iou(model), "loss": loss.item()}


def train(trial: Any) -> dict[str, float]:
    """What an experiment varies, `reludiag sweep` or `replay`: by itself, the run that dies."""
    model = trial.init(build(trial.seed))
    lr = trial.lr(DYING["lr"])
    return fit(model, lr=lr, seed=trial.seed, attach=attached(trial, probe()))


@torch.no_grad()
def mean_iou(model: nn.Module) -> float:
    """Intersection over union of each class over all held-out pixels, averaged."""
    counts = torch.zeros(_CLASSES, _CLASSES, dtype=torch.long)
    for images, masks in batches():
        guesses = model(images).argmax(1)
        pairs = masks.flatten() * _CLASSES + guesses.flatten()
        counts += pairs.bincount(minlength=_CLASSES**2).view(_CLASSES, _CLASSES)
    shared = counts.diagonal()
    return float((shared / (counts.sum(0) + counts.sum(1) - shared)).mean())


if __name__ == "__main__":
    main(build, fit, probe, HEALTHY, DYING)

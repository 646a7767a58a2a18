"""Object detection: a one-stage detector, with a class and a box head, of digits in scenes.

    python sample_models/detector.py --dying --checkpoint detector.pt --recording run.reludiag

Each cell of a 12 x 12 grid says which digit has its centre there, if any, and how far away the
sides of its box are (as FCOS does, Tian et al. 2019, at a single scale).
"""

from typing import Any

import torch
from run import Attach, attached, main, seeded, unwatched
from scenes import Scenes, scenes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

HEALTHY = {"lr": 1e-3}
DYING = {"lr": 0.01}
STRIDE = 4  # pixels a cell
_CLASSES = 10
_BOX_SCALE = 16.0  # pixels; keeps the box head's targets near 1


class Detector(nn.Module):
    """`[batch, 1, 48, 48]` to class scores `[batch, 11, 12, 12]` and sides `[batch, 4, 12, 12]`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *_layer(1, 16), *_layer(16, 32, 2), *_layer(32, 48), *_layer(48, 64, 2), *_layer(64, 64)
        )
        self.class_head = nn.Sequential(*_layer(64, 48), nn.Conv2d(48, 1 + _CLASSES, 1))
        self.box_head = nn.Sequential(*_layer(64, 48), nn.Conv2d(48, 4, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores, background first, and distances to the left, top, right and bottom side."""
        features = self.backbone(images)
        return self.class_head(features), self.box_head(features)


def _layer(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)
    return convolution, nn.ReLU(inplace=True)


def build(seed: int | None = None) -> nn.Module:
    """A detector with fresh weights."""
    with seeded(seed):
        return Detector()


def batches(count: int = 512, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Held-out scenes with the classes that are in them."""
    held_out = scenes(count, held_out=True)
    return list(zip(held_out.images.split(size), held_out.classes.split(size), strict=True))


def probe() -> Tensor:
    """256 training scenes, on which a recording judges the units."""
    return scenes(2_000, held_out=False).images[:256]


def targets(data: Scenes) -> tuple[Tensor, Tensor]:
    """What each cell should say: class `[n, 12, 12]`, 0 for none, and sides `[n, 4, 12, 12]`."""
    cells = data.images.shape[-1] // STRIDE
    classes = torch.zeros(len(data.images), cells, cells, dtype=torch.long)
    sides = torch.zeros(len(data.images), 4, cells, cells)
    for scene, place in torch.nonzero(data.classes >= 0).tolist():
        x0, y0, x1, y1 = data.boxes[scene, place].tolist()
        column, row = int((x0 + x1) / 2 / STRIDE), int((y0 + y1) / 2 / STRIDE)
        x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
        classes[scene, row, column] = 1 + data.classes[scene, place]
        sides[scene, :, row, column] = torch.tensor([x - x0, y - y0, x1 - x, y1 - y])
    return classes, sides / _BOX_SCALE


def fit(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    steps: int = 400,
    batch_size: int = 32,
    seed: int = 0,
    attach: Attach = unwatched,
) -> dict[str, float]:
    """Train with Adam; returns F1 at an overlap of a half with the right class, held out."""
    data = scenes(2_000, held_out=False)
    classes, sides = targets(data)
    # Of 144 cells about two hold a centre: without weights the detector would say "nothing".
    weights = torch.tensor([0.05, *[1.0] * _CLASSES])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    with attach(model, optimizer):
        for _ in range(steps):
            chosen = torch.randint(0, len(data.images), (batch_size,), generator=generator)
            scores, guessed = model(data.images[chosen])
            occupied = (classes[chosen] > 0).unsqueeze(1).expand_as(guessed)
            loss = cross_entropy(scores, classes[chosen], weights)
            loss = loss + smooth_l1_loss(guessed[occupied], sides[chosen][occupied])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    return {"f1": f1_score(model, scenes(512, held_out=True)), "loss": loss.item()}


def train(trial: Any) -> dict[str, float]:
    """What an experiment varies, `reludiag sweep` or `replay`: by itself, the run that dies."""
    model = trial.init(build(trial.seed))
    lr = trial.lr(DYING["lr"])
    return fit(model, lr=lr, seed=trial.seed, attach=attached(trial, probe()))


@torch.no_grad()
def f1_score(model: nn.Module, data: Scenes) -> float:
    """F1 of the digits found: right class, overlap with a box of a half or more, each once."""
    scores, sides = model(data.images)
    probability, kind = scores.softmax(1)[:, 1:].max(1)
    # A digit is found once: at the peak of its neighbourhood.
    peaks = nn.functional.max_pool2d(probability.unsqueeze(1), 5, 1, padding=2).squeeze(1)
    found = torch.nonzero((probability == peaks) & (probability > 0.5))
    right = 0
    taken = set[tuple[int, int]]()
    for scene, row, column in found.tolist():
        left, top, right_side, bottom = (sides[scene, :, row, column] * _BOX_SCALE).tolist()
        x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
        box = torch.tensor([x - left, y - top, x + right_side, y + bottom])
        for place in range(4):
            same = data.classes[scene, place] == kind[scene, row, column]
            fits = same and overlap(box, data.boxes[scene, place]) >= 0.5
            if fits and (scene, place) not in taken:
                taken.add((scene, place))
                right += 1
                break
    present = int((data.classes >= 0).sum())
    return 2 * right / (len(found) + present)


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boxes `[4]`."""
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    shared = (high - low).clamp(min=0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
    return float(shared / union)


if __name__ == "__main__":
    main(build, fit, probe, HEALTHY, DYING)

"""Scenes of one to four real digits on a noisy background, for detection and segmentation."""

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

SIZE = 48  # pixels; a scene has four quarters, each with at most one digit
_QUARTER = SIZE // 2
_TRAINING_DIGITS = 1_437  # of 1,797; held-out scenes are made of the others
_SMALLEST, _LARGEST = 12, 20  # pixels a digit is wide


@dataclass(frozen=True)
class Scenes:
    """`images [n, 1, 48, 48]`; `classes [n, 4]`, -1 for none; `boxes [n, 4, 4]` as x0 y0 x1 y1
    in pixels; `masks [n, 48, 48]`, 0 for background and 1 + digit.
    """

    images: Tensor
    classes: Tensor
    boxes: Tensor
    masks: Tensor


@cache
def scenes(count: int, held_out: bool) -> Scenes:
    """The same scenes each time; those held out are made of digits that the others lack."""
    data = load_digits()
    digits = torch.tensor(data.images, dtype=torch.float32) / 16
    pool = range(_TRAINING_DIGITS, len(digits)) if held_out else range(_TRAINING_DIGITS)
    generator = torch.Generator().manual_seed(1 + held_out)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    images = 0.15 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    classes = torch.full((count, 4), -1)
    boxes = torch.zeros(count, 4, 4)
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for scene in range(count):
        for quarter in torch.randperm(4, generator=generator)[: draw(1, 5)].tolist():
            index = pool[draw(0, len(pool))]
            width = draw(_SMALLEST, _LARGEST + 1)
            digit = interpolate(digits[None, None, index], (width, width), mode="bilinear")[0, 0]
            x = _QUARTER * (quarter % 2) + draw(0, _QUARTER - width + 1)
            y = _QUARTER * (quarter // 2) + draw(0, _QUARTER - width + 1)
            window = (scene, slice(y, y + width), slice(x, x + width))
            images[scene, 0, window[1], window[2]] += digit
            masks[window][digit > 0.3] = 1 + int(data.target[index])
            classes[scene, quarter] = int(data.target[index])
            boxes[scene, quarter] = torch.tensor([x, y, x + width, y + width])
    return Scenes((images - 0.1) / 0.3, classes, boxes, masks)

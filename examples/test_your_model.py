"""pytest: a test that fails if a model has too many dead units.

pytest examples/test_your_model.py
"""

import torch
from torch import nn

from reludiag.testing import assert_alive


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))


def test_few_units_are_born_dead() -> None:
    assert_alive(build(), torch.randn(512, 20), max_dead="5%")

"""Calls of rectifiers that provably are no layer's units are listed apart, and no others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reludiag
from reludiag.measure.site_list import list_sites
from reludiag.testing import assert_alive

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


class Beside(nn.Module):
    """A layer with a ReLU, and something else that is computed from its input or its output."""

    def __init__(self, other: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.out, self.relu = nn.Linear(8, 16), nn.Linear(16, 4), nn.ReLU()
        self.other, self.last = other, nn.ReLU()
        self.register_buffer("anchors", torch.rand(8))
        self.scale = nn.Parameter(torch.ones(()))
        with torch.no_grad():
            self.fc.weight.normal_(generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Any:
        h = self.relu(self.fc(x))
        return self.out(h), self.other(self, x, h)


RAW: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "boxes": lambda self, x, h: x[:, :4].clamp(min=0),
    "boxes by their anchors": lambda self, x, h: (x * self.anchors + self.anchors).clamp(min=0),
    "overlaps": lambda self, x, h: (torch.min(x[:, None], x[None]) - x[:, None]).clamp_(min=0),
    "lengths": lambda self, x, h: (x > 0).sum(1).float().sub(3).clamp(0, 2),
    "a norm": lambda self, x, h: functional.relu(1 - x.pow(2).sum(-1)),
}


@pytest.mark.parametrize("name", RAW)
def test_what_no_layer_feeds_is_no_site(name: str) -> None:
    model = Beside(RAW[name])
    diagnosis = reludiag.scan(model, [X, X[:5]])
    assert set(diagnosis.sites["site"]) == {"relu", "last"}
    assert [place.where for place in diagnosis.unjudged] == ["last"]
    assert "Left out: 'Beside:" in " ".join(diagnosis.head.notes)
    assert any("Left out" in note for note in list_sites(model, X).notes)
    model.last = nn.Identity()
    assert_alive(model, [X, X[:5]])


@pytest.mark.parametrize("name", RAW)
def test_a_training_leaves_it_out_as_well(name: str) -> None:
    model = Beside(RAW[name])
    model.last = nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with reludiag.Monitor(model, optimizer, every=60) as monitor:
        for _ in range(120):
            optimizer.zero_grad()
            model(X)[0].sum().backward()
            optimizer.step()
    diagnosis = monitor.diagnose()
    assert list(diagnosis.sites["site"]) == ["relu"]
    assert not diagnosis.unjudged
    assert "Left out" in " ".join(diagnosis.head.notes)


FED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "decoded boxes": lambda self, x, h: (h[:, :8] * self.anchors + x).clamp(min=0),
    "a mixture": lambda self, x, h: h.sum(-1).sub(1).clamp(min=0),
    "a scaled input": lambda self, x, h: (x * self.scale).clamp(min=0),
    "a product without parameters": lambda self, x, h: (x @ x.T).clamp(min=0),
    "a hidden weight": lambda self, x, h: (x @ self.anchors[:, None]).clamp(min=0),
}


@pytest.mark.parametrize("name", FED)
def test_what_a_layer_may_feed_stays_a_site(name: str) -> None:
    diagnosis = reludiag.scan(Beside(FED[name]), X)
    assert len(diagnosis.sites) == 3
    assert "Left out" not in " ".join(diagnosis.head.notes)


def test_a_part_that_is_called_alone_may_be_fed_by_another() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 4)

        def forward(self, z: Tensor) -> Tensor:
            return self.fc(z.clamp(min=0))

    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(8, 16)), "head": nn.Sequential(Head())})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with reludiag.Monitor(model, optimizer, every=4) as monitor:
        for _ in range(8):
            optimizer.zero_grad()
            model["head"](model["body"](X)).sum().backward()
            optimizer.step()
    assert list(monitor.diagnose().sites["site"]) == ["head.0:clamp"]


def ranked(self: Any, x: Tensor, h: Tensor) -> Tensor:
    values, indices = self.fc(x).topk(4)
    return torch.zeros(len(x), 16).scatter(-1, indices, self.last(values))


def test_a_rectifier_of_ranks_is_none_where_they_are_put_back() -> None:
    diagnosis = reludiag.scan(Beside(ranked), X)
    assert list(diagnosis.sites["activation"]) == ["ReLU", "topk"]
    assert not diagnosis.unjudged
    assert "Left out: 'last'" in " ".join(diagnosis.head.notes)


def test_of_ranks_that_stay_ranks_no_unit_is_judged() -> None:
    diagnosis = reludiag.scan(Beside(lambda self, x, h: self.last(self.fc(x).topk(4)[0])), X)
    assert list(diagnosis.sites["site"]) == ["relu"]
    assert [place.where for place in diagnosis.unjudged] == ["last"]
    assert "in order of their rank" in diagnosis.unjudged[0].sentence


def test_a_named_axis_makes_it_a_site() -> None:
    diagnosis = reludiag.scan(Beside(RAW["boxes"]), X, unit_axes={"Beside:clamp": 1})
    assert len(diagnosis.sites) == 3


def test_what_the_user_asks_for_is_never_left_out() -> None:
    def reported(self: Any, x: Tensor, h: Tensor) -> Tensor:
        reludiag.observe("inputs", x[:, :4])
        return h

    assert "observed" in set(reludiag.scan(Beside(reported), X).sites["activation"])
    act = reludiag.register_rectifier(lambda x: x.clamp(min=0), zero_gradient="x <= 0")
    diagnosis = reludiag.scan(Beside(lambda self, x, h: act(x)), X)
    assert len(diagnosis.sites) == 3

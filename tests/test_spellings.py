"""Rectifiers spelled with several operators: JumpReLU, TopK, and what only looks like them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reludiag

UNITS, DEAD, K = 64, 10, 4
X = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))


class Autoencoder(nn.Module):
    """A sparse autoencoder; `fired` is what its latents did, as a hook for it alone counts."""

    def __init__(self, codes: Callable[[Any, Tensor], Tensor], units: int = UNITS) -> None:
        super().__init__()
        self.encode, self.decode, self.codes = nn.Linear(8, units), nn.Linear(units, 8), codes
        self.theta = nn.Parameter(torch.full((units,), 0.5))
        self.fired = torch.zeros(units, dtype=torch.int64)
        with torch.no_grad():
            self.encode.weight.normal_(generator=torch.Generator().manual_seed(1))
            self.encode.bias[:DEAD] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        latents = self.codes(self, self.encode(x))
        self.fired += (latents != 0).sum(0)
        return self.decode(latents)


class Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor) -> Tensor:
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor) -> Tensor:
        return (z > theta).to(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None


def _filled(self: Any, z: Tensor) -> Tensor:
    z = z.clone()
    z[z <= self.theta] = 0
    return z


JUMPS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "number": lambda self, z: z * (z > 0.5),
    "negative number": lambda self, z: z * (z > -0.5),
    "parameter": lambda self, z: z * (z > self.theta),
    "computed": lambda self, z: z * (z > self.theta.log().exp()).float(),
    "turned round": lambda self, z: (self.theta < z) * z,
    "where": lambda self, z: torch.where(z > self.theta, z, 0.0),
    "where not": lambda self, z: torch.where(z <= self.theta, torch.zeros_like(z), z),
    "masked_fill": lambda self, z: z.masked_fill(z <= self.theta, 0),
    "assigned": _filled,
    "autograd.Function": lambda self, z: Jump.apply(z, self.theta),
    "a step of its own": lambda self, z: z * Step.apply(z, self.theta),
    "k-th value": lambda self, z: z * (z >= z.topk(K).values[..., -1:]),
}


def _scattered(self: Any, z: Tensor) -> Tensor:
    values, indices = z.topk(K)
    return torch.zeros_like(z).scatter(-1, indices, values)


def _rectified(self: Any, z: Tensor) -> Tensor:
    top = torch.topk(functional.relu(z), k=K, dim=-1, sorted=False)
    return torch.zeros(z.shape).scatter_(dim=-1, index=top.indices, src=top.values)


def _batched(self: Any, z: Tensor) -> Tensor:
    flat = functional.relu(z).flatten()
    top = flat.topk(K * len(z), sorted=False, dim=-1)
    return torch.zeros_like(flat).scatter(-1, top.indices, top.values).reshape(z.shape)


def _batched_at_once(self: Any, z: Tensor) -> Tensor:
    a = functional.relu(z)
    top = a.flatten().topk(K * len(z))
    return torch.zeros_like(a.flatten()).scatter(0, top.indices, top.values).view_as(a)


def _masked(self: Any, z: Tensor) -> Tensor:
    return z * torch.zeros_like(z).scatter_(-1, z.topk(K).indices, 1.0)


def _masked_by_ones(self: Any, z: Tensor) -> Tensor:
    indices = z.topk(K).indices
    chosen = torch.zeros_like(z, dtype=torch.bool)
    return torch.where(chosen.scatter(-1, indices, torch.ones_like(indices).bool()), z, 0)


TOPS = {
    "topk": _scattered,
    "topk of relu": _rectified,
    "batch": _batched,
    "batch at once": _batched_at_once,
    "mask": _masked,
    "mask of ones": _masked_by_ones,
}


def check(model: Autoencoder, activation: str) -> None:
    """A scan and a training say of the latents what the model itself has counted."""
    diagnosis = reludiag.scan(model, X.split(32))
    site = diagnosis.sites[diagnosis.sites["activation"] == activation].iloc[0]
    units = diagnosis.units[diagnosis.units["site"] == site["site"]]
    assert units["fired"].tolist() == model.fired.tolist()
    assert units["samples"].eq(len(X)).all()
    assert (units["verdict"] == "dead").tolist() == (model.fired == 0).tolist()
    assert (site["producer"], DEAD) <= ("encode", site["dead"])
    assert not diagnosis.unjudged
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    model.fired.zero_()
    with reludiag.Monitor(model, optimizer, every=4, stats_every=1) as monitor:
        for batch in X.split(32):
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()
    units = monitor.diagnose().units
    units = units[units["activation"] == activation]
    assert units["fired"].tolist() == model.fired.tolist()


@pytest.mark.parametrize("spelling", JUMPS)
def test_a_jumprelu_is_found_however_it_is_spelled(spelling: str) -> None:
    check(Autoencoder(JUMPS[spelling]), "jumprelu")


@pytest.mark.parametrize("spelling", TOPS)
def test_the_units_of_a_topk_are_the_latents(spelling: str) -> None:
    check(Autoencoder(TOPS[spelling]), "topk")


@pytest.mark.slow
@pytest.mark.parametrize("codes", [JUMPS["parameter"], _rectified, _batched])
def test_many_latents_are_counted_as_by_a_hook(codes: Any) -> None:
    check(Autoencoder(codes, 16_384), "jumprelu" if codes is JUMPS["parameter"] else "topk")


def test_a_jump_of_what_was_rectified_has_the_units_of_the_relu() -> None:
    for codes in (
        lambda self, z: functional.relu(z) * (z > self.theta),
        lambda self, z: (z > self.theta) * functional.relu(z),
    ):
        diagnosis = reludiag.scan(Autoencoder(codes), X)
        assert list(diagnosis.sites["activation"]) == ["jumprelu"]
        assert list(diagnosis.sites["selects_from"]) == ["encode:relu"]
        assert list(diagnosis.sites["producer"]) == ["encode"]


def test_what_is_selected_and_zero_has_not_fired() -> None:
    """Where fewer than k are positive, the rest of the selected are zeros."""
    model = Autoencoder(_rectified)
    with torch.no_grad():
        model.encode.bias[: UNITS - 2] = -100.0
    diagnosis = reludiag.scan(model, X)
    top = diagnosis.sites[diagnosis.sites["activation"] == "topk"].iloc[0]
    assert top["dead"] == UNITS - 2


NOT_SPELLED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "of another tensor": lambda self, z: torch.tanh(z) * (z.flip(-1) > self.theta),
    "the other side": lambda self, z: z * (z < self.theta),
    "outdated": lambda self, z: (lambda mask: z.mul_(-1) * mask)(z > self.theta),
    "without a threshold": lambda self, z: z * (z > -torch.inf),
    "the smallest": lambda self, z: torch.zeros_like(z).scatter(
        -1, *z.topk(K, largest=False)[::-1]
    ),
    "not into zeros": lambda self, z: torch.ones_like(z).scatter(-1, *z.topk(K)[::-1]),
    "another's values": lambda self, z: torch.zeros_like(z).scatter(
        -1, z.topk(K).indices, z.flip(-1).topk(K).values
    ),
    "a mask on more": lambda self, z: z * torch.rand_like(z).scatter_(-1, z.topk(K).indices, 1.0),
    "dropped": lambda self, z: z * (torch.rand_like(z) > 0.5),
}


@pytest.mark.parametrize("spelling", NOT_SPELLED)
def test_what_only_looks_like_one_is_none(spelling: str) -> None:
    model = nn.Sequential(Autoencoder(NOT_SPELLED[spelling]), nn.ReLU())
    assert list(reludiag.scan(model, X).sites["site"]) == ["1"]


def test_relu_squared_is_one_site() -> None:
    for codes in (
        lambda self, z: functional.relu(z) ** 2,
        lambda self, z: functional.relu(z).square(),
        lambda self, z: torch.relu(z) * torch.relu(z).detach(),
    ):
        diagnosis = reludiag.scan(Autoencoder(codes), X)
        assert set(diagnosis.sites["activation"]) == {"relu"}
        assert set(diagnosis.sites["dead"]) == {DEAD}


def test_both_signs_of_a_crelu_are_sites() -> None:
    model = Autoencoder(lambda self, z: torch.cat([torch.relu(z), torch.relu(-z)], dim=-1))
    model.decode, model.fired = nn.Linear(2 * UNITS, 8), torch.zeros(2 * UNITS, dtype=torch.int64)
    table = reludiag.scan(model, X).sites
    assert list(table["dead"]) == [DEAD, 0]
    assert list(table["producer"]) == ["encode", "encode"]
    assert list(table["unit_axis"]) == ["1", "1"]


def test_a_shifted_relu_is_a_site() -> None:
    model = Autoencoder(lambda self, z: functional.relu(z - self.theta))
    assert list(reludiag.scan(model, X).sites["dead"]) == [DEAD]

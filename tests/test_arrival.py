"""What of a rectifier's output arrives behind a selection: a top-k, a mask, a scatter."""

import contextlib
import io
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reludiag
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.diagnosis.gate import Gate

UNITS, SILENT, K = 64, 10, 4
X = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))

Encode = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""From the model and its pre-activations to what the ReLU returned, and what arrives."""


class Autoencoder(nn.Module):
    """A sparse autoencoder that counts for itself, in how many samples its latents fire."""

    def __init__(self, codes: Encode, units: int = UNITS) -> None:
        super().__init__()
        self.encode, self.decode, self.codes = nn.Linear(8, units), nn.Linear(units, 8), codes
        self.act = nn.ReLU()
        generator = torch.Generator().manual_seed(1)
        self.theta = nn.Parameter(torch.full((units,), 0.5))
        self.gate = nn.Parameter(torch.randn(units, generator=generator))
        self.fired, self.arrived = (torch.zeros(units, dtype=torch.int64) for _ in range(2))
        with torch.no_grad():
            self.encode.weight.normal_(generator=generator)
            self.encode.bias[:SILENT] = -100.0
            self.encode.weight[-3:] *= 0.01  # they fire, below any threshold
            self.gate[SILENT : SILENT + 3] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        rectified, latents = self.codes(self, self.encode(x))
        with torch.no_grad():
            self.fired += (rectified > 0).sum(0)
            self.arrived += (latents != 0).sum(0)
        return self.decode(latents)


def _mask(a: Tensor) -> Tensor:
    return torch.zeros_like(a, dtype=torch.bool).scatter(-1, a.topk(K).indices, True)


def _flat_mask(a: Tensor) -> Tensor:
    flat = a.flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(K * len(a)).indices] = True
    return mask.view_as(a)


def _scattered(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    a = self.act(z)
    values, indices = a.topk(K, sorted=False)
    return a, torch.zeros_like(a).scatter_(-1, indices, values)


def _in_place(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    a = functional.relu_(z)
    values, indices = a.topk(K)
    return a, torch.zeros_like(a).scatter(-1, indices, values)


def _gathered(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    a = self.act(z)
    indices = a.topk(K).indices
    return a, torch.zeros_like(a).scatter(-1, indices, a.gather(-1, indices))


def _batch(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    a = torch.relu(z)
    top = a.flatten().topk(K * len(a), sorted=False)
    flat = torch.zeros_like(a.flatten()).scatter(-1, top.indices, top.values)
    return a, flat.reshape(a.shape)


def _followed_by(function: Callable[[Any, Tensor], Tensor]) -> Encode:
    def codes(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        a = self.act(z)
        return a, function(self, a)

    return codes


def _multiplied(mask: Callable[[Any, Tensor, Tensor], Tensor]) -> Encode:
    def codes(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        a = self.act(z)
        return a, a * mask(self, z, a)

    return codes


def _filled(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    a = self.act(z)
    return a, a.masked_fill(~_mask(a), 0)


def _where(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    a = functional.relu(z)
    return a, torch.where(_mask(a), a, 0)


def _gated(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    a = self.act(z * self.theta.exp())
    return a, (z + self.gate > 0).to(z.dtype) * a


def _gated_where(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    a = functional.relu(z * self.theta.exp())
    return a, torch.where(z + self.gate > 0, a, 0.0)


def _twice(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    a = torch.relu(z)
    jumped = a * (z > self.theta)
    values, indices = jumped.topk(K)
    return a, torch.zeros_like(a).scatter(-1, indices, values)


def _scaled(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Ranked by another scale than that of the values."""
    a = self.act(z)
    scaled = a * self.theta.exp()
    return a, a * torch.zeros_like(a).scatter(-1, scaled.topk(K).indices, 1.0)


SELECTIONS: dict[str, Encode] = {
    "scattered": _scattered,
    "in place": _in_place,
    "gathered": _gathered,
    "batch": _batch,
    "mask": _multiplied(lambda self, z, a: _mask(a)),
    "mask of numbers": _multiplied(lambda self, z, a: _mask(a).float()),
    "mask of the batch": _multiplied(lambda self, z, a: _flat_mask(a)),
    "filled": _filled,
    "where": _where,
    "k-th value": _multiplied(lambda self, z, a: a >= a.topk(K).values[..., -1:]),
    "kthvalue": _multiplied(lambda self, z, a: a >= a.kthvalue(UNITS - K, -1, True).values),
    "quantile": _multiplied(lambda self, z, a: a > torch.quantile(a, 0.9, -1, keepdim=True)),
    "jumprelu": _multiplied(lambda self, z, a: z > self.theta),
    "jumprelu of a number": _multiplied(lambda self, z, a: (a > 0.5).to(a.dtype)),
    "gated": _gated,
    "gated by where": _gated_where,
    "jumprelu, then top-k": _twice,
    "ranked by another scale": _scaled,
}


def check(diagnosis: reludiag.Diagnosis, model: Autoencoder) -> None:
    """One site of the latents, which says what the model has counted."""
    called = diagnosis.sites[diagnosis.sites["units"].notna()]
    assert len(called) == 1
    site, units = called.iloc[0], diagnosis.units[diagnosis.units["unit"].notna()]
    fired, arrived = model.fired.numpy(), model.arrived.numpy()
    assert units["fired"].tolist() == arrived.tolist()
    assert (units["verdict"] == "dead").tolist() == (arrived == 0).tolist()
    assert units["fired_before_selection"].tolist() == (fired > 0).tolist()
    assert diagnosis.unit_count == len(fired)
    assert diagnosis.dead == (arrived == 0).sum()
    assert site["never_fired"] == (fired == 0).sum()
    assert site["never_arrived"] == ((arrived == 0) & (fired > 0)).sum()
    assert site["producer"] == "encode"


@pytest.mark.parametrize("spelling", SELECTIONS)
def test_latents_are_counted_once_and_by_what_arrives(spelling: str) -> None:
    model = Autoencoder(SELECTIONS[spelling])
    check(reludiag.scan(model, X.split(32)), model)
    assert (model.fired > 0).sum() > (model.arrived > 0).sum() > 0


@pytest.mark.parametrize("spelling", ["scattered", "batch", "mask", "jumprelu", "gated"])
def test_a_training_and_its_recording_say_so_too(spelling: str, tmp_path: Path) -> None:
    model, path = Autoencoder(SELECTIONS[spelling]), tmp_path / "run.reludiag"
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with reludiag.Monitor(model, optimizer, path=path, every=4, stats_every=1):
        for batch in X.split(32):
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()
    diagnosis = reludiag.load(path)
    check(diagnosis, model)
    assert diagnosis.timeline is not None
    assert set(diagnosis.timeline["units"].dropna()) == {UNITS}
    model.fired.zero_()
    model.arrived.zero_()
    with reludiag.Monitor(model, optimizer, probe=X.split(32), every=1) as monitor:
        model.fired.zero_()
        model.arrived.zero_()
        optimizer.step()
    check(monitor.diagnose(), model)


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["scattered", "batch", "mask", "jumprelu", "gated"])
def test_sixteen_thousand_latents_are_counted_as_by_a_hook(spelling: str) -> None:
    model = Autoencoder(SELECTIONS[spelling], 16_384)
    check(reludiag.scan(model, X.split(32)), model)


class Encoder(torch.autograd.Function):
    """As some libraries fuse it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        a = functional.relu(functional.linear(x, weight, bias))
        values, indices = a.topk(K, dim=-1, sorted=False)
        ctx.mark_non_differentiable(indices)
        return values, indices, a

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None


class Indexed(nn.Module):
    """An autoencoder that never puts the values in their places: it looks the weights up."""

    def __init__(self, decode: Callable[[Any, Tensor, Tensor], Tensor], fuses: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.encode, self.decoder = nn.Linear(8, UNITS), nn.Linear(UNITS, 8)
        self.rows = nn.Parameter(torch.randn(UNITS, 8))
        self.decode, self.fuses = decode, fuses
        with torch.no_grad():
            self.encode.weight.normal_()
            self.encode.bias[:SILENT] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        if self.fuses:
            values, indices, _ = Encoder.apply(x, self.encode.weight, self.encode.bias)
        else:
            values, indices = functional.relu(self.encode(x)).topk(K)
        decoded: Tensor = self.decode(self, values, indices)
        return decoded


DECODERS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "embedding_bag": lambda self, values, indices: functional.embedding_bag(
        indices, self.rows, per_sample_weights=values, mode="sum"
    ),
    "cast": lambda self, values, indices: functional.embedding_bag(
        indices, self.decoder.weight.mT, per_sample_weights=values.to(torch.float32), mode="sum"
    ),
    "rows": lambda self, values, indices: torch.einsum("bk,bkd->bd", values, self.rows[indices]),
    "embedding": lambda self, values, indices: (
        values[..., None] * functional.embedding(indices, self.rows)
    ).sum(1),
    "columns": lambda self, values, indices: torch.einsum(
        "bk,dbk->bd", values, self.decoder.weight[:, indices]
    ),
}


@pytest.mark.parametrize("fuses", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_what_arrives_is_seen_where_a_weight_is_read_by_indices(decoder: str, fuses: bool) -> None:
    model = Indexed(DECODERS[decoder], fuses)
    with torch.no_grad():
        a = model.encode(X).relu()
        values, indices = a.topk(K)
        arrived = torch.zeros_like(a).scatter(-1, indices, values) != 0
        before = model(X)
    diagnosis = reludiag.scan(model, X.split(32))
    assert len(diagnosis.sites) == 1
    assert diagnosis.units["fired"].tolist() == arrived.sum(0).tolist()
    assert diagnosis.units["fired_before_selection"].tolist() == (a > 0).any(0).tolist()
    assert not diagnosis.unjudged
    assert torch.equal(model(X), before)


def test_a_watched_step_of_such_a_model_is_the_same_to_the_last_bit() -> None:
    weights = []
    for watches in (False, True):
        model = Indexed(DECODERS["embedding_bag"], fuses=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def train(model: nn.Module = model, optimizer: Any = optimizer) -> None:
            for batch in X.split(32):
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()

        if watches:
            with reludiag.Monitor(model, optimizer, every=2):
                train()
        else:
            train()
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *weights))


UNSEEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "only the values": lambda self, a: a.topk(K).values.sum(-1, keepdim=True) * self.theta,
    "a mask of another make": lambda self, a: (
        a * functional.one_hot(a.topk(K).indices, UNITS).sum(-2)
    ),
}


@pytest.mark.parametrize("selection", UNSEEN)
def test_what_cannot_be_followed_is_said_not_to_be_seen(selection: str) -> None:
    diagnosis = reludiag.scan(Autoencoder(_followed_by(UNSEEN[selection])), X)
    assert list(diagnosis.sites["site"]) == ["act"]
    assert [place.reason for place in diagnosis.unjudged] == ["arrival_unseen"]
    notes = " ".join(diagnosis.head.notes)
    assert "whether units that fire there are ever selected is not known" in notes
    assert diagnosis.judged_units == UNITS


class Mixture(nn.Module):
    """A ReLU network whose experts are picked by a number."""

    def __init__(self, pick: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.act, self.router = nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6)
        self.pick = pick
        self.experts = nn.Parameter(torch.randn(6, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.fc(x))
        return torch.einsum("be,bh,ehd->bd", self.pick(self.router(h)), h, self.experts)


def _put_back(shares: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    return torch.zeros_like(shares).scatter(-1, indices, values)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "shares, then top-k": lambda z: (lambda p: _put_back(p, *p.topk(2)))(z.softmax(-1)),
    "sigmoid, then top-k": lambda z: (lambda p: _put_back(p, *p.topk(2)))(z.sigmoid()),
    "top-k, then shares": lambda z: (lambda v, i: _put_back(z, v.softmax(-1), i))(*z.topk(2)),
    "a mask of shares": lambda z: (lambda p: p * _mask_of(p, 2))(z.softmax(-1)),
    "a threshold of shares": lambda z: (lambda p: p * (p >= p.topk(2).values[..., -1:]))(
        functional.softmax(z, dim=-1)
    ),
    "in other shape": lambda z: (lambda p: _put_back(p, *p.topk(2)).view(z.shape))(
        z.softmax(-1).view(-1, z.shape[-1])
    ),
}


def _mask_of(p: Tensor, k: int) -> Tensor:
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(k).indices, True)


@pytest.mark.parametrize("gate", GATES)
def test_the_gate_of_a_mixture_is_no_site(gate: str) -> None:
    diagnosis = reludiag.scan(Mixture(GATES[gate]), X)
    assert list(diagnosis.sites["site"]) == ["act"]
    assert not diagnosis.unjudged


NO_SELECTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout": lambda self, a: a * (torch.rand_like(a) > 0.5),
    "dropout of numbers": lambda self, a: a * (torch.rand(a.shape) > 0.5).to(a.dtype),
    "padding": lambda self, a: a * (X[: len(a), :1] > -9.0).expand_as(a),
    "a buffer": lambda self, a: a * (torch.arange(UNITS) > 3).expand_as(a),
}


@pytest.mark.parametrize("mask", NO_SELECTIONS)
def test_a_mask_that_no_layer_has_made_selects_nothing(mask: str) -> None:
    diagnosis = reludiag.scan(Autoencoder(_followed_by(NO_SELECTIONS[mask])), X)
    assert list(diagnosis.sites["site"]) == ["act"]
    assert diagnosis.sites["selects_from"].isna().all()
    assert not diagnosis.unjudged


def test_a_relu_that_is_also_read_elsewhere_stays_a_site() -> None:
    """A unit that is never selected may act there."""

    def codes(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        a = self.act(z)
        return a, a * _mask(a) + functional.linear(a, torch.eye(UNITS))

    model = Autoencoder(codes)
    diagnosis = reludiag.scan(model, X)
    assert list(diagnosis.sites["activation"]) == ["ReLU", "topk"]
    assert diagnosis.sites["selects_from"].isna().all()
    assert diagnosis.sites["dead"].iloc[0] == (model.fired == 0).sum()


def test_a_relu_of_what_was_selected_is_counted_with_it() -> None:
    def codes(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        top = z.topk(UNITS // 2)
        selected = torch.zeros_like(z).scatter(-1, top.indices, top.values)
        return (selected != 0).float(), self.act(selected)

    model = Autoencoder(codes)
    diagnosis = reludiag.scan(model, X)
    check(diagnosis, model)
    assert "never selected" not in str(diagnosis)


def test_reports_say_it_where_there_is_a_selection_and_only_there() -> None:
    model = Autoencoder(_scattered)
    diagnosis = reludiag.scan(model, X)
    unselected = int(((model.arrived == 0) & (model.fired > 0)).sum())
    silent = int((model.fired == 0).sum())
    sentence = f"{silent} never fire there; {unselected} more fire there and never arrive"
    page, markdown = io.StringIO(), io.StringIO()
    diagnosis.to_html(page)
    diagnosis.write(markdown, "markdown")
    for text in (str(diagnosis), page.getvalue(), markdown.getvalue()):
        assert sentence in " ".join(text.split())
    plain = reludiag.scan(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), X)
    assert "arrive" not in str(plain)
    assert plain.units["fired_before_selection"].isna().all()


def test_a_json_document_keeps_it(tmp_path: Path) -> None:
    diagnosis = reludiag.scan(Autoencoder(_scattered), X)
    diagnosis.to_json(tmp_path / "report.json", all_units=True)
    again = open_diagnosis(tmp_path / "report.json")
    for column in ("selects_from", "never_fired", "never_arrived"):
        assert list(again.sites[column]) == list(diagnosis.sites[column])
    assert list(again.units["fired_before_selection"]) == list(
        diagnosis.units["fired_before_selection"]
    )


def test_a_recording_of_before_is_opened_and_says_nothing_of_it(tmp_path: Path) -> None:
    model, path = Autoencoder(_scattered), tmp_path / "run.reludiag"
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with reludiag.Monitor(model, optimizer, path=path, every=1):
        model(X).square().mean().backward()
        optimizer.step()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE site DROP COLUMN selects_from")
        db.execute("ALTER TABLE statistics DROP COLUMN silent_before")
        db.execute("PRAGMA user_version = 8")
    diagnosis = reludiag.load(path)
    assert diagnosis.unit_count == UNITS
    assert diagnosis.units["fired_before_selection"].isna().all()
    assert diagnosis.sites[["selects_from", "never_fired", "never_arrived"]].isna().all(axis=None)


def test_a_gate_still_knows_the_relu_by_its_name() -> None:
    diagnosis = reludiag.scan(Autoencoder(_scattered), X)
    gate = Gate.parse(["act=1%"])
    gate.require_matches(diagnosis.sites, diagnosis.unjudged)
    assert [check.exceeded for check in gate.judge(diagnosis.sites, diagnosis.unjudged)] == [True]


def test_the_drift_of_a_latent_that_died_is_that_of_its_own_layer() -> None:
    """Its mean pre-activation is that of the ReLU, not what the ReLU has made of it."""
    model = Autoencoder(_scattered)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with reludiag.Monitor(model, optimizer, probe=[X], every=1) as monitor:
        model(X).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            assert model.encode.bias.grad is not None
            model.encode.bias.grad[SILENT:] = 200.0
        optimizer.step()
    dead = monitor.diagnose().units
    died = dead[dead["died_step"] == 1]
    assert len(died) > 10
    assert np.allclose(died["drift_bias"].astype(float), 1.0, atol=1e-6)

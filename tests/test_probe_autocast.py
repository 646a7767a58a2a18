"""A probe runs under the autocast of the training, and so sees what the training sees."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reludiag

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)
        )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    autocast: AbstractContextManager[object],
    steps: int = 6,
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        with autocast:
            y = model(X)
        y.float().square().mean().backward()
        optimizer.step()


def forwards(
    model: nn.Module, optimizer: torch.optim.Optimizer, autocast: AbstractContextManager[object]
) -> None:
    """Four steps that change nothing."""
    for _ in range(4):
        with autocast:
            model(X)
        optimizer.step()


def sgd(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


class Large(nn.Module):
    """Its second layer overflows in half precision, by what its units sum up to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu, self.out = nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)
        with torch.no_grad():
            self.fc.weight.zero_()
            self.fc.bias.copy_(torch.tensor([1.0, 6e4, 7e4, -1.0]))
            self.out.weight.fill_(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.relu(self.fc(x)))


def test_an_overflow_in_half_precision_is_seen_on_the_probe() -> None:
    verdicts = {}
    for name in ("float32", "float16"):
        model = Large()
        autocast = torch.autocast("cpu", torch.float16, enabled=name == "float16")
        optimizer = sgd(model)
        with reludiag.Monitor(model, optimizer, every=2, probe=X) as monitor:
            forwards(model, optimizer, autocast)
        verdicts[name] = list(monitor.diagnose().units["verdict"])
        timeline = monitor.diagnose().timeline
        # The initial state was taken before any pass of the training.
        assert list(timeline["nonfinite"]) == [0, *[int(name == "float16")] * 2]
    assert verdicts["float32"][2] != "nonfinite" and verdicts["float16"][2] == "nonfinite"
    assert verdicts["float32"][3] == verdicts["float16"][3] == "dead"


@pytest.mark.parametrize("name", HALF)
def test_the_recording_says_under_which_autocast_the_probe_ran(name: str, tmp_path: Path) -> None:
    model, path = mlp(), tmp_path / "run.reludiag"
    optimizer = sgd(model)
    with reludiag.Monitor(model, optimizer, path=path, every=2, probe=X):
        train(model, optimizer, torch.autocast("cpu", HALF[name]))
    head = reludiag.load(path).head
    assert f"in eval mode under autocast to {name}" in head.evidence
    assert any(note.startswith("The initial state was measured before") for note in head.notes)
    with reludiag.Monitor(model, optimizer, path=path, overwrite=True, every=2, probe=X):
        train(model, optimizer, nullcontext())
    assert "autocast" not in reludiag.load(path).head.evidence


def test_the_numbers_are_those_of_a_pass_under_the_same_autocast() -> None:
    model = mlp()
    optimizer = sgd(model, 0.1)
    with reludiag.Monitor(model, optimizer, every=2, probe=X) as monitor:
        train(model, optimizer, torch.autocast("cpu", torch.bfloat16))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model[:2](X).double().mean(0)
    found = monitor.diagnose().units.query("site == '1'")["mean_activation"]
    assert list(found) == pytest.approx(expected.tolist(), rel=1e-12)


def test_passes_without_gradients_do_not_say_how_the_training_runs() -> None:
    model = mlp()
    optimizer = sgd(model)
    with reludiag.Monitor(model, optimizer, every=2, probe=X) as monitor:
        for _ in range(6):
            train(model, optimizer, torch.autocast("cpu", torch.bfloat16), 1)
            with torch.no_grad():
                model(X)  # in full precision, as when acting or validating
    assert "bfloat16" in monitor.diagnose().head.evidence


def test_an_autocast_that_is_switched_off_is_off_from_the_next_window_on() -> None:
    model = Large()
    optimizer = sgd(model)
    half = torch.autocast("cpu", torch.float16)
    with reludiag.Monitor(model, optimizer, every=2, probe=X) as monitor:
        forwards(model, optimizer, half)
        forwards(model, optimizer, nullcontext())
    timeline = monitor.diagnose().timeline
    assert list(timeline["nonfinite"]) == [0, 1, 1, 0, 0]


def loops() -> Iterator[tuple[str, bool]]:
    for dtype in HALF:
        for around in (False, True):
            yield dtype, around


@pytest.mark.parametrize(("name", "around"), loops())
def test_the_training_is_the_same_to_the_last_bit(name: str, around: bool) -> None:
    """Also with autocast around the whole loop, the steps and the snapshots in them."""
    weights = []
    for monitored in (False, True):
        model = mlp()
        optimizer = sgd(model, 0.05)
        inner, outer = torch.autocast("cpu", HALF[name]), nullcontext()
        if around:
            inner, outer = nullcontext(), torch.autocast("cpu", HALF[name])
        monitor = (
            reludiag.Monitor(model, optimizer, every=1, probe=X) if monitored else nullcontext()
        )
        with outer, monitor:
            train(model, optimizer, inner)
            assert torch.is_autocast_enabled("cpu") == around
            assert torch.is_autocast_cache_enabled()
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_deaths_are_examined_under_the_same_autocast(tmp_path: Path) -> None:
    """A unit that fires in full precision alone has died for a training in half precision."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
    probe = torch.full((4, 1), 1.0)
    optimizer = sgd(model)
    path = tmp_path / "run.reludiag"
    with reludiag.Monitor(model, optimizer, path=path, every=1, probe=probe, warn_over=None):
        for step in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                y = model(probe)
            y.float().sum().backward()
            if step == 1:  # 1 - 0.999 is 0 in bfloat16, where 0.999 is 1
                with torch.no_grad():
                    model[0].bias[0] = -0.999
            optimizer.step()
    diagnosis = reludiag.load(path)
    assert list(diagnosis.units.query("site == '1'")["died_step"].fillna(-1)) == [2, -1]
    assert diagnosis.units["drift_bias"].iloc[0] == pytest.approx(1.0)


def test_a_fused_layer_gives_the_same_to_the_last_bit_between_snapshots() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    x = torch.randn(8, 5, 16)
    with torch.no_grad():
        bare = layer.eval()(x)
    with reludiag.Monitor(layer, sgd(layer), probe=x):
        with torch.no_grad():
            assert torch.equal(layer(x), bare)
        layer.train()


def test_a_part_that_is_called_alone_is_read_and_no_hook_is_left() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = mlp(), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x))

    model = Parts()
    optimizer = sgd(model)
    with reludiag.Monitor(model, optimizer, every=2, probe=X) as monitor:
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                y = model.head(model.encoder(X))
            y.float().sum().backward()
            optimizer.step()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert "bfloat16" in monitor.diagnose().head.evidence
    assert not any(module._forward_pre_hooks for module in model.modules())

"""Programs of torch.export: they are seen as the model that was exported."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from reludiag_cli.app import main
from torch import Tensor, nn
from torch.nn import functional

import reludiag

EXACT = ["site", "unit", "verdict", "samples", "fired", "unit_axis", "producer", "norm"]


class Residual(nn.Module):
    """A ReLU called twice, in place, after a BatchNorm and after a sum; functions after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.head = Head()
        with torch.no_grad():
            self.norm.bias[1] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        return self.head(self.relu(self.conv(x) + x).mean((2, 3)))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)
        with torch.no_grad():
            self.fc.bias.fill_(1.0)[2] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.fc(x)).clamp(min=0)


def activations() -> nn.Module:
    kinds = [nn.ReLU6(), nn.Hardtanh(0, 2), nn.Threshold(0.1, 0), nn.Hardswish(), nn.LeakyReLU(0.1)]
    layers = [layer for kind in kinds for layer in (nn.Linear(8, 8), kind)]
    return nn.Sequential(*layers)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 6, 6)),
    "activations": (activations, (8,)),
    "encoder": (encoder, (5, 8)),
}


def exported(
    name: str, fixed: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, torch.export.ExportedProgram]:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model, x = build().eval().to(dtype), torch.randn(4, *shape, dtype=dtype)
    sizes = None if fixed else ({0: torch.export.Dim.AUTO},)
    return model, torch.export.export(model, (x,), dynamic_shapes=sizes)


def batches(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(rows, *MODELS[name][1], dtype=dtype) for rows in (16, 16, 5)]


@pytest.mark.parametrize("name", MODELS)
def test_a_program_is_seen_as_the_model_that_was_exported(name: str) -> None:
    # In float64: a program adds up in another order, and no unit is to fire by a rounding.
    model, program = exported(name, dtype=torch.float64)
    data = batches(name, torch.float64)
    found, expected = reludiag.scan(program, data), reludiag.scan(model, data)
    assert found.head.model == expected.head.model
    assert len(expected.sites) > 1
    pd.testing.assert_frame_equal(found.units[EXACT], expected.units[EXACT])
    pd.testing.assert_frame_equal(found.units, expected.units, rtol=1e-5)


def test_a_saved_program_is_a_model_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, program = exported("residual")
    torch.export.save(program, tmp_path / "model.pt2")
    torch.save(torch.cat(batches("residual")), tmp_path / "data.pt")
    with torch.no_grad():
        model.head.fc.bias[4] = -100.0  # type: ignore[union-attr]
    torch.save(model.state_dict(), tmp_path / "later.pt")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["reludiag", *arguments])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
        return capsys.readouterr().out

    dead = []
    for checkpoint in ([], ["later.pt"]):
        found = json.loads(run("scan", "model.pt2", *checkpoint, "--data", "data.pt", "--json"))
        dead.append(
            {(unit["site"], unit["unit"]) for unit in found["units"] if unit["verdict"] == "dead"}
        )
    assert dead[1] - dead[0] == {("head:relu", 4), ("head:clamp", 4)}
    listed = run("sites", "model.pt2", "--data", "data.pt")
    assert "relu#1" in listed and "head:clamp" in listed


def test_a_batch_of_another_size_than_was_exported_is_explained() -> None:
    _, program = exported("activations", fixed=True)
    assert len(reludiag.scan(program, [torch.randn(4, 8)]).sites) == 5
    with pytest.raises(reludiag.DataError, match=r"batch 1 .*\n.*\n.*dynamic_shapes"):
        reludiag.scan(program, [torch.randn(4, 8), torch.randn(3, 8)])


def test_training_mode_is_refused() -> None:
    _, program = exported("activations")
    with pytest.raises(reludiag.ModelError, match="stays in the mode"):
        reludiag.scan(program, batches("activations"), train_mode=True)
    training = torch.export.export(Residual().train(), (torch.randn(4, 3, 6, 6),))
    with pytest.raises(reludiag.ModelError, match=r"training mode \(it contains batch_norm"):
        reludiag.scan(training, batches("residual"))


def test_what_is_no_program_is_refused_in_a_sentence(tmp_path: Path) -> None:
    from reludiag.loading import load_model, read_checkpoint

    _, program = exported("activations")
    whole = tmp_path / "whole.pt2"
    torch.export.save(program, whole)
    with pytest.raises(reludiag.CheckpointError, match="pass it as the MODEL"):
        read_checkpoint(whole)
    cases = {"cut.pt2": whole.read_bytes()[:9000], "empty.pt2": b"", "text.pt2": b"hello"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(reludiag.ModelError, match=r"is not a program .* truncated$"):
            load_model(str(tmp_path / name))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt2")
    with pytest.raises(reludiag.ModelError, match="as a CHECKPOINT"):
        load_model(str(tmp_path / "weights.pt2"))
    with pytest.raises(reludiag.ModelError, match="there is no file"):
        load_model(str(tmp_path / "missing.pt2"))
    with pytest.raises(reludiag.UsageError, match="no --model-arg"):
        load_model(str(whole), {"width": 3})

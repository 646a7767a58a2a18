"""Parquet: the unit table, with its types, through a file."""

import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from reludiag_cli.app import main
from torch import nn

import reludiag
from reludiag import Diagnosis

pytestmark = pytest.mark.integrations


def diagnosis() -> Diagnosis:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("=1+1", nn.Linear(4, 8))
    model.add_module("=relu", nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(32, 4)
    with reludiag.Monitor(model, optimizer, every=1, probe=x, warn_over=None) as monitor:
        for step in range(4):
            if step == 2:
                nn.init.constant_(model[0].bias[:3], -100.0)
            model(x).sum().backward()
            optimizer.step()
    return monitor.diagnose()


@pytest.fixture
def pyarrow() -> None:
    pytest.importorskip("pyarrow")


@pytest.mark.parametrize("all_units", [True, False])
def test_the_unit_table_comes_back_as_it_was(
    all_units: bool, tmp_path: Path, pyarrow: None
) -> None:
    found = diagnosis()
    found.to_parquet(tmp_path / "units.parquet", all_units)
    units = found.units if all_units else found.units[found.units["verdict"] != "alive"]
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "units.parquet"), units.reset_index(drop=True)
    )


def test_an_export_that_fails_leaves_the_old_file(
    tmp_path: Path, pyarrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "units.parquet"
    target.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(reludiag.UsageError, match="No space left"):
        diagnosis().to_parquet(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_standard_output_is_refused(pyarrow: None) -> None:
    with pytest.raises(reludiag.UsageError, match="expected the name of a file"):
        diagnosis().to_parquet("-")


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = diagnosis()
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # type: ignore[arg-type]
    with pytest.raises(reludiag.ReludiagError, match=r'pip install "reludiag\[parquet\]"'):
        found.to_parquet(tmp_path / "units.parquet")


MODEL = """
from torch import nn
def build():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    nn.init.constant_(model[0].bias[:3], -100.0)
    return model
"""


@pytest.mark.parametrize(("options", "rows"), [([], 3), (["--all"], 8)])
def test_scan_and_report_write_it(
    options: list[str],
    rows: int,
    tmp_path: Path,
    pyarrow: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODEL)
    with pytest.raises(SystemExit) as done:
        monkeypatch.setattr(
            sys, "argv",
            ["reludiag", "scan", "net.py:build", "--input-shape", "4", "--parquet", "u.parquet",
             *options],
        )  # fmt: skip
        main()
    assert done.value.code == 0
    table = pd.read_parquet("u.parquet")
    assert (table["verdict"] == "dead").sum() == 3
    assert len(table) >= rows


def test_a_scan_that_could_not_be_written_is_not_begun(
    tmp_path: Path, pyarrow: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["reludiag", "scan", "missing.py:x", "--input-shape", "4", "--parquet", "-"]
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    panel = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "expected the name of a file" in panel

"""The sample models: they train, and every way in works on each of them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import reludiag
from tests.forked import start_command

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "sample_models"
MODELS = [
    ("digits", "build"),
    ("digits", "build_resnet"),
    ("detector", "build"),
    ("segmenter", "build"),
    ("text", "build"),
]
UNITS = {"digits:build": 192, "digits:build_resnet": 176, "detector:build": 320,
         "segmenter:build": 320, "text:build": 768}  # fmt: skip


def sample(name: str) -> ModuleType:
    path = SAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"sample_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SAMPLES))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SAMPLES))
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("name", "build"), MODELS)
def test_a_few_steps_are_recorded_and_scanned_from_any_folder(
    name: str, build: str, tmp_path: Path
) -> None:
    module = sample(name)
    model = getattr(module, build)(seed=0)
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        metrics = module.fit(
            model,
            steps=6,
            attach=lambda model, optimizer: reludiag.Monitor(
                model, optimizer, path=tmp_path / "run", every=3, probe=module.probe()[:16]
            ),
        )
    assert all(value == value for value in metrics.values())
    assert torch.equal(torch.get_rng_state(), before)
    timeline = reludiag.load(tmp_path / "run").timeline
    assert list(timeline["step"].unique()) == [0, 3, 6]

    torch.save(model.state_dict(), tmp_path / "weights.pt")
    file = f"{os.path.relpath(SAMPLES, tmp_path)}/{name}.py"
    command = start_command(
        ["scan", f"{file}:{build}", "weights.pt", "--data", f"{file}:batches", "--limit", "2",
         "--csv", "dead.csv", "--all"],
        tmp_path, tmp_path / "said.txt",
    )  # fmt: skip
    command.join()
    assert command.exitcode == 0, (tmp_path / "said.txt").read_text()
    rows = (tmp_path / "dead.csv").read_text().splitlines()
    assert len(rows) - 1 == UNITS[f"{name}:{build}"]
    diagnosis = reludiag.scan(model, module.batches(), limit=1)
    assert "unknown" not in set(diagnosis.sites["unit_axis"])


@pytest.mark.slow
def test_the_digits_learn_and_die_as_their_page_says() -> None:
    digits = sample("digits")
    results = {}
    for label, settings in (("healthy", digits.HEALTHY), ("dying", digits.DYING)):
        model = digits.build(seed=0)
        accuracy = digits.fit(model, **settings)["accuracy"]
        results[label] = accuracy, reludiag.scan(model, digits.batches()).dead_fraction
    assert results["healthy"][0] > 0.93
    assert results["healthy"][1] < 0.06
    assert results["dying"][0] < 0.75
    assert results["dying"][1] > 0.3


def test_the_reused_relu_of_a_block_is_two_sites() -> None:
    digits = sample("digits")
    sites = reludiag.scan(digits.build_resnet(seed=0), digits.batches(), limit=1).sites
    assert {"block1.relu", "block1.relu#1"} <= set(sites["site"])


def test_a_sample_model_runs_from_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SAMPLES / "digits.py", "--steps", "20", "--dying", "--checkpoint",
         tmp_path / "w.pt", "--recording", tmp_path / "run", "--every", "5"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("accuracy ")
    assert reludiag.load(tmp_path / "run").timeline["step"].max() == 20
    assert (tmp_path / "w.pt").exists()

"""The examples: each runs as it stands, and leaves what it says."""

import runpy
import sys
from pathlib import Path

import pytest

import reludiag
from tests.architectures import declare_missing_operators

declare_missing_operators()  # which the frameworks import torchvision for

pytestmark = [
    pytest.mark.integrations, pytest.mark.slow, pytest.mark.filterwarnings("ignore")
]  # fmt: skip

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

# script, argument, what it needs, what it leaves
RUNS = [
    ("lightning_callback", "", "lightning", "lightning.reludiag"),
    ("transformers_callback", "", "transformers", "transformers.reludiag"),
    ("ignite_handler", "", "ignite", "ignite.reludiag"),
    ("accelerate_loop", "", "accelerate", "accelerate.reludiag"),
    ("metric_sinks", "tensorboard", "tensorboard", "runs/reludiag/events.*"),
    ("metric_sinks", "wandb", "wandb", "wandb/offline-run-*/*.wandb"),
    ("metric_sinks", "mlflow", "mlflow", "mlruns/0/*/metrics/reludiag/dead"),
]


@pytest.mark.parametrize(("script", "argument", "library", "left"), RUNS)
def test_an_example_runs_and_leaves_what_it_says(
    script: str,
    argument: str,
    library: str,
    left: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_X_SERVICE_WAIT", "300")  # seconds: the machine may be busy
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(sys, "argv", [script, *([argument] if argument else [])])
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    found = list(tmp_path.glob(left))
    assert found
    if left.endswith(".reludiag"):
        assert reludiag.load(found[0]).head.status == "complete"
    if library == "mlflow":
        import mlflow

        mlflow.set_tracking_uri(None)


def test_the_example_of_a_test_is_one() -> None:
    names = runpy.run_path(str(EXAMPLES / "test_your_model.py"))
    (test,) = (names[name] for name in names if name.startswith("test_"))
    test()


def test_every_example_is_run() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"test_your_model"}
    assert scripts == {script for script, *_ in RUNS}

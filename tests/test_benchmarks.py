"""Each benchmark starts as a module, `python -m benchmarks.NAME`, too."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
def test_a_benchmark_is_imported_as_a_module(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")

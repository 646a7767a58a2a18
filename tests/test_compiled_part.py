"""What is said where the compiled part is missing, older than its sources, or cannot be loaded."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reludiag.measure import extension

ROOT = Path(__file__).parents[1]
VERSION = """
import sys
sys.argv = ["reludiag", "--version"]
from reludiag_cli.app import main
try:
    main()
finally:
    print("LOADED", *{"torch", "pandas", "numpy", "rich"} & set(sys.modules))
"""
SCAN = """
import torch, reludiag
for _ in range(2):
    reludiag.scan(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), [torch.rand(4, 3)])
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source tree, with the compiled part if there is one."""
    for folder in ("reludiag", "cli"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def run(tree: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(tree / folder) for folder in ("", "cli"))
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": paths},
    )


def version_lines(tree: Path) -> list[str]:
    """What `reludiag --version` prints, having loaded nothing heavy."""
    *lines, loaded = run(tree, VERSION).stdout.splitlines()
    assert loaded.strip() == "LOADED"
    assert re.fullmatch(r"\d+\.\d+.*", lines[0])
    return lines[1:]


def remove_compiled(tree: Path) -> None:
    for file in (tree / "reludiag").glob("_kernels*.so"):
        file.unlink()


needs_compiled = pytest.mark.skipif(bool(extension.check()), reason="nothing was compiled")


@needs_compiled
def test_the_version_says_nothing_more_where_the_compiled_part_fits_its_sources(tree: Path) -> None:
    assert version_lines(tree) == []
    for file in (tree / "reludiag" / "native").iterdir():
        os.utime(file)  # as git checkout does
    assert version_lines(tree) == []


@needs_compiled
def test_the_version_says_that_the_compiled_part_is_older_than_its_sources(tree: Path) -> None:
    with (tree / "reludiag" / "native" / "count.hpp").open("a") as file:
        file.write("// changed\n")
    (line,) = version_lines(tree)
    assert "older than its sources" in line
    assert f"pip install -e {tree}" in line


def test_the_version_says_that_the_compiled_part_is_missing(tree: Path) -> None:
    remove_compiled(tree)
    (line,) = version_lines(tree)
    assert "compiled part is missing" in line
    assert f"pip install -e {tree}" in line
    shutil.rmtree(tree / "reludiag" / "native")  # as in an installed wheel
    (line,) = version_lines(tree)
    assert "compiled part is missing" in line
    assert "--no-binary reludiag" in line


def test_the_version_says_why_the_compiled_part_cannot_be_loaded(tree: Path) -> None:
    remove_compiled(tree)
    (tree / "reludiag" / "_kernels.abi3.so").write_bytes(b"of another kind of machine")
    (line,) = version_lines(tree)
    assert "cannot be loaded" in line
    assert "_kernels.abi3.so" in line


def test_a_scan_without_the_compiled_part_warns_once_and_can_be_silenced(tree: Path) -> None:
    remove_compiled(tree)
    spoken = run(tree, SCAN, "-W", "always").stderr
    assert spoken.count("RuntimeWarning: reludiag's compiled part is missing") == 1
    silent = run(tree, SCAN, "-W", "ignore:reludiag's compiled part:RuntimeWarning").stderr
    assert "compiled part" not in silent

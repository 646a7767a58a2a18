"""The wheel: its tag, what is in it, and that each Python of this machine takes it."""

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.wheel import ROOT, build_wheel, pythons, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_one_wheel_is_for_this_and_every_later_python(wheel: Path) -> None:
    *_, python, interface, platform = wheel.stem.split("-")
    assert (python, interface) == ("cp311", "abi3")
    assert platform != "any"


def test_the_wheel_has_all_that_the_sources_have_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    compiled = {
        name for name in names if name.startswith("reludiag/_kernels.") and "pyi" not in name
    }
    assert len(compiled) == (shutil.which("c++") is not None)
    sources = set()
    for root, package in ((ROOT, "reludiag"), (ROOT / "cli", "reludiag_cli")):
        for pattern in ("*.py", "*.pyi", "py.typed", "*.j2", "*.css", "*.js", "*.js.gz", "*.txt"):
            sources |= {str(path.relative_to(root)) for path in (root / package).rglob(pattern)}
    assert {"reludiag/py.typed", "reludiag/_kernels.pyi"} <= sources
    assert names - compiled == sources


@pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())
def test_every_python_installs_and_loads_the_wheel(
    wheel: Path, python: str, tmp_path: Path
) -> None:
    """Without what it depends on, which takes minutes: `make check-wheel` installs that too."""
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path),
        str(wheel),
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import reludiag
from reludiag.measure import extension
assert reludiag.__file__.startswith({str(tmp_path)!r})
print(extension.check() or "all is well")
"""
    said = run(python, "-I", "-c", code)
    if shutil.which("c++") is not None:
        assert said.strip() == "all is well"

"""What is given away: the source distribution, the packages, and the description of both."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of the repository, not of the project.
REPOSITORY_ONLY = (".github/", ".gitignore", ".pre-commit-config.yaml", ".readthedocs.yaml")


def run(folder: Path, *arguments: str) -> None:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has, for a build writes beside its sources."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode or not listing.stdout:
        pytest.skip("not a checkout of the repository")
    copy = tmp_path_factory.mktemp("checkout")
    for name in listing.stdout.splitlines():
        if (ROOT / name).is_file():  # else it was deleted since the last commit
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.mark.slow
def test_the_source_distribution_has_all_that_the_repository_has(checkout: Path) -> None:
    tracked = {str(p.relative_to(checkout)) for p in checkout.rglob("*") if p.is_file()}
    build = "from setuptools import build_meta; build_meta.build_sdist('../sdist')"
    run(checkout, sys.executable, "-c", build)
    (archive,) = (checkout.parent / "sdist").iterdir()
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    missing = tracked - packed
    assert not {name for name in missing if not name.startswith(REPOSITORY_ONLY)}


@pytest.mark.slow
def test_what_is_installed_is_two_packages_with_their_types(checkout: Path) -> None:
    setup = "import setuptools; setuptools.setup()"
    run(checkout, sys.executable, "-c", setup, "build_py", "--build-lib", "../installed")
    installed = checkout.parent / "installed"
    assert {path.name for path in installed.iterdir()} == {"reludiag", "reludiag_cli"}
    for name in ("reludiag/py.typed", "reludiag/_kernels.pyi", "reludiag_cli/py.typed"):
        assert (installed / name).is_file(), name
    sources = {path.relative_to(ROOT) for path in (ROOT / "reludiag").rglob("*.py")}
    assert sources <= {path.relative_to(installed) for path in installed.rglob("*.py")}


def test_the_description_for_a_package_index_points_nowhere() -> None:
    """A link that is relative to the repository leads nowhere on the page of an index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not re.findall(r"\]\((?!https://)[^)]*\)", project["readme"]["text"])

"""The wheel: built, and tried in a clean environment of each Python that this machine has.

`make check-wheel` runs this file; test_wheel.py has the part of it that is quick.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = (3, 11)
NEWEST = (3, 14)

# A network whose first unit cannot fire, as a file of the user's.
NETWORK = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU())

def batches():
    return [torch.rand(16, 3) for _ in range(4)]

if __name__ == "__main__":
    model = build()
    with torch.no_grad():
        model[0].weight[0] = -1
        model[0].weight[1] = 1
        model[0].bias.zero_()
    torch.save(model.state_dict(), "net.pt")
"""


def build_wheel(folder: Path) -> Path:
    """Build the wheel of a copy of the sources, with the setuptools of this environment if any."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    unneeded = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in ("reludiag", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=unneeded)
    options = ["--no-build-isolation"] if _has_setuptools() else []
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options),
        *("--wheel-dir", str(folder), str(source)),
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def _has_setuptools() -> bool:
    try:
        import setuptools
    except ImportError:
        return False
    return int(setuptools.__version__.partition(".")[0]) >= 77


def pythons() -> dict[str, str]:
    """Version, as "3.12" -> interpreter, of those on the PATH and of pyenv; one a version."""
    every = {}
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        name = f"python3.{minor}"
        candidates = [Path(folder) / name for folder in os.get_exec_path()]
        candidates += sorted(Path.home().glob(f".pyenv/versions/*/bin/{name}"))
        for path in candidates:
            if path.exists() and _works(path, f"3.{minor}"):
                every[f"3.{minor}"] = str(path)
                break
    return every


def _works(path: Path, version: str) -> bool:
    """Not so a shim of pyenv for a version that is not chosen, nor a Python without its pip."""
    done = subprocess.run([path, "-m", "pip", "--version"], capture_output=True, text=True)
    return f"(python {version})" in done.stdout


def run(*command: str, cwd: Path | None = None) -> str:
    """The standard output of a command, which sees nothing of this source tree."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=cwd, env=environment
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()
    return done.stdout


def scan_in_clean_environment(python: str, wheel: Path, folder: Path) -> None:
    """Install the wheel with all that it needs, and scan a network with it."""
    run(python, "-m", "venv", str(folder / "env"))
    bin_folder = folder / "env" / "bin"
    run(
        *(str(bin_folder / "python"), "-m", "pip", "install", "--quiet"),
        *("-c", str(ROOT / "constraints.txt"), str(wheel)),
    )
    (folder / "net.py").write_text(textwrap.dedent(NETWORK))
    run(str(bin_folder / "python"), "net.py", cwd=folder)
    version = run(str(bin_folder / "reludiag"), "--version", cwd=folder).splitlines()
    assert len(version) == 1, version  # nothing is wrong with the compiled part
    run(
        *(str(bin_folder / "reludiag"), "scan", "net.py:build", "net.pt"),
        *("--data", "net.py:batches", "--csv", "dead.csv", "--html", "dead.html"),
        cwd=folder,
    )
    with (folder / "dead.csv").open(newline="") as file:
        rows = [(row["unit"], row["verdict"]) for row in csv.DictReader(file)]
    assert ("0", "dead") in rows, rows
    assert ("1", "dead") not in rows, rows
    assert "<html" in (folder / "dead.html").read_text(encoding="utf-8")


def main() -> None:
    """Build the wheel and try it with each Python."""
    with tempfile.TemporaryDirectory() as temporary:
        wheel = build_wheel(Path(temporary) / "build")
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MB", flush=True)
        for version, python in pythons().items():
            folder = Path(temporary) / version
            folder.mkdir()
            scan_in_clean_environment(python, wheel, folder)
            packages = run(str(folder / "env" / "bin" / "python"), "-m", "pip", "freeze")
            torch = re.search(r"^torch==.*", packages, re.MULTILINE)
            print(f"Python {version}: installed, scanned, with {torch and torch[0]}", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

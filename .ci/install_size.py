"""What an installation of reludiag adds to PyTorch: packages, and megabytes of site-packages.

Method: a virtual environment of its own gets torch alone, by `pip install torch`; then the wheel,
by `pip install WHEEL`. Counted is what the second added to the first: packages by name, reludiag
among them, and what all files take on the disk, compiled bytecode among them, as `du` does.
`python .ci/install_size.py WHEEL [--most-packages N] [--most-megabytes N]` exits 1 above a limit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
MEGABYTE = 2**20
BLOCK = 512  # the unit of st_blocks, whatever the file system's own is
LISTED = 8


def main() -> None:
    """Install, measure, print, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--most-packages", type=int)
    parser.add_argument("--most-megabytes", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        install(python, "torch")
        packages, sizes = installed(python), sizes_in(python)
        install(python, str(options.wheel.resolve()))
        added = sorted(installed(python) - packages)
        larger = {name: size - sizes.get(name, 0) for name, size in sizes_in(python).items()}
    megabytes = sum(larger.values()) / MEGABYTE
    print(f"{len(added)} packages beyond torch: {', '.join(added)}")
    print(f"{megabytes:.0f} MB beyond torch, of these:")
    for name in sorted(larger, key=larger.__getitem__, reverse=True)[:LISTED]:
        print(f"{larger[name] / MEGABYTE:6.0f} MB {name}")
    if options.most_packages is not None and len(added) > options.most_packages:
        sys.exit(f"expected at most {options.most_packages} packages")
    if options.most_megabytes is not None and megabytes > options.most_megabytes:
        sys.exit(f"expected at most {options.most_megabytes} MB")


def install(python: Path, what: str) -> None:
    """Install one package or wheel; torch is the build of constraints.txt."""
    pip = [python, "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, what]
    subprocess.run(pip, check=True)


def installed(python: Path) -> set[str]:
    """Name the packages of an environment."""
    listing = subprocess.check_output([python, "-m", "pip", "list", "--format=json"])
    return {package["name"].lower() for package in json.loads(listing)}


def sizes_in(python: Path) -> dict[str, int]:
    """Bytes on the disk for site-packages, by the name of the folder or file at its top."""
    code = "import sysconfig; print(sysconfig.get_path('platlib'))"
    root = Path(subprocess.check_output([python, "-c", code], text=True).strip())
    sizes: dict[str, int] = {}
    for path in root.rglob("*"):
        if path.is_file():
            top = path.relative_to(root).parts[0]
            sizes[top] = sizes.get(top, 0) + BLOCK * path.stat().st_blocks
    return sizes


if __name__ == "__main__":
    main()

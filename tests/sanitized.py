"""The compiled part's own tests, with it built by the address and undefined behaviour sanitizers.

`make native-sanitize` runs this file. What a sanitizer finds ends the tests at once.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from reludiag.measure.extension import checksum

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_reductions.py", "tests/test_liveness.py")
SANITIZE = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
# Python and torch never free what they need until the end.
ADDRESS = "detect_leaks=0:detect_stack_use_after_return=1:strict_init_order=1:abort_on_error=0"


def copy_sources(folder: Path) -> None:
    """What the tests need, apart from the compiled part that is used otherwise."""
    unneeded = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in ("reludiag", "cli", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=unneeded)
    shutil.copy(ROOT / "pyproject.toml", folder)


def compile_sanitized(folder: Path) -> None:
    """Into the place where the package looks for its compiled part."""
    native = folder / "reludiag" / "native"
    subprocess.run(
        [
            *("c++", "-std=c++17", "-O1", "-g1", "-Wno-psabi", "-fPIC", "-shared", *SANITIZE),
            f"-DSOURCES={checksum(native)}",
            f"-I{sysconfig.get_paths()['include']}",
            *(str(native / "kernels.cpp"), "-o", str(native.parent / "_kernels.abi3.so")),
        ],
        check=True,
    )


def run_tests(folder: Path) -> int:
    """The exit code of the tests; 1 too where they would not use what was built here."""
    libraries = " ".join(_library(name) for name in ("libasan.so", "libubsan.so"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(folder / name) for name in ("", "cli")),
        "PYTHONMALLOC": "malloc",  # so that each object of Python has its own guarded memory
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": ADDRESS,
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    check = (
        "from reludiag import _kernels; from reludiag.measure import reductions;"
        f"assert _kernels.__file__.startswith({str(folder)!r}), _kernels.__file__;"
        "assert reductions._kernels is _kernels"
    )
    python = (sys.executable, "-X", "faulthandler")
    tests = (
        "-m",
        "pytest",
        "-q",
        "-x",
        "--capture=sys",
        *TESTS,
    )  # reports go to the terminal itself
    for command in ((*python, "-c", check), (*python, *tests)):
        code = subprocess.run(command, cwd=folder, env=environment).returncode
        if code != 0:
            return code
    return 0


def _library(name: str) -> str:
    """Path of a sanitizer's library, which has to be loaded before all others."""
    command = ["c++", f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Build and test in a copy of the sources."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_sources(folder)
        compile_sanitized(folder)
        return run_tests(folder)


if __name__ == "__main__":
    sys.exit(main())

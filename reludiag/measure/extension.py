"""The compiled part, `reludiag._kernels`: whether it is there, and of which sources it was made.

Loading it needs no torch, so that `reludiag --version` can say what is wrong with it.
"""

from importlib.machinery import PathFinder
from pathlib import Path
from zlib import crc32

_PACKAGE = Path(__file__).parents[1]
_SOURCES = _PACKAGE / "native"
COST = "Reading activations on the CPU takes several times as long without it."
"""For any message that says why the compiled part is not used."""


def check() -> str:
    """What is wrong with the compiled part, what that costs, what to do; empty if all is well."""
    # Beside this file only: the import system would also find that of another editable install.
    if PathFinder.find_spec("reludiag._kernels", [str(_PACKAGE)]) is None:
        return f"reludiag's compiled part is missing. {COST} {_cure()}"
    try:
        from reludiag import _kernels
    except ImportError as error:
        return f"reludiag's compiled part cannot be loaded ({error}). {COST} {_cure()}"
    # A file made before there was a checksum has none. Modification times say nothing after a git
    # checkout.
    if _SOURCES.exists() and getattr(_kernels, "SOURCES", None) != checksum(_SOURCES):
        return f"reludiag's compiled part is older than its sources and not used. {COST} {_cure()}"
    return ""


def checksum(folder: Path) -> int:
    """CRC-32 of the sources, as setup.py computes it while it compiles them."""
    return crc32(b"".join(path.read_bytes() for path in sorted(folder.glob("*.?pp"))))


def _cure() -> str:
    """Sources lie beside an editable install only."""
    if _SOURCES.exists():
        return f"With a C++ compiler, run: pip install -e {_PACKAGE.parent}"
    return (
        "Install a C++ compiler, then run: "
        "pip install --force-reinstall --no-deps --no-binary reludiag reludiag"
    )

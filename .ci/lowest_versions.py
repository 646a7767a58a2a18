"""The lowest versions that pyproject.toml declares, as pins for pip, one a line.

`python .ci/lowest_versions.py EXTRA ...` prints those of the build, of the core and of the named
extras; what has no floor stands without a version. So does torch, which is left to
constraints.txt, for almost every other build of it brings gigabytes of CUDA libraries; to try one
all the same, give `--torch VERSION`.
"""

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[(?P<extras>[\w,-]+)\])?(>=(?P<floor>[\w.]+))?")


def pins(requirements: list[str], extras: dict[str, list[str]]) -> Iterator[str]:
    """Turn each `name>=floor` into `name==floor`, and `reludiag[extra]` into what it stands for."""
    for requirement in requirements:
        match = REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise SystemExit(f"{requirement!r} in pyproject.toml; expected NAME or NAME>=VERSION")
        if match["name"] == "reludiag":
            for extra in match["extras"].split(","):
                yield from pins(extras[extra], extras)
        else:
            extra = f"[{match['extras']}]" if match["extras"] else ""
            yield match["name"] + extra + (f"=={match['floor']}" if match["floor"] else "")


def main() -> None:
    """Print the pins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--torch", help="a version of torch, instead of that of constraints.txt")
    options = parser.parse_args()
    content = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    extras = content["project"]["optional-dependencies"]
    wanted = content["build-system"]["requires"] + content["project"]["dependencies"]
    for extra in options.extras:
        wanted += extras[extra]
    torch = f"torch=={options.torch}" if options.torch else "torch"
    for pin in pins(wanted, extras):
        print(torch if pin.startswith("torch==") else pin)


if __name__ == "__main__":
    main()

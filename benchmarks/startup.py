"""How long commands that run no model take, beside importing the packages that they are made of.

Method: 15 rounds; in each, every command once, in random order; medians of the wall time. The
second row of each group is its first command again, and shows the noise. The recording is that of
`make demo`, made anew.
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 15
ROOT = Path(__file__).parents[1]


def commands(recording: str) -> list[dict[str, list[str]]]:
    """Groups of commands; each is compared with the first of its group."""
    return [
        {
            "import typer, rich": _importing("typer, rich"),
            "import typer, rich (again)": _importing("typer, rich"),
            "reludiag --version": _reludiag("--version"),
            "reludiag --help": _reludiag("--help"),
            "reludiag scan --help": _reludiag("scan", "--help"),
        },
        {
            "import pandas, rich, typer": _importing("pandas, rich, typer"),
            "import pandas, rich, typer (again)": _importing("pandas, rich, typer"),
            "reludiag report RECORDING": _reludiag("report", recording),
            "reludiag report --json": _reludiag("report", recording, "--json"),
            "reludiag diff RECORDING RECORDING": _reludiag("diff", recording, recording),
        },
    ]


def _importing(packages: str) -> list[str]:
    return [sys.executable, "-c", f"import {packages}"]


def _reludiag(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "reludiag", *arguments]


def main() -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        recording = str(Path(folder) / "run.reludiag")
        train = [sys.executable, "sample_models/digits.py", "--lr", "0.1", "--recording", recording]
        subprocess.run(train, check=True, capture_output=True, cwd=ROOT)
        groups = commands(recording)
        times: dict[tuple[int, str], list[float]] = {
            (number, name): [] for number, group in enumerate(groups) for name in group
        }
        for _ in range(ROUNDS):
            for number, name in random.sample(list(times), len(times)):
                start = time.perf_counter()
                subprocess.run(groups[number][name], check=True, capture_output=True, cwd=ROOT)
                times[number, name].append(time.perf_counter() - start)
    print(f"{'command':36} {'ms':>6} {'ratio':>6}")
    for number, group in enumerate(groups):
        medians = {name: statistics.median(times[number, name]) for name in group}
        base = medians[next(iter(group))]
        for name, median in medians.items():
            print(f"{name:36} {1000 * median:6.0f} {median / base:6.2f}")


if __name__ == "__main__":
    main()

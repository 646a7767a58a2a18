"""How long `reludiag --help` takes, compared with importing its libraries.

Method: 15 rounds; in each, every command once, in random order; medians of the wall time. The
second row of typer and rich is the same command again, and shows the noise.
"""

import random
import statistics
import subprocess
import sys
import time

ROUNDS = 15
COMMANDS = {
    "import typer, rich": [sys.executable, "-c", "import typer, rich"],
    "import typer, rich (again)": [sys.executable, "-c", "import typer, rich"],
    "reludiag --help": [sys.executable, "-m", "reludiag", "--help"],
    "reludiag scan --help": [sys.executable, "-m", "reludiag", "scan", "--help"],
}


def main() -> None:
    """Measure and print the table."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name in random.sample(list(COMMANDS), len(COMMANDS)):
            start = time.perf_counter()
            subprocess.run(COMMANDS[name], check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["import typer, rich"])
    print(f"{'command':30} {'ms':>6} {'ratio':>6}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:30} {1000 * median:6.0f} {median / base:6.2f}")


if __name__ == "__main__":
    main()

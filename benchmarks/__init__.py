"""Benchmarks: each file is a program that says its method and prints a table.

`python benchmarks/NAME.py` and `python -m benchmarks.NAME` are the same. A folder is a program of
several files: `python -m benchmarks.deadbench`.
"""

import sys
from pathlib import Path

# The files import each other as programs do: by name, from their own folder.
sys.path.append(str(Path(__file__).parent))

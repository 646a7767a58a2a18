"""Types: what a type checker tells those who import reludiag."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

USER_CODE = """\
import reludiag
from reludiag.testing import assert_alive

diagnosis = reludiag.scan(object(), [])
reveal_type(diagnosis)
reveal_type(reludiag.load("run.reludiag"))
reveal_type(reludiag.Diagnosis.dead_fraction)
reveal_type(reludiag.Monitor(object()))
reveal_type(reludiag.Monitor.diagnose)
reveal_type(assert_alive)
reludiag.Thresholds(rare="few")
reludiag.scna
"""
# The types of these are not in question here, and take a minute to read.
CONFIGURATION = """\
[mypy]
strict = True
[mypy-torch.*,numpy.*,pandas.*,scipy.*,matplotlib.*,rich.*]
follow_imports = skip
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_who_imports_reludiag_gets_its_types(tmp_path: Path) -> None:
    """mypy takes what stands on sys.path for an installed package, untyped without py.typed."""
    (tmp_path / "user.py").write_text(USER_CODE)
    (tmp_path / "mypy.ini").write_text(CONFIGURATION)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "user.py"], cwd=tmp_path, capture_output=True, text=True
    )
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert [re.sub(r".* -> |[a-z_]+\.", "", each) for each in revealed] == [
        "Diagnosis", "Diagnosis", "float", "Monitor", "Diagnosis", "Diagnosis",
    ], done.stdout  # fmt: skip
    errors = re.findall(r"user\.py:(\d+): error", done.stdout)
    assert errors == ["11", "12"], done.stdout

"""What all tests share."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from reludiag.measure import reductions
from tests.browser import chromium, opened  # noqa: F401  fixtures
from tests.forked import forked_workers  # noqa: F401  a fixture

# The tensors of these tests are tiny: a second thread costs more than it brings, and where cores
# are shared it waits for its turn at full power. So too in the processes that tests start, which
# find this tree wherever they run.
torch.set_num_threads(1)
# Where the tests are a background job of a shell, SIGINT is ignored, and so it would be in what
# they start: no Ctrl-C would end it.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(__file__).parents[1] / f) for f in ("", "cli"))

# A machine that is busy is slow, and its examples are as good. Of the fixtures, Hypothesis's tests
# here use only those that may be the same for all examples.
settings.register_profile(
    "reludiag",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("reludiag")

SETTINGS_OF_OTHERS = ("CLICOLOR", "GITHUB_", "RELUDIAG_", "TTY_")
SETTINGS_OF_OTHERS += ("COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "PYTHONIOENCODING")
SETTINGS_OF_OTHERS += ("PY_COLORS", "TERMINAL_WIDTH")


def pytest_sessionstart() -> None:
    """What a shell or a CI service says of colours and widths is not for what is tested.

    Ahead of the test files: some libraries read it when they are imported.
    """
    for name in [name for name in os.environ if name.startswith(SETTINGS_OF_OTHERS)]:
        del os.environ[name]
    os.environ["TERM"] = "xterm"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test draws the same, whichever ran before it. Ahead of fixtures, which draw too."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(params=["compiled", "operators"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How activations are read: by compiled code, and as where there is no compiler."""
    how: str = request.param
    if how == "operators":
        monkeypatch.setattr(reductions, "_kernels", None)
    elif reductions._kernels is None:
        pytest.skip("the reductions were not compiled")
    return how


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with slow tests first: at the end one process would wait for the other.

    pytest-xdist keeps this order with --no-loadscope-reorder; else the files with most tests come
    first.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))

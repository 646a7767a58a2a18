"""Processes that are forked from one which has imported torch, and so start at once.

A new interpreter takes three seconds of processor time to import torch and its compiler. Where
neither the start of an interpreter nor what it imports is tested, a test has its processes from
here: they are as separate as spawned ones, and a kill ends them as hard.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

# The server starts with the first process, and has the environment and the output of that moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("pytest", "optuna", "torch._dynamo", "reludiag.experiments.queue.worker"),
        *("reludiag.experiments.sweep", "reludiag.monitoring.monitor", "reludiag.scanning"),
        *("reludiag_cli.app", "reludiag_cli.sweep", "reludiag_cli.scan"),
    ]
)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a sweep or a replay are forked, instead of spawned."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: CONTEXT)


def start_command(arguments: Sequence[str], folder: Path, said: Path) -> BaseProcess:
    """Start `reludiag` with these arguments in a folder; what it prints goes to the file `said`.

    Its workers are forked from it.
    """
    process = CONTEXT.Process(target=_command, args=(["reludiag", *arguments], folder, said))
    process.start()
    return process


def _command(argv: list[str], folder: Path, said: Path) -> None:
    os.chdir(folder)
    output = os.open(said, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = argv
    forking = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forking  # type: ignore[assignment]
    from reludiag_cli.app import main

    main()

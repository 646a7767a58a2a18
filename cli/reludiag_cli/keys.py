"""Single key presses, if the standard input is a terminal."""

import contextlib
import functools
import os
import select
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def key_presses() -> Iterator[Callable[[float], str]]:
    """A function that waits up to the given seconds for keys; it returns them, or an empty text."""
    try:
        import termios
        import tty

        terminal = sys.stdin.fileno()
        attributes = termios.tcgetattr(terminal)
    except (ImportError, OSError, ValueError, termios.error):
        yield _sleep  # Windows, or no terminal: Ctrl-C still works
        return
    try:
        tty.setcbreak(terminal)
        yield functools.partial(_presses, terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, attributes)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _presses(terminal: int, seconds: float) -> str:
    ready, _, _ = select.select([terminal], [], [], seconds)
    return os.read(terminal, 64).decode(errors="replace") if ready else ""

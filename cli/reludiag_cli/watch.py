"""`reludiag watch`: a live view of a training run, from its recording."""

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # importing these loads pandas; --help must not
    from rich.console import Console

    from reludiag.monitoring.follow import Follower


def watch(
    recording: Annotated[
        str,
        typer.Argument(metavar="RECORDING", help="The file that a Monitor writes or will write."),
    ],
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Seconds between two updates.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
) -> None:
    """Follow a training run live, from its recording; q quits.

    It does not stop when the run ends, and switches to a new run in the same file.
    """
    from rich.console import Console

    from reludiag.errors import RecordingError, UsageError
    from reludiag.monitoring.follow import Follower
    from reludiag.reports.live import print_frame

    console, follower = Console(), Follower(recording)
    if once:
        view = follower.look()
        if view.diagnosis is None:
            raise RecordingError(view.sentence)
        print_frame(view, console)
    elif console.is_terminal:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(follower, console, interval)
    else:
        raise UsageError("watch shows a live view and needs a terminal; --once prints one frame")


def _follow(follower: "Follower", console: "Console", interval: float) -> None:
    from rich.live import Live

    from reludiag.reports.console import speaks_unicode
    from reludiag.reports.live import frame, print_frame
    from reludiag_cli.keys import key_presses

    plain = not speaks_unicode(console)
    view = follower.look()
    try:
        with (
            key_presses() as read_keys,
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while True:
                view = follower.look()
                live.update(frame(view, console.height, plain), refresh=True)
                if "q" in read_keys(interval).lower():
                    break
    finally:
        print_frame(view, console)  # the last frame stays on the screen

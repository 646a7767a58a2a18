"""The Typer application, and the one place where exit codes and error panels are made."""

import sys
import traceback

import typer

from reludiag.errors import ReludiagError, UserCodeError
from reludiag.printable import printable
from reludiag_cli.compare import compare
from reludiag_cli.config import config
from reludiag_cli.diff import diff
from reludiag_cli.init import init
from reludiag_cli.plot import plot
from reludiag_cli.replay import replay
from reludiag_cli.report import report
from reludiag_cli.scan import scan
from reludiag_cli.settings import default_map, given_settings
from reludiag_cli.sites import sites
from reludiag_cli.sweep import sweep
from reludiag_cli.watch import watch

INTERRUPTED = 130
BUG = 4

app = typer.Typer(
    name="reludiag",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: drawing boxes would take longer than all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the units of a ReLU network that never fire: which, since when, at which "
    "learning rate.",
    epilog="Exit codes: 0 fine, 1 more dead than allowed or every run of TRAIN crashed, 2 usage, "
    "3 could not load, 4 a bug of reludiag, 130 interrupted.",
)
app.command()(scan)
app.command()(sites)
app.command()(report)
app.command()(watch)
app.command()(diff)
app.command()(compare)
app.command()(init)
app.command()(sweep)
app.command()(replay)
app.command()(plot)
app.command()(config)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from reludiag.measure import compiled

        typer.echo(version("reludiag"))
        if problem := compiled.check():
            typer.echo(problem)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    commands = getattr(context.command, "commands", {})
    context.default_map = default_map(commands, given_settings(commands))


def main() -> None:
    """Run the command line; every error becomes one panel on stderr and an exit code."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="reludiag", standalone_mode=False) or 0
    except ReludiagError as error:
        _panel(error.title, str(error))
        if isinstance(error, UserCodeError):
            sys.stderr.write(error.user_traceback + "\n")
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        _panel("Usage", f"{error.format_message()}\nTry --help.")
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        _panel(
            "This is a bug of reludiag",
            "please report it with the traceback above and the command line that led to it",
        )
        sys.exit(BUG)
    if code == INTERRUPTED:  # Typer makes this of a KeyboardInterrupt
        _panel("Interrupted", "No file was left half-written.")
    sys.exit(code)


def _panel(title: str, text: str) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    Console(stderr=True).print(
        Panel(Text(printable(text)), title=title, title_align="left", border_style="red")
    )


if __name__ == "__main__":
    main()

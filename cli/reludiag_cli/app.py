"""The Typer application, and the only place that makes exit codes and error panels."""

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
from reludiag_cli.settings import default_map, settings_in_force
from reludiag_cli.sites import sites
from reludiag_cli.sweep import sweep
from reludiag_cli.watch import watch

INTERRUPTED = 130
INTERNAL_ERROR = 4

app = typer.Typer(
    name="reludiag",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: drawing boxes takes longer than everything else
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the units of a ReLU network that never fire: which, since when, at which "
    "learning rate.",
    epilog="Exit codes: 0 fine, 1 more units dead than allowed or every run of TRAIN crashed, "
    "2 usage, 3 could not load, or not judge every site, 4 internal error, 130 interrupted.",
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


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        from reludiag.measure import extension

        typer.echo(version("reludiag"))
        if problem := extension.check():
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
    context.default_map = default_map(commands, settings_in_force(commands))


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
            "Internal error in reludiag",
            "Please report it, with the traceback above and the command line that you ran.",
        )
        sys.exit(INTERNAL_ERROR)
    if code == INTERRUPTED:  # Typer turns a KeyboardInterrupt into this
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

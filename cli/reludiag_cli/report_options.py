"""The options of a report on a run, which `scan` and `report` share.

One for each format of `reludiag.reports.run.formats`, and some on how the report is written.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from reludiag.reports.run.formats import OPTIONS
from reludiag_cli import options


@dataclass(frozen=True)
class ReportRequest:
    """The reports to write, and how."""

    files: Mapping[str, str]
    """Name of a format -> path of its file."""
    as_json: bool
    output: str
    all_units: bool
    all_sites: bool
    github_summary: bool
    fail_over: list[str]
    allow_unobserved: bool


AllUnits = Annotated[
    bool, typer.Option("--all", help="List every unit, also those that are alive.")
]
AllSites = Annotated[bool, typer.Option("--all-sites", help="List every site, however many.")]
GithubSummary = Annotated[
    bool,
    typer.Option(
        "--github-summary", help="Add the Markdown summary to the file $GITHUB_STEP_SUMMARY."
    ),
]
FailOver = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-over",
        metavar="[SITES=]5%|N",
        help="Exit 1 if more units than this are dead or not finite, in the whole model, or in any "
        "site that matches SITES, such as encoder.*; the first match counts. Repeatable. Exit 3 if "
        "something under a limit was not judged.",
    ),
]
AllowUnobserved = Annotated[
    bool,
    typer.Option(
        "--allow-unobserved",
        help="Let --fail-over pass although something was not judged, such as a site that was "
        "never called or whose unit axis is unknown.",
    ),
]


def with_report_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add these options to the command; they are passed as its parameter `request`."""
    names = [each.name for each in OPTIONS]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        targets = {name: values.pop(name) for name in names}
        request = ReportRequest(
            files={name: target for name, target in targets.items() if target is not None},
            fail_over=values.pop("fail_over") or [],
            **{name: values.pop(name) for name in _OTHERS if name != "fail_over"},
        )
        command(**values, request=request)

    own = inspect.signature(command).parameters.values()
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in {**_file_options(), **_OTHERS}.items()
    ]
    parameters = [*(each for each in own if each.name != "request"), *shared]
    # Typer reads the options of a command from its signature and annotations.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _file_options() -> dict[str, tuple[Any, Any]]:
    return {
        each.name: (
            Annotated[str | None, typer.Option(f"--{each.name}", metavar="FILE", help=each.help)],
            None,
        )
        for each in OPTIONS
    }


_OTHERS: dict[str, tuple[Any, Any]] = {
    "all_units": (AllUnits, False),
    "as_json": (options.AsJson, False),
    "output": (options.Output, "-"),
    "github_summary": (GithubSummary, False),
    "all_sites": (AllSites, False),
    "fail_over": (FailOver, None),
    "allow_unobserved": (AllowUnobserved, False),
}

"""Tables on a page whose rows are made from a table of the code.

<!-- rows of: causes, clue -->
| cause | evidence for it |
|---|---|
| `learning_rate` | units died more often while the rate was high ... |

The two lines of a head are written by hand; the rows below, up to an empty line, are made.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from reludiag.causes.all_kinds import KINDS
from reludiag.measure.structure import LINTS
from reludiag.measure.verdicts import VERDICT_TABLE

_TABLE = re.compile(
    r"^<!-- rows of: (?P<name>.+?) -->\n(?P<head>(?:\|.*\n){2})(?P<rows>(?:\|.*\n)*)", re.MULTILINE
)


def with_tables(text: str) -> str:
    """The text of a page with the rows of each such table as the code has them."""
    return _TABLE.sub(_current, text)


def named_tables(text: str) -> list[str]:
    """Names of the tables on a page."""
    return [table["name"] for table in _TABLE.finditer(text)]


def _current(table: re.Match[str]) -> str:
    rows = "".join(f"| {' | '.join(row)} |\n" for row in ROWS[table["name"]]())
    return f"<!-- rows of: {table['name']} -->\n{table['head']}{rows}"


def _clues() -> Iterator[tuple[str, ...]]:
    return ((f"`{kind.name}`", kind.clue) for kind in KINDS)


def _rules() -> Iterator[tuple[str, ...]]:
    return ((f"`{kind.name}`", kind.rule) for kind in KINDS)


def _meanings() -> Iterator[tuple[str, ...]]:
    return ((f"`{verdict.name}`", verdict.meaning) for verdict in VERDICT_TABLE)


def _conditions() -> Iterator[tuple[str, ...]]:
    return ((f"`{verdict.name}`", verdict.rule) for verdict in VERDICT_TABLE)


def _lints() -> Iterator[tuple[str, ...]]:
    return ((f"`{lint.name}`", lint.holds) for lint in LINTS)


ROWS: Mapping[str, Callable[[], Iterator[tuple[str, ...]]]] = {
    "causes, clue": _clues,
    "causes, rule": _rules,
    "lints": _lints,
    "verdicts, meaning": _meanings,
    "verdicts, rule": _conditions,
}

"""The report of a Difference: on the terminal, as text, as JSON."""

from dataclasses import asdict

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reludiag.diagnosis.columns import SCHEMA_VERSION
from reludiag.diagnosis.difference import CHANGES, Difference
from reludiag.reports.console import SanitizedText, plain_text
from reludiag.reports.json_text import records, text_of
from reludiag.reports.wording import plural

_NAMED = 5  # units named per site
_STYLES = {"died": "bold red", "diverged": "bold magenta", "revived": "green"}


def print_difference(difference: Difference, console: Console) -> None:
    """Print the report on a Rich console."""
    console.print(SanitizedText(_head(difference), *_site_table(difference)))


def difference_text(difference: Difference, encoding: str = "utf-8") -> str:
    """The report as plain text, 80 columns wide, with characters that `encoding` has."""
    return plain_text(lambda console: print_difference(difference, console), encoding)


def difference_document(difference: Difference, all_units: bool = False) -> str:
    """The JSON text; unknown numbers are null."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "before": asdict(difference.before),
        "after": asdict(difference.after),
        "notes": difference.notes,
        "unjudged": [asdict(place) for place in difference.unjudged],
        "totals": {
            "new_deaths": difference.new_deaths,
            **{change: difference.count(change) for change in CHANGES},
        },
        "sites": records(difference.sites),
        "units": records(changed_units(difference, all_units)),
    }
    return text_of(content)


def changed_units(difference: Difference, all_units: bool) -> pd.DataFrame:
    """All units, or those that changed."""
    units = difference.units
    return units if all_units else units[units["change"] != "unchanged"]


def _head(difference: Difference) -> RenderableType:
    first, second = difference.before, difference.after
    sides = Table.grid(padding=(0, 1, 0, 0))
    sides.add_column(style="dim")
    sides.add_column(overflow="fold")
    for word, head in (("from", first), ("to", second)):
        sides.add_row(word, Text(f"{head.subject}: {head.evidence}"))
    totals = Text("  ").join(
        Text(f"{difference.count(change):,} {change}", style=_STYLES.get(change, ""))
        for change in CHANGES
        if difference.count(change) or change in ("died", "revived", "unchanged")
    )
    notes = [Text(note, style="yellow") for note in difference.notes]
    title = f"reludiag diff: {second.model}"
    return Panel(
        Group(sides, totals, *notes), title=Text(title), title_align="left", border_style="dim"
    )


def _site_table(difference: Difference) -> list[RenderableType]:
    sites = difference.sites
    same = (sites["status"] == "compared") & (
        sites[["died", "diverged", "revived", "unknown"]].sum(axis=1) == 0
    )
    rows = sites[~same]
    parts: list[RenderableType] = []
    if len(rows):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True, padding=(0, 1))
        table.add_column("Site", overflow="fold", ratio=2, min_width=12)
        for name in ("Units", "Dead", "Died", "Revived"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("Units that changed", overflow="ellipsis", no_wrap=True, ratio=3)
        named = _named_units(difference)
        for row in rows.to_dict("records"):
            if row["status"] == "compared":
                words = Text(named.get(row["site"], ""), style="dim")
            else:
                words = Text(row["status"], style="yellow")
            table.add_row(
                Text(row["site"]),
                _change(row["units_before"], row["units_after"]),
                _change(row["dead_before"], row["dead_after"]),
                *(_count(row[change], _STYLES[change]) for change in ("died", "revived")),
                words,
            )
        parts.append(Padding(table, (1, 0, 0, 1)))
    if same.any():
        rest = f"{'the other ' if len(rows) else ''}{plural(int(same.sum()), 'site')}"
        line = f" No unit changed in {rest}."
        parts.append(Text(line, style="dim"))
    return parts


def _change(old: int, new: int) -> str:
    """`12`, `12 > 15`, or with a dash for a missing value."""
    first, second = ("-" if pd.isna(count) else f"{count:,}" for count in (old, new))
    return first if first == second else f"{first} > {second}"


def _count(count: int, style: str) -> Text:
    if pd.isna(count):
        return Text("")
    return Text(f"{count:,}", style=style if count else "dim")


def _named_units(difference: Difference) -> dict[str, str]:
    """For each site, the units that died, or else those that diverged, revived or are unknown."""
    named: dict[str, str] = {}
    for change in ("died", "diverged", "revived", "unknown"):
        units = difference.units[difference.units["change"] == change]
        for site, rows in units.groupby("site", sort=False):
            more = len(rows) - _NAMED
            names = ", ".join(str(unit) for unit in rows["unit"].head(_NAMED))
            named.setdefault(str(site), f"{change} {names}" + (f" +{more:,}" if more > 0 else ""))
    return named

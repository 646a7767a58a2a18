"""The terminal report: what was scanned, how each site is, when units died, what to look at."""

import io
import itertools
import math
from collections.abc import Iterator
from typing import IO

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.measure.unjudged import label, unjudged_sites
from reludiag.measure.verdicts import VERDICT_TABLE, VERDICTS
from reludiag.reports.console import WIDTH, SanitizedText, plain_text, speaks_unicode
from reludiag.reports.output import encoding_of
from reludiag.reports.run.cause_section import why
from reludiag.reports.run.first_lines import first_lines
from reludiag.reports.run.formats import ReportOptions
from reludiag.reports.run.marks import growth, mark_section
from reludiag.reports.run.metrics import metric_section
from reludiag.reports.run.structure_section import structure
from reludiag.reports.run.summary import (
    WINDOWS,
    dead_count,
    life_windows,
    model_counts,
    next_steps,
    samples_differ,
)
from reludiag.reports.wording import plural, share

_MOST_ROWS = 40  # sites shown one by one; more are grouped by their parent module
BAR = 16  # cells
_ROOM = 36  # columns of 80 for the name of a site and its worst units
_NARROW = 10  # of these, the least for the worst units
_MOST_MODELS = 8  # named models with a line of their own
_WORST = 4  # units named per site
_WIDE = 100  # columns of a terminal, for what feeds each site

# As in a bar: the grave ones last.
_LOOKS = {verdict.name: verdict for verdict in reversed(VERDICT_TABLE)}


def write_text(diagnosis: Diagnosis, stream: IO[str], choices: ReportOptions) -> None:
    """The report as plain text, of characters that the stream has."""
    stream.write(terminal_text(diagnosis, choices.all_sites, encoding_of(stream)))


def write_svg(diagnosis: Diagnosis, stream: IO[str], choices: ReportOptions) -> None:
    """The report as a picture."""
    stream.write(terminal_svg(diagnosis, choices.all_sites))


def print_report(diagnosis: Diagnosis, console: Console, all_sites: bool = False) -> None:
    """Print the report on a Rich console."""
    ascii_only, wide = not speaks_unicode(console), console.width >= _WIDE
    console.print(render(diagnosis, all_sites, ascii_only, wide))


def terminal_text(diagnosis: Diagnosis, all_sites: bool = False, encoding: str = "utf-8") -> str:
    """The report as plain text, 80 columns wide, with characters that `encoding` has."""
    return plain_text(lambda console: print_report(diagnosis, console, all_sites), encoding)


def terminal_svg(diagnosis: Diagnosis, all_sites: bool = False) -> str:
    """The report as an SVG picture of a terminal."""
    console = Console(
        file=io.StringIO(), width=WIDTH, record=True, force_terminal=True, color_system="truecolor"
    )
    print_report(diagnosis, console, all_sites)
    return console.export_svg(title="reludiag", unique_id="reludiag")


def render(
    diagnosis: Diagnosis, all_sites: bool, ascii_only: bool = False, wide: bool = False
) -> RenderableType:
    """The whole report as one renderable; `wide` if there is room for one more column."""
    parts: list[RenderableType] = [_head(diagnosis)]
    parts += _first_lines(diagnosis)
    parts.append(_site_table(diagnosis, all_sites, ascii_only, wide))
    if diagnosis.timeline is not None and len(diagnosis.timeline):
        parts.append(life_table(diagnosis, ascii_only))
        parts += mark_section(diagnosis)
        parts += metric_section(diagnosis)
    parts += why(diagnosis.causes)
    parts += structure(diagnosis.structure)
    parts.append(_next_steps(diagnosis))
    return SanitizedText(*parts)


def _head(diagnosis: Diagnosis) -> RenderableType:
    head, sites = diagnosis.head, diagnosis.sites
    units = int(sites["units"].sum())
    counts = {verdict: int(sites[verdict].sum()) for verdict in VERDICTS}
    title = Text(head.model, style="bold")
    if head.subject != head.model:
        title.append(f"  {head.subject}", style="not bold")
    totals = Text()
    dead_style = totals_style(diagnosis)
    totals.append(dead_count(diagnosis), style=dead_style)
    if counts["dead"]:
        totals.append(f" ({share(counts['dead'], units)})", style=dead_style)
    for verdict in VERDICTS if diagnosis.watched else ():
        if verdict != "dead" and counts[verdict]:
            style = _LOOKS[verdict].style
            totals.append("  ")
            totals.append(f"{counts[verdict]:,} {verdict.replace('_', ' ')}", style=style)
    if diagnosis.unjudged:
        totals.append(f"  {plural(len(diagnosis.unjudged), 'place')} not judged", style="yellow")
    lines = [title, Text(head.evidence[:1].upper() + head.evidence[1:]), totals]
    models = model_counts(diagnosis)
    lines += [
        Text(
            f"  {name}: {dead:,} of {plural(count, 'unit')} dead"
            + (f" ({share(dead, count)})" if dead else "")
        )
        for name, dead, count in models[:_MOST_MODELS]
    ]
    if len(models) > _MOST_MODELS:
        lines.append(Text(f"  and {plural(len(models) - _MOST_MODELS, 'more model')}"))
    if diagnosis.diverged:
        note = "DIVERGED: units became NaN or infinite; they are neither dead nor alive."
        lines.append(Text(note, style="bold magenta"))
    lines += [Text(note, style="yellow") for note in head.notes]
    return Panel(Group(*lines), title="reludiag", title_align="left", border_style="dim")


def _first_lines(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    """The answer for who reads no further."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for line in first_lines(diagnosis):
        style = "green" if line.label == "Do" else ""
        grid.add_row(f"{line.label}:", Text(line.text, style=style))
    if grid.row_count:
        yield Padding(grid, (0, 0, 0, 1))


def totals_style(diagnosis: Diagnosis) -> str:
    """Green only where all is judged and none is dead."""
    if diagnosis.dead:
        return "bold red"
    return "bold yellow" if diagnosis.unjudged else "bold green"


def _site_table(
    diagnosis: Diagnosis, all_sites: bool, ascii_only: bool, wide: bool
) -> RenderableType:
    rows, grouped = _rows(diagnosis, all_sites)
    shows_producer = wide and not grouped
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True, padding=(0, 1))
    sampled = samples_differ(diagnosis)
    places, _ = unjudged_sites([str(name) for name in diagnosis.sites["site"]], diagnosis.unjudged)
    labels = {} if grouped else {name: label(place.reason) for name, place in places.items()}
    longest = max((len(str(name)) for name in rows["site"]), default=0)
    room = _ROOM - 9 * sampled
    is_long = not (wide or grouped) and longest > room // 2
    # A name is cut inside a word only where it does not fit beside the counts at all.
    shows_worst = not grouped and (not is_long or bool(labels) or room - longest >= _NARROW)
    table.add_column(
        "Modules" if grouped else "Site",
        overflow="fold",
        ratio=None if is_long and shows_worst else 2,
        width=min(longest, room - _NARROW) if is_long and shows_worst else None,
        min_width=12,
    )
    if grouped:
        table.add_column("Sites", justify="right", no_wrap=True)
    if shows_producer:
        table.add_column("Fed by", overflow="fold", ratio=2)
    table.add_column("Units", justify="right", no_wrap=True)
    if sampled:
        table.add_column("Samples", justify="right", no_wrap=True)
    table.add_column("alive, rare, dead", no_wrap=True, width=BAR + 1)
    table.add_column("Dead", justify="right", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    if shows_worst:
        table.add_column("Worst units", overflow="ellipsis", no_wrap=True, ratio=2)
    worst = _worst_units(diagnosis) if shows_worst else {}
    for row in rows.to_dict("records"):
        counts = {verdict: int(row[verdict]) for verdict in VERDICTS}
        units = sum(counts.values())
        dead_style = "red" if counts["dead"] else "dim"
        cells: list[RenderableType] = [Text(row["site"])]
        if grouped:
            cells.append(f"{row['sites']:,}")
        if shows_producer:
            cells.append(Text(row["producer"] if isinstance(row["producer"], str) else ""))
        if units:
            cells.append(f"{units:,}")
            if sampled:
                cells.append(f"from {row['samples']:,}" if grouped else f"{row['samples']:,}")
            cells += [
                bar(counts, units, ascii_only),
                Text(f"{counts['dead']:,}", style=dead_style),
                Text(share(counts["dead"], units), style=dead_style),
            ]
            if shows_worst:
                note = Text(labels.get(row["site"], ""), style="yellow")
                named = Text(worst.get(row["site"], ""), style="dim")
                cells.append(Text("  ").join(each for each in (note, named) if each))
        else:
            never = labels.get(row["site"], "never called")
            cells += ["", *([""] if sampled else []), Text(never, style="yellow")]
        table.add_row(*cells)
    parts: list[RenderableType] = [Padding(table, (1, 0, 0, 1))]
    legend = _legend(diagnosis, ascii_only)
    if legend:
        parts.append(Padding(legend, (0, 0, 0, 1)))
    if grouped:
        count = len(diagnosis.sites)
        parts.append(
            Text(f" {count:,} sites, grouped by module: --all-sites lists each.", style="dim")
        )
    return Group(*parts)


def _rows(diagnosis: Diagnosis, all_sites: bool) -> tuple[pd.DataFrame, bool]:
    """A row per site or, if there are many, per module or range of modules."""
    sites = diagnosis.sites
    if all_sites or len(sites) <= _MOST_ROWS:
        return sites, False
    owners = [str(site).partition("#")[0].rpartition(".")[0] for site in sites["site"]]
    labels = _ranges(owners)
    while len(set(labels)) > _MOST_ROWS:
        owners = [owner.rpartition(".")[0] for owner in owners]
        labels = _ranges(owners)
    tally = sites.assign(label=labels, sites=1).groupby("label", sort=False)
    rows = tally[["sites", *VERDICTS]].sum()
    called = sites["samples"].where(sites["samples"] > 0)
    rows["samples"] = called.groupby(labels, sort=False).min()
    return rows.reset_index(names="site"), True


def _ranges(owners: list[str]) -> list[str]:
    """A label for each owner: its name, or `layers.0 ... 24` if there are too many."""
    names = list(dict.fromkeys(owners))
    if len(names) <= _MOST_ROWS:
        return [name or "(model)" for name in owners]
    size = math.ceil(2 * len(names) / _MOST_ROWS)
    labels: dict[str, str] = {}
    for holder, members in itertools.groupby(names, key=lambda name: name.rpartition(".")[0]):
        group = list(members)
        for start in range(0, len(group), size):
            part = group[start : start + size]
            first = part[0] or holder or "(model)"
            label = first if len(part) == 1 else f"{first} ... {part[-1].rpartition('.')[2]}"
            labels.update(dict.fromkeys(part, label))
    return [labels[name] for name in owners]


def bar(counts: dict[str, int], units: int, ascii_only: bool) -> Text:
    """A bar of the units by verdict, each that occurs at least one cell wide."""
    cells = {verdict: BAR * counts[verdict] / units for verdict in _LOOKS if counts[verdict]}
    widths = {verdict: max(1, round(width)) for verdict, width in cells.items()}
    while sum(widths.values()) != BAR:
        step = 1 if sum(widths.values()) < BAR else -1
        # The widest part absorbs the rounding, where it shows least.
        widths[max(widths, key=lambda verdict: widths[verdict])] += step
    text = Text()
    for verdict, width in widths.items():
        look = _LOOKS[verdict]
        text.append((look.plain if ascii_only else look.glyph) * width, style=look.style)
    return text


def _legend(diagnosis: Diagnosis, ascii_only: bool) -> Text:
    """The glyphs that occur, except full blocks."""
    glyphs: dict[str, tuple[list[str], str]] = {}
    for verdict, look in _LOOKS.items():
        if int(diagnosis.sites[verdict].sum()):
            glyph = look.plain if ascii_only else look.glyph
            names, _ = glyphs.setdefault(glyph, ([], look.style))
            names.append(verdict.replace("_", " "))
    legend = Text(style="dim")
    for glyph, (names, style) in glyphs.items():
        legend.append(glyph, style=style)
        legend.append(f" {', '.join(names)}   ")
    return legend


def _worst_units(diagnosis: Diagnosis) -> dict[str, str]:
    """For each site, the units with the worst verdict there, without the word "dead"."""
    units = diagnosis.units[diagnosis.units["unit"].notna()]
    named: dict[str, str] = {}
    for verdict in (verdict.name for verdict in VERDICT_TABLE if verdict.is_listed):
        rows_of_verdict = units[units["verdict"] == verdict].sort_values(
            "firing_rate", kind="stable"
        )
        for site, rows in rows_of_verdict.groupby("site", sort=False):
            numbers = ", ".join(str(unit) for unit in rows["unit"].head(_WORST))
            more = len(rows) - _WORST
            label = "" if verdict == "dead" else f"{verdict} "
            named.setdefault(str(site), label + numbers + (f" +{more:,}" if more > 0 else ""))
    return named


def life_table(diagnosis: Diagnosis, ascii_only: bool, most: int = WINDOWS) -> RenderableType:
    """Deaths and revivals in each of at most `most` windows of the run, and the initial state."""
    assert diagnosis.timeline is not None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True, padding=(0, 1))
    table.add_column("Steps", justify="right", no_wrap=True)
    table.add_column("Max. learning rate", justify="right", no_wrap=True)
    table.add_column("Dead", justify="right", no_wrap=True)
    windows = life_windows(diagnosis.timeline, most)
    diverged = any(window.nonfinite for window in windows)
    width = BAR // 2 if diverged else BAR
    table.add_column("", no_wrap=True, width=width + 1)
    table.add_column("Died", justify="right", no_wrap=True)
    table.add_column("Revived", justify="right", no_wrap=True)
    if diverged:
        table.add_column("Nonfinite", justify="right", no_wrap=True)
    else:
        table.add_column("", ratio=1)
    glyph = _LOOKS["dead"].plain if ascii_only else _LOOKS["dead"].glyph
    units = max(1, int(diagnosis.sites["units"].sum()))
    for window in windows:
        cells: list[RenderableType] = [
            window.steps,
            "" if math.isnan(window.learning_rate) else f"{window.learning_rate:.4g}",
            f"{window.dead:,}",
            Text(glyph * _cells(window.dead, units, width), style="red"),
            Text(f"{window.died:,}", style="red" if window.died else "dim"),
            Text(f"{window.revived:,}", style="green" if window.revived else "dim"),
        ]
        if diverged:
            cells.append(
                Text(f"{window.nonfinite:,}", style="magenta" if window.nonfinite else "dim")
            )
        table.add_row(*cells)
    return Group(
        Padding(Text("Deaths over time", style="bold"), (1, 0, 1, 1)), Padding(table, (0, 0, 0, 1))
    )


def _cells(part: int, whole: int, width: int) -> int:
    return max(1, round(width * part / whole)) if part else 0


def _next_steps(diagnosis: Diagnosis) -> RenderableType:
    lines = [*filter(None, [growth(diagnosis)]), *next_steps(diagnosis)]
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1, style="bold")
    table.add_column()
    for line in lines:
        table.add_row("-", escape(line))
    return Padding(Group(Text("What to look at next", style="bold"), table), (1, 0, 0, 1))

"""The live view: the current state of a run, fitted to the lines of the terminal."""

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.measure.verdicts import VERDICTS
from reludiag.monitoring.follow import LiveView
from reludiag.reports.console import SanitizedText, speaks_unicode
from reludiag.reports.run.summary import WINDOWS, dead_count, samples_differ
from reludiag.reports.run.terminal import BAR, bar, life_table, totals_style
from reludiag.reports.wording import plural, share

_STYLES = {
    "waiting": "yellow",
    "running": "bold green",
    "complete": "bold blue",
    "interrupted": "bold yellow",
    "died": "bold red",
    "lost": "bold red",
}
_HEAD, _TITLES, _FOOT = 6, 8, 1  # lines that are always used
_FEWEST = 3  # rows of each of the two tables on the smallest screen


def print_frame(view: LiveView, console: Console) -> None:
    """Print one frame in full height."""
    console.print(frame(view, None, ascii_only=not speaks_unicode(console)))


def frame(view: LiveView, height: int | None, ascii_only: bool = False) -> RenderableType:
    """One frame in `height` lines of a terminal; in full height if None."""
    parts = [_head(view)]
    diagnosis = view.diagnosis
    if diagnosis is not None and diagnosis.timeline is not None and len(diagnosis.timeline):
        rows = 99 if height is None else max(0, height - _HEAD - _TITLES - _FOOT)
        sites = max(_FEWEST, min(len(diagnosis.sites), rows // 3, 10))
        windows = max(_FEWEST, min(WINDOWS, rows - sites - 1))
        parts.append(life_table(diagnosis, ascii_only, windows))
        parts.append(_worst_sites(diagnosis, sites, ascii_only))
    if height is not None:
        parts.append(Text(" q or Ctrl-C quits; the run continues.", style="dim"))
    return SanitizedText(*parts)


def _head(view: LiveView) -> RenderableType:
    diagnosis = view.diagnosis
    title = Text(diagnosis.head.model if diagnosis is not None else "", style="bold")
    title.append(f"  {view.subject}" if diagnosis is not None else view.subject, "not bold")
    lines = [title, _progress_line(view)]
    if diagnosis is not None:
        lines.append(_totals(diagnosis))
    if view.sentence:
        lines.append(Text(view.sentence, style=_STYLES[view.state].replace("green", "yellow")))
    return Panel(
        Group(*lines), title=Text("reludiag watch"), title_align="left", border_style="dim"
    )


def _progress_line(view: LiveView) -> Text:
    parts = [Text(view.state, style=_STYLES[view.state])]
    if view.step is not None:
        parts.append(Text(f"step {view.step:,}"))
    if view.steps_per_second is not None:
        parts.append(Text(f"{_speed(view.steps_per_second)} steps/s"))
    rate = _latest_rate(view.diagnosis)
    if not math.isnan(rate):
        parts.append(Text(f"learning rate {rate:.4g}"))
    if view.silent is not None:
        parts.append(Text(f"snapshot {_duration(view.silent)} ago", style="dim"))
    return Text("  ").join(parts)


def _latest_rate(diagnosis: Diagnosis | None) -> float:
    """The largest in the last window; NaN where none is known."""
    timeline = None if diagnosis is None else diagnosis.timeline
    if timeline is None or timeline.empty:
        return math.nan
    last = timeline["step"] == timeline["step"].iloc[-1]
    return float(timeline.loc[last, "learning_rate"].max())


def _totals(diagnosis: Diagnosis) -> Text:
    units = int(diagnosis.sites["units"].sum())
    text = Text(dead_count(diagnosis), style=totals_style(diagnosis))
    if diagnosis.dead:
        text.append(f" ({share(diagnosis.dead, units)})")
    for verdict in ("rare", "dormant"):
        if count := int(diagnosis.sites[verdict].sum()):
            text.append(f"  {count:,} {verdict}", "yellow")
    if diagnosis.unjudged:
        text.append(f"  {plural(len(diagnosis.unjudged), 'place')} not judged", "yellow")
    if diagnosis.diverged:
        text.append(f"  {int(diagnosis.sites['nonfinite'].sum()):,} nonfinite", "bold magenta")
    return text


def _worst_sites(diagnosis: Diagnosis, most: int, ascii_only: bool) -> RenderableType:
    sites = diagnosis.sites[diagnosis.sites["units"].notna()]
    worst = sites.sort_values(
        ["nonfinite", "dead_fraction", "dead"], ascending=False, kind="stable"
    ).head(most)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True, padding=(0, 1))
    table.add_column("Worst sites", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("Units", justify="right", no_wrap=True)
    sampled = samples_differ(diagnosis)
    if sampled:
        table.add_column("Samples", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=BAR + 1)
    table.add_column("Dead", justify="right", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for row in worst.to_dict("records"):
        counts = {verdict: int(row[verdict]) for verdict in VERDICTS}
        units = sum(counts.values())
        style = "red" if counts["dead"] else "dim"
        table.add_row(
            Text(row["site"]),
            f"{units:,}",
            *([f"{row['samples']:,}"] if sampled else []),
            bar(counts, units, ascii_only) if units else "",
            Text(f"{counts['dead']:,}", style=style),
            Text(share(counts["dead"], units), style=style),
        )
    return Padding(table, (1, 0, 0, 1))


def _speed(steps: float) -> str:
    return f"{steps:,.0f}" if steps >= 10 else f"{steps:.2g}"


def _duration(seconds: float) -> str:
    """`3 s`, `12 min`, `5 h`, `2 days`: rounded for a quick look."""
    for unit, length in (("days", 172_800.0), ("h", 7200.0), ("min", 120.0)):
        if seconds >= length:
            return f"{seconds / {'days': 86_400, 'h': 3600, 'min': 60}[unit]:.0f} {unit}"
    return f"{seconds:.0f} s"

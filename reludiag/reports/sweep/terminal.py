"""The terminal report of a sweep: heat maps of deaths, explained shares, and safe rates."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from reludiag.experiments.analysis.effects import RESPONSES, Effects
from reludiag.experiments.analysis.variance import ALWAYS_SAME
from reludiag.experiments.trial_table import METRIC
from reludiag.reports.console import WIDTH, SanitizedText, plain_text
from reludiag.reports.sweep.summary import (
    SOURCES,
    caveats,
    findings,
    headline,
    interval,
    marks,
    size,
)
from reludiag.reports.wording import number, p_text, rate, share

_RATES_A_TABLE = 7  # as many columns of learning rates as fit beside the names
_MOST_METRICS = 3  # metrics shown; the JSON and the table of runs have all
_NAME = 20  # characters of an initialization in a line
_SAME = 0.005  # shares of dead units that differ by less are shown as one
_TITLES = {
    "born": "Born dead: share of units dead at step 0",
    "new": "New deaths: share of units alive at step 0 that are dead at the end",
}
# Share of dead units from which a cell has this colour: green, yellow, orange, red.
_HEAT = ((0.0, "on #1a7f37"), (0.05, "on #9a6700"), (0.2, "on #bc4c00"), (0.5, "on #cf222e"))


def print_effects(effects: Effects, console: Console) -> None:
    """Print the report on a Rich console."""
    parts: list[RenderableType] = [_head(effects)]
    if len(effects.cells):
        parts += [_map(effects, "new"), _legend(effects)]
        # If it mostly depends on the initialization alone, it is one column of the next table.
        if _born_varies(effects):
            parts.append(_map(effects, "born"))
        parts += [_metric_map(effects, name) for name in effects.metrics[:_MOST_METRICS]]
        parts += [_initializations(effects), _explanations(effects)]
    lines = findings(effects)
    if lines:
        parts.append(_sentences(lines))
    console.print(SanitizedText(*parts))


def effects_text(effects: Effects, encoding: str = "utf-8") -> str:
    """The report as plain text, 80 columns wide, with characters that `encoding` has."""
    return plain_text(lambda console: print_effects(effects, console), encoding)


def _head(effects: Effects) -> RenderableType:
    lines = [Text(size(effects), style="bold"), Text(headline(effects))]
    lines += [Text(note, style="yellow") for note in caveats(effects)]
    return Panel(Group(*lines), title="reludiag", title_align="left", border_style="dim")


def _map(effects: Effects, response: str) -> RenderableType:
    return _grid(effects, response, _TITLES[response], _share, _RATES_A_TABLE)


def _metric_map(effects: Effects, name: str) -> RenderableType:
    title = f"What train returned as {name.removeprefix(METRIC)}: median over runs"
    values = effects.heat_map(name)
    longest = max((len(number(value)) for value in values.to_numpy(float).ravel()), default=0)
    names = max(len("Initialization"), *(min(_NAME, len(str(init))) for init in values.index))
    return _grid(effects, name, title, _metric, (WIDTH - names - 1) // (longest + 4))


def _metric(value: float, mark: str = "") -> Text:
    return Text(number(value) + mark)


def _grid(
    effects: Effects, name: str, title: str, columns: Callable[[float, str], Text], most: int
) -> RenderableType:
    """A column of `cells` by rate and initialization, with a limited number of rates per table."""
    by_place = effects.cells.set_index(["init", "lr"]).to_dict("index")
    heat = effects.heat_map(name)
    parts: list[RenderableType] = [Text(title, style="bold")]
    # Tables of about equal width, where there are several.
    most = -(-len(heat.columns) // -(-len(heat.columns) // most))
    for start in range(0, len(heat.columns), most):
        table = _table()
        table.add_column("Initialization", overflow="fold", max_width=_NAME)
        rates = list(heat.columns[start : start + most])
        for value in rates:
            table.add_column(rate(float(value)), justify="right", no_wrap=True)
        for init, row in heat.iterrows():
            cells = [
                _cell(row[value], by_place[init, value], columns)
                if (init, value) in by_place
                else ""
                for value in rates
            ]
            table.add_row(Text(str(init)), *cells)
        parts.append(Padding(table, (1, 0, 0, 0)))
    return Padding(Group(*parts), (1, 0, 0, 1))


def _born_varies(effects: Effects) -> bool:
    heat = effects.heat_map("born")
    return bool((heat.max(axis=1) - heat.min(axis=1) > _SAME).any())


def _cell(
    value: float, cell: Mapping[Hashable, Any], text_of: Callable[[float, str], Text]
) -> Text:
    if not pd.isna(value):
        return text_of(value, "!" if cell["diverged"] else "")
    if cell["diverged"]:
        return Text("NaN", style="bold magenta")
    return Text("crash" if cell["crashed"] else "?", style="dim")


def _share(part: float, mark: str = "") -> Text:
    if pd.isna(part):
        return Text("?", style="dim")
    colour = [style for least, style in _HEAT if part >= least][-1]
    return Text(share(part, 1) + mark, style=Style.parse(f"white {colour}"))


def _legend(effects: Effects) -> RenderableType:
    parts = marks(effects)
    return Padding(Text(parts, style="dim"), (0, 0, 0, 1)) if parts else Group()


def _explanations(effects: Effects) -> RenderableType:
    table = _table()
    table.add_column("Explained by", no_wrap=True)
    for title in ("Born dead", "New deaths", "Dead at the end"):
        table.add_column(title, justify="right", no_wrap=True)
    for source, name in SOURCES.items():
        shares = [effects.variance_share(response, source) for response in RESPONSES]
        if all(item.share is None for item in shares):
            continue
        cells = [
            ("the same" if item.reason == ALWAYS_SAME else "not known")
            if item.share is None
            else f"{share(item.share, 1)} ({interval(item).removesuffix(' %')})"
            if interval(item)
            else share(item.share, 1)
            for item in shares
        ]
        table.add_row(name.capitalize(), *cells)
    return Padding(table, (1, 0, 0, 1)) if table.row_count else Group()


def _initializations(effects: Effects) -> RenderableType:
    table = _table()
    table.add_column("Initialization", overflow="fold", max_width=_NAME)
    born = None if _born_varies(effects) else effects.heat_map("born").mean(axis=1)
    if born is not None:
        table.add_column("Born dead", justify="right", no_wrap=True)
    for title in ("Rank corr.", "p", "Safe up to", "Unsafe from"):
        table.add_column(title, justify="right", no_wrap=True)
    trends = {trend.init: trend for trend in effects.trends}
    for item in effects.safe:
        trend = trends.get(item.init)
        has_trend = trend is not None and trend.correlation is not None
        table.add_row(
            Text(item.init),
            *([] if born is None else [_share(born[item.init])]),
            f"{trend.correlation:.2f}" if trend is not None and has_trend else "not known",
            p_text(trend.p_value) if trend is not None else "",
            rate(item.highest_safe)
            if item.highest_safe is not None
            else "not known"
            if item.lowest_unsafe is None
            else "none",
            "" if item.lowest_unsafe is None else rate(item.lowest_unsafe),
        )
    if effects.trend.correlation is not None and len(effects.safe) > 1:
        table.add_row(
            "all together",
            *([] if born is None else [""]),
            f"{effects.trend.correlation:.2f}",
            p_text(effects.trend.p_value),
        )
    return Padding(table, (1, 0, 0, 1))


def _sentences(lines: list[str]) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1, style="bold")
    table.add_column()
    for line in lines:
        table.add_row("-", escape(line))
    return Padding(Group(Text("Results", style="bold"), table), (1, 0, 0, 1))


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))

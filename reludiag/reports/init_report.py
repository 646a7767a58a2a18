"""How a model was initialized, for the terminal and as JSON."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reludiag.diagnosis.columns import SCHEMA_VERSION
from reludiag.initialization.examination import InitExamination
from reludiag.initialization.layer_init import InitProblem, LayerInit
from reludiag.reports.console import SanitizedText, plain_text
from reludiag.reports.json_text import finite, records, text_of
from reludiag.reports.wording import plural, share
from reludiag.sites.products import shortened

_MOST_ROWS = 40  # rows of a table; the JSON has all
_ALIKE = 2  # indistinguishable schemes that are named
_LIKEWISE = 4  # layers named with the same problem as the first


def print_init(examination: InitExamination, console: Console) -> None:
    """Print the report on a Rich console."""
    parts: list[RenderableType] = [_head(examination), *_layer_table(examination.layers)]
    if examination.births is not None and len(examination.births):
        parts += _birth_table(examination.births)
    if examination.redraws is not None and len(examination.redraws):
        parts += _scheme_table(examination)
    if examination.inputs is not None and len(examination.inputs):
        parts.append(Padding(_input_lines(examination.inputs), (1, 0, 0, 1)))
    parts.append(_problems(examination))
    console.print(SanitizedText(*parts))


def init_text(examination: InitExamination) -> str:
    """The report as plain text, 80 columns wide."""
    return plain_text(lambda console: print_init(examination, console))


def init_document(examination: InitExamination) -> str:
    """The same as one complete JSON document; unknown and non-finite numbers are null."""
    tables = {
        "births": examination.births,
        "redraws": examination.redraws,
        "inputs": examination.inputs,
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "model": examination.model,
        "samples": examination.samples,
        "notes": list(examination.notes),
        "problems": [finite(asdict(problem)) for problem in examination.problems],
        "layers": [finite({"name": layer.name, **asdict(layer)}) for layer in examination.layers],
        **{name: None if table is None else records(table) for name, table in tables.items()},
    }
    return text_of(content, indent=1)


def _head(examination: InitExamination) -> RenderableType:
    lines = [Text(examination.model, style="bold")]
    births, redraws = examination.births, examination.redraws
    if births is not None:
        dead, units = int(births["born_dead"].sum()), int(births["units"].sum())
        headline = Text(
            f"{dead:,} of {plural(units, 'unit')} born dead ({share(dead, units)})",
            style="bold red" if dead else "bold green",
        )
        headline.append(f" on {plural(examination.samples, 'sample')}", style="not bold default")
        lines.append(headline)
        if redraws is not None and len(redraws):
            low, mean, high = _shares(redraws, "kaiming_normal")
            lines.append(
                Text(
                    f"Drawn again by kaiming_normal: {_percent(mean)} on average "
                    f"({_percent(low)} to {_percent(high)})"
                )
            )
        if int(births["nonfinite"].sum()):
            lines.append(
                Text(
                    f"{int(births['nonfinite'].sum()):,} units are NaN or infinite, so they are "
                    "neither dead nor alive.",
                    style="bold magenta",
                )
            )
    lines += [Text(note, style="yellow") for note in examination.notes]
    return Panel(Group(*lines), title="reludiag init", title_align="left", border_style="dim")


def _layer_table(layers: Sequence[LayerInit]) -> Iterable[RenderableType]:
    if not layers:
        return [Padding(Text("The model has no linear layer and no convolution."), (1, 0, 0, 1))]
    table = _table()
    table.add_column("Layer", overflow="fold", ratio=2, min_width=12)
    table.add_column("Fan in", justify="right", no_wrap=True)
    table.add_column("Weights", overflow="fold", ratio=3)
    table.add_column("Gain", justify="right", no_wrap=True)
    table.add_column("Bias", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for layer in layers[:_MOST_ROWS]:
        kills = any(problem.kills_at_birth for problem in layer.problems)
        table.add_row(
            Text(layer.module or "(model)"),
            f"{layer.fan_in:,}",
            Text(_scheme(layer)),
            "" if layer.gain is None else f"{layer.gain:.3g}",
            Text(_bias(layer)),
            Text("!" if kills else "", style="bold red"),
        )
    return _titled("How each layer was initialized", table, len(layers))


def _scheme(layer: LayerInit) -> str:
    more = len(layer.alike) - _ALIKE
    if layer.scheme == "unknown" or more <= 0:
        return layer.name
    return f"{' or '.join((layer.scheme, *layer.alike[:_ALIKE]))} or {more} more"


def _bias(layer: LayerInit) -> str:
    if layer.bias in {"none", "zero", "pytorch", "nonfinite"} or layer.bias_mean is None:
        return layer.bias
    return f"{layer.bias_mean:.3g}" + ("" if layer.bias == "constant" else " mean")


def _birth_table(births: pd.DataFrame) -> Iterable[RenderableType]:
    chance = bool(births["expected"].notna().any())
    table = _table()
    table.add_column("Site", overflow="fold", ratio=2, min_width=12)
    table.add_column("Fed by", overflow="fold", ratio=2)
    for title in ("Units", "Born dead", *(("By chance", "biased") if chance else ()), "Kaiming"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in births.head(_MOST_ROWS).to_dict("records"):
        dead, units = int(row["born_dead"]), int(row["units"])
        shares = (row["expected"], row["with_bias"]) if chance else ()
        table.add_row(
            Text(row["site"]),
            Text(shortened(row["layer"]) if isinstance(row["layer"], str) else ""),
            f"{units:,}",
            Text(f"{dead:,}  {share(dead, units):>6}", style="red" if dead else "dim"),
            *map(_percent, shares),
            _percent(row["redrawn"]),
        )
    yield from _titled("Born dead, by site", table, len(births))
    legend = "Kaiming: mean over draws of this model by kaiming_normal."
    if chance:
        legend = (
            "By chance: the share that is dead with zero biases and symmetric weights of any "
            "scale, at the cosine of these inputs (within 3 points; only if a sample is one "
            "vector and the rectifier directly follows the layer). Biased: the same with the "
            f"model's biases; less exact if they are far from 0. {legend}"
        )
    yield Padding(Text(legend, style="dim"), (0, 0, 0, 1))


def _scheme_table(examination: InitExamination) -> Iterable[RenderableType]:
    assert examination.redraws is not None
    redraws = examination.redraws
    table = _table()
    table.add_column("Scheme", overflow="fold", ratio=1)
    for title in ("Born dead", "least", "most", "Nonfinite"):
        table.add_column(title, justify="right", no_wrap=True)
    births = examination.births
    if births is not None:
        as_it_is = share(int(births["born_dead"].sum()), int(births["units"].sum()))
        table.add_row("as built", as_it_is, "", "", f"{int(births['nonfinite'].sum()):,}")
    for scheme, draws in redraws.groupby("scheme", sort=False):
        low, mean, high = _shares(redraws, str(scheme))
        cells = map(_percent, (mean, low, high))
        table.add_row(str(scheme), *cells, f"{int(draws['nonfinite'].max()):,}")
    seeds = redraws["seed"].nunique()
    title = f"The same model drawn again by other schemes, {plural(seeds, 'seed')} each"
    return _titled(title, table, 0)


def _shares(redraws: pd.DataFrame, scheme: str) -> tuple[float, float, float]:
    """Smallest, mean and largest share of born-dead units over the seeds."""
    draws = redraws[redraws["scheme"] == scheme]
    shares = np.asarray(draws["born_dead"] / draws["units"], dtype=np.float64)
    return float(shares.min()), float(shares.mean()), float(shares.max())


def _input_lines(inputs: pd.DataFrame) -> RenderableType:
    lines = [
        Text(
            f"Input of {row['layer'] or 'the model'}: its mean is {row['gamma']:.3g} times as "
            "long as its standard deviation (gamma)"
        )
        for row in inputs.head(_MOST_ROWS).to_dict("records")
    ]
    return Group(*lines)


def _problems(examination: InitExamination) -> RenderableType:
    """One problem of each kind in full, those that kill units first, and the other layers that have
    it.
    """
    problem_list: list[tuple[str, InitProblem]] = [
        ("", problem) for problem in examination.problems
    ]
    problem_list += [
        (layer.module, problem) for layer in examination.layers for problem in layer.problems
    ]
    by_kind: dict[tuple[bool, str], list[tuple[str, InitProblem]]] = {}
    for module, problem in problem_list:
        kind = (not problem.kills_at_birth, problem.kind)
        by_kind.setdefault(kind, []).append((module, problem))
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1)
    table.add_column()
    for (spares, _), problems in sorted(by_kind.items(), key=lambda item: item[0][0]):
        _, problem = problems[0]
        mark = Text("-") if spares else Text("!", style="bold red")
        table.add_row(mark, Text(_sentence(problem.sentence)))
        table.add_row("", Text(_sentence(problem.advice), style="green"))
        others = [module for module, _ in problems[1:] if module]
        if others:
            more = len(others) - _LIKEWISE
            named = ", ".join(others[:_LIKEWISE]) + (f" and {more:,} more" if more > 0 else "")
            table.add_row("", Text(f"The same applies to {named}.", style="dim"))
    if not problem_list:
        table.add_row("-", "No problem was found.")
    return Padding(Group(Text("What is wrong with it", style="bold"), table), (1, 0, 0, 1))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _percent(value: float) -> str:
    if math.isnan(value) or value == 0:
        return "" if math.isnan(value) else "0 %"
    return f"{100 * value:.1f} %" if value >= 0.0005 else "<0.1 %"


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True, padding=(0, 1))


def _titled(title: str, table: Table, rows: int) -> Iterable[RenderableType]:
    yield Padding(Text(title, style="bold"), (1, 0, 1, 1))
    yield Padding(table, (0, 0, 0, 1))
    if rows > _MOST_ROWS:
        more = f"... and {rows - _MOST_ROWS:,} more: --json lists all."
        yield Padding(Text(more, style="dim"), (0, 0, 0, 1))

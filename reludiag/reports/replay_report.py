"""The report of a replay: its answer and its runs."""

import math
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reludiag.diagnosis.columns import SCHEMA_VERSION
from reludiag.experiments.analysis.counterfactual import (
    BOTH,
    FACTUAL,
    INIT,
    INPUT,
    RATE,
    TRAVEL,
    Arm,
    single_changes,
)
from reludiag.experiments.replay import Replay
from reludiag.reports.console import SanitizedText, plain_text
from reludiag.reports.json_text import records, text_of
from reludiag.reports.wording import plural, share


def print_replay(replay: Replay, console: Console) -> None:
    """Print the report on a Rich console."""
    lines = [Text(replay.sentence, style="bold"), Text(replay.advice)]
    lines += [Text(note, style="yellow") for note in replay.notes]
    title = f"reludiag replay {replay.train}"
    panel = Panel(Group(*lines), title=escape(title), title_align="left", border_style="dim")
    seeds = replay.answer.seeds
    agree = f"{replay.answer.agreeing} of {plural(seeds, 'seed')}" if seeds > 1 else ""
    foot = Padding(Text(_foot(agree), style="dim"), (0, 1))
    console.print(SanitizedText(panel, _table(replay), foot))


def replay_text(replay: Replay, encoding: str = "utf-8") -> str:
    """The report as plain text, 80 columns wide, with characters that `encoding` has."""
    return plain_text(lambda console: print_replay(replay, console), encoding)


def replay_document(replay: Replay) -> str:
    """The JSON text; unknown values are null."""
    arms = [asdict(arm) for arm in replay.arms]
    for arm in arms:
        arm["metrics"] = {k: v if math.isfinite(v) else None for k, v in arm["metrics"].items()}
    content = {
        "schema_version": SCHEMA_VERSION,
        "train": replay.train,
        "lr": replay.lr,
        "lr_scale": replay.lr_scale,
        "init": replay.init,
        "answer": asdict(replay.answer),
        "sentence": replay.sentence,
        "advice": replay.advice,
        "notes": list(replay.notes),
        "suspects": list(replay.suspects),
        "arms": arms,
        "trials": records(replay.trials),
    }
    return text_of(content)


def _table(replay: Replay) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Run", no_wrap=True)
    for title in ("Runs", "Born dead", "New", "Dead", "Prevented"):
        table.add_column(title, justify="right", no_wrap=True)
    metric = next(iter(replay.arms[0].metrics), None)
    if metric is not None:
        table.add_column(metric.replace("_", " ").capitalize(), justify="right", max_width=14)
    for arm in replay.arms:
        cells = [_runs(arm), *(_share(value) for value in (arm.born, arm.new, arm.dead))]
        cells.append("" if arm.name == FACTUAL else _share(arm.prevented))
        if metric is not None:
            value = arm.metrics.get(metric, math.nan)
            cells.append("?" if math.isnan(value) else f"{value:.3g}")
        table.add_row(_title(arm, replay), *cells)
    return Padding(table, (1, 0, 1, 1))


def _title(arm: Arm, replay: Replay) -> str:
    scale = replay.lr_scale or 1.0
    titles = {
        FACTUAL: "unchanged",
        RATE: f"lr x {scale:g}",
        INIT: f"init {replay.init}",
        INPUT: "input centred",
        BOTH: "both" if len(single_changes(each.name for each in replay.arms)) == 2 else "all",
        TRAVEL: f"and steps x {1 / scale:.3g}",
    }
    return titles.get(arm.name, arm.name)


def _runs(arm: Arm) -> str:
    lost = [f"{n} {what}" for n, what in ((arm.diverged, "NaN"), (arm.crashed, "crash")) if n]
    return f"{arm.runs}" + (f" ({', '.join(lost)})" if lost else "")


def _share(value: float | None) -> str:
    if value is None:
        return "?"
    return f"-{share(-value, 1)}" if value < 0 else share(value, 1)


def _foot(agree: str) -> str:
    alike = "All rows use the same seeds and the same order of data."
    return f"{alike} Each seed alone: {agree} agree." if agree else alike

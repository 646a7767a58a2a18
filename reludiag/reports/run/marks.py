"""What died between the user's own marks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.reports.wording import plural

MOST_ROWS = 12
BEFORE = "before the first mark"


@dataclass(frozen=True)
class Stretch:
    """From one mark to the next, or over several if there are many."""

    name: str
    first: int
    last: int
    dead: int
    """At its end."""
    died: int
    revived: int

    @property
    def steps(self) -> str:
        """`10-20`: after step 10, up to 20."""
        return f"{self.first}-{self.last}"


def stretches(diagnosis: Diagnosis, most: int = MOST_ROWS) -> list[Stretch]:
    """The stretches between marks; more than `most` are joined, as many in each."""
    rows = diagnosis.marks.to_dict("records")
    width = max(1, math.ceil(len(rows) / most))
    joined = []
    for start in range(0, len(rows), width):
        part = rows[start : start + width]
        names = [BEFORE if pd.isna(row["mark"]) else str(row["mark"]) for row in part]
        joined.append(
            Stretch(
                names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}",
                int(part[0]["step"]),
                int(part[-1]["until"]),
                int(part[-1]["dead"]),
                sum(int(row["died"]) for row in part),
                sum(int(row["revived"]) for row in part),
            )
        )
    return joined


def growth(diagnosis: Diagnosis) -> str:
    """How the number of dead units grew over all marks, in a sentence; empty without marks."""
    marks, timeline = diagnosis.marks, diagnosis.timeline
    if marks.empty or timeline is None:
        return ""
    start = int(timeline.loc[timeline["step"] == timeline["step"].min(), "dead"].sum())
    end, count = int(marks["dead"].iloc[-1]), int(marks["mark"].notna().sum())
    sentence = f"Over {plural(count, 'mark')}, dead units went from {start:,} to {end:,}"
    worst = max(marks.to_dict("records"), key=lambda row: int(row["died"]))
    if not worst["died"]:
        return f"{sentence}."
    name = BEFORE if pd.isna(worst["mark"]) else f"after '{worst['mark']}'"
    return f"{sentence}; most died {name}: {worst['died']:,} in steps {worst['step']}-" + (
        f"{worst['until']}."
    )


def mark_section(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    """The table of the stretches between marks; nothing without marks."""
    rows = stretches(diagnosis)
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True, padding=(0, 1))
    table.add_column("From mark", overflow="fold", ratio=1)
    for title in ("Steps", "Dead", "Died", "Revived"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row.name), row.steps, f"{row.dead:,}", f"{row.died:,}", f"{row.revived:,}"
        )
    yield Group(
        Padding(Text("Between marks", style="bold"), (1, 0, 1, 1)), Padding(table, (0, 0, 0, 1))
    )

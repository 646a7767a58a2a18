"""Markdown: the summary that a CI service shows next to a run."""

import math
import re
from collections.abc import Sequence
from typing import IO

import pandas as pd

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.diagnosis.gate import TO_ALLOW, Check, exceeded, not_judged
from reludiag.measure.unjudged import label, unjudged_sites
from reludiag.measure.verdicts import LOST, VERDICTS
from reludiag.printable import printable
from reludiag.reports.run.first_lines import first_lines
from reludiag.reports.run.formats import ReportOptions
from reludiag.reports.run.marks import growth, stretches
from reludiag.reports.run.metrics import MOST_SHOWN, left_out, metric_cells
from reludiag.reports.run.summary import (
    dead_count,
    instruction,
    life_windows,
    next_steps,
    own_cause,
    samples_differ,
)
from reludiag.reports.wording import plural, share

_MOST_SITES = 100  # GitHub cuts a summary off at 1 MiB, and nobody reads that far
_MOST_UNITS = 50  # named per site

_PLAIN = re.compile(r"[A-Za-z0-9_./:@#~-]+")
_SPECIAL = re.compile(r"[\\`*_\[\]<>|~&!$#]")


def write_markdown(diagnosis: Diagnosis, stream: IO[str], choices: ReportOptions) -> None:
    """The summary, with what the gate says."""
    stream.write(markdown(diagnosis, choices.checks))


def markdown(diagnosis: Diagnosis, checks: Sequence[Check]) -> str:
    """The summary as GitHub's Markdown; `checks` are the gate's results for this diagnosis."""
    parts = [
        _headline(diagnosis, checks),
        _first_lines(diagnosis),
        _site_table(diagnosis, checks),
        _life_table(diagnosis),
        _mark_table(diagnosis),
        _metric_table(diagnosis),
        _why(diagnosis),
        _structure(diagnosis),
        "\n".join(f"- {_text(line)}" for line in next_steps(diagnosis)),
        _dead_units(diagnosis),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(diagnosis: Diagnosis, checks: Sequence[Check]) -> str:
    head, sites = diagnosis.head, diagnosis.sites
    units = int(sites["units"].sum())
    counts = f"**{dead_count(diagnosis)}**"
    counts += f" ({share(diagnosis.dead, units)})" if diagnosis.dead else ""
    others = [
        f"{int(sites[verdict].sum()):,} {verdict.replace('_', ' ')}"
        for verdict in VERDICTS
        if verdict != "dead" and int(sites[verdict].sum()) and diagnosis.watched
    ]
    if diagnosis.unjudged:
        others.append(f"**{plural(len(diagnosis.unjudged), 'place')} not judged**")
    lines = [
        f"### reludiag: {_text(head.model)}",
        ", ".join([counts, *others]),
        f"{_name(head.subject)}: {_text(head.evidence)}.",
    ]
    failed = exceeded(checks)
    if failed:
        lines.append(f"**Over the limit:** {_text(failed[0].sentence)}{_more(failed)}.")
    unknown = not_judged(checks)
    if unknown:
        places = f"{plural(len(unknown), 'place')} under a limit, for the reasons below."
        lines.append(f"**Not judged:** {places} {_text(TO_ALLOW)}")
    if diagnosis.diverged:
        lines.append("**Diverged:** units became NaN or infinite; they are neither dead nor alive.")
    return "\n\n".join([*lines, *(f"> {_text(note)}" for note in head.notes)])


def _first_lines(diagnosis: Diagnosis) -> str:
    """The cause and the one thing to do; paragraphs of the list below have all of it."""
    return "\n".join(
        f"- **{line.label}:** {_name(line.text) if line.is_command else _text(line.text)}"
        for line in first_lines(diagnosis)
    )


def _more(failed: Sequence[Check]) -> str:
    return f", and {plural(len(failed) - 1, 'limit')} more" if len(failed) > 1 else ""


def _site_table(diagnosis: Diagnosis, checks: Sequence[Check]) -> str:
    sites = diagnosis.sites
    places, _ = unjudged_sites([str(name) for name in sites["site"]], diagnosis.unjudged)
    lost = sites[LOST].sum(axis=1) + sites["site"].isin(list(places))
    worst = lost.sort_values(ascending=False, kind="stable").index[:_MOST_SITES]
    checks_by_site = {check.site: check for check in checks}
    gated = any(check.limit is not None for check in checks)
    sampled = samples_differ(diagnosis)
    titles = ["Site", "Units", *(["Samples"] if sampled else []), "Dead", "", "Nonfinite"]
    titles += (["Limit"] if gated else []) + ([""] if gated or places else [])
    lines = [_row(titles), "|:--|" + "--:|" * (len(titles) - 1)]
    for row in sites.loc[sorted(worst)].to_dict("records"):
        check, place = checks_by_site.get(str(row["site"])), places.get(str(row["site"]))
        why = "" if place is None else label(place.reason)
        cells = [_name(str(row["site"]))]
        if pd.isna(row["units"]):
            cells += [why or "never called", *([""] * (3 + sampled))]
            why = ""
        else:
            cells += [f"{row['units']:,}", *([f"{row['samples']:,}"] if sampled else [])]
            cells += [f"{row['dead']:,}", share(row["dead"], row["units"])]
            cells.append(f"{row['nonfinite']:,}")
        if gated:
            cells.append("" if check is None or check.limit is None else check.limit.text)
        if gated or places:
            marks = ["**over**"] if check is not None and check.exceeded else []
            if check is not None and check.fails_unjudged:
                why = f"**not judged:** {why}" if why else "**not judged**"
            cells.append(", ".join([*marks, *([why] if why else [])]))
        lines.append(_row(cells))
    left_out = len(sites) - len(worst)
    if left_out:
        lines += ["", f"{plural(left_out, 'site')} with fewer dead units not shown."]
    return "\n".join(lines)


def _life_table(diagnosis: Diagnosis) -> str:
    if diagnosis.timeline is None or not len(diagnosis.timeline):
        return ""
    windows = life_windows(diagnosis.timeline)
    diverged = any(window.nonfinite for window in windows)
    titles = ["Steps", "Max. learning rate", "Dead", "Died", "Revived"]
    titles += ["Nonfinite"] if diverged else []
    lines = [_row(titles), "|" + "--:|" * len(titles)]
    for window in windows:
        rate = "" if math.isnan(window.learning_rate) else f"{window.learning_rate:.4g}"
        counts = [window.dead, window.died, window.revived]
        counts += [window.nonfinite] if diverged else []
        lines.append(_row([window.steps, rate, *(f"{count:,}" for count in counts)]))
    return "\n".join(lines)


def _mark_table(diagnosis: Diagnosis) -> str:
    """What died between the user's own marks."""
    titles = ["From mark", "Steps", "Dead", "Died", "Revived"]
    lines = [_row(titles), "|:--|" + "--:|" * (len(titles) - 1)]
    for row in (rows := stretches(diagnosis)):
        counts = (f"{count:,}" for count in (row.dead, row.died, row.revived))
        lines.append(_row([_name(row.name), row.steps, *counts]))
    return "\n".join([*lines, "", _text(growth(diagnosis))]) if rows else ""


def _metric_table(diagnosis: Diagnosis) -> str:
    """The means of what was logged, in the same windows."""
    if diagnosis.metrics.empty or diagnosis.timeline is None or diagnosis.timeline.empty:
        return ""
    windows = life_windows(diagnosis.timeline)
    cells = metric_cells(diagnosis, windows)
    names = list(cells)[:MOST_SHOWN]
    titles = ["Steps", *(f"Mean {_name(name)}" for name in names)]
    lines = [_row(titles), "|" + "--:|" * len(titles)]
    lines += [
        _row([window.steps, *(cells[name][at] for name in names)])
        for at, window in enumerate(windows)
    ]
    note = left_out(list(cells))
    return "\n".join([*lines, *(["", note] if note else [])])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _why(diagnosis: Diagnosis) -> str:
    """The cause of the run as a whole, and what to do."""
    cause = own_cause(diagnosis.causes)
    return "" if cause is None else f"**Why:** {_text(f'{cause.sentence} {instruction(cause)}')}"


def _structure(diagnosis: Diagnosis) -> str:
    """What in the build of the network keeps units from training."""
    if not diagnosis.structure:
        return ""
    lines = [f"- {_text(f'{note.sentence} {instruction(note)}')}" for note in diagnosis.structure]
    return "\n".join(["**Structure:**", "", *lines])


def _dead_units(diagnosis: Diagnosis) -> str:
    dead = diagnosis.units[diagnosis.units["verdict"] == "dead"]
    lines = []
    for site, rows in list(dead.groupby("site", sort=False))[:_MOST_SITES]:
        more = len(rows) - _MOST_UNITS
        names = ", ".join(str(unit) for unit in rows["unit"].head(_MOST_UNITS))
        lines.append(f"- {_name(str(site))}: {names}" + (f" and {more:,} more" if more > 0 else ""))
    if not lines:
        return ""
    return "\n".join(["<details><summary>Dead units</summary>", "", *lines, "", "</details>"])


def _name(name: str) -> str:
    """A name as code; characters that could end the code or the table cell are escaped."""
    if _PLAIN.fullmatch(name):
        return f"`{name}`"
    return "<code>" + re.sub(r"[^A-Za-z0-9 .]", lambda m: f"&#{ord(m[0])};", name) + "</code>"


def _text(text: str) -> str:
    """A sentence in which names have no effect: no emphasis, link, mention or new line."""
    text = _SPECIAL.sub(r"\\\g<0>", printable(" ".join(text.split())))
    # GitHub turns these into links after unescaping; a comment in between prevents that.
    return re.sub(r"(?<=@)(?=\w)|(?<=:)(?=//)|(?<=www)(?=\.)", "<!-- -->", text)

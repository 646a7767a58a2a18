"""The content of the page as plain values; the template only lays it out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reludiag.causes.all_kinds import kind_named
from reludiag.causes.cause import Cause
from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.measure.unjudged import label, unjudged_sites
from reludiag.measure.verdicts import VERDICTS
from reludiag.reports.html.heat import heat
from reludiag.reports.run.first_lines import is_usual
from reludiag.reports.run.summary import (
    LifeWindow,
    instruction,
    life_windows,
    next_steps,
    no_dead_sentence,
    own_cause,
    thick_of_deaths,
    unjudged_count,
)
from reludiag.reports.wording import plural, share
from reludiag.sites.products import shortened

MOST_TILES_NAMED = 24
"""Number of sites above which the map has squares without names."""
_MOSTLY = 0.05  # up to this share of dead units a network is mostly healthy


@dataclass(frozen=True)
class Answer:
    """Whether the network is healthy: a word and a sentence."""

    tone: str
    """`good`, `fair`, `bad` or `unknown`: the colour."""
    word: str
    sentence: str


@dataclass(frozen=True)
class Part:
    """A part of the bar of verdicts."""

    verdict: str
    name: str
    count: int
    text: str


@dataclass(frozen=True)
class SiteRow:
    """One site in the map and in the table."""

    index: int
    """Place in forward order, from 1."""
    name: str
    label: str
    """The end of its name, which distinguishes it from its neighbours."""
    heat: str
    """`0` none dead, `1` to `4` some, `5` all; `nan` not finite, `none` not judged."""
    text: str
    """The share of dead units, or why it is not known."""
    note: str
    """Why the site was not judged; empty if it was."""
    activation: str
    producer: str
    units: int | None
    samples: int
    dead: int
    share: float
    others: str
    firing: str
    firing_rate: float
    born: int | None
    died: int | None
    revived: int | None

    @property
    def tooltip(self) -> str:
        """All of this in one line."""
        if self.units is None:
            return f"{self.name}: {self.note or 'never called'}"
        return (
            f"{self.name}: {self.dead:,} of {plural(self.units, 'unit')} dead"
            + (f" ({self.text})" if self.dead else "")
            + f" on {plural(self.samples, 'sample')}"
            + (f"; {self.note}" if self.note else "")
        )


@dataclass(frozen=True)
class EvidenceRow:
    """A piece of evidence."""

    what: str
    value: str
    meaning: str


@dataclass(frozen=True)
class CausePanel:
    """A cause as the page shows it."""

    site: str
    name: str
    sentence: str
    certainty: str
    """Whether this run alone proves the cause, and how many of the dead units it explains."""
    evidence: tuple[EvidenceRow, ...]
    instruction: str
    confirm: str


def answer(diagnosis: Diagnosis) -> Answer:
    """The answer to the first question."""
    units, dead = int(diagnosis.sites["units"].sum()), diagnosis.dead
    lost = int(diagnosis.sites["nonfinite"].sum())
    counted = f"{dead:,} of {plural(units, 'unit')} {'is' if dead == 1 else 'are'} dead"
    if diagnosis.diverged:
        verb = "is" if lost == 1 else "are"
        return Answer(
            "bad",
            "No: it diverged.",
            f"{lost:,} of {plural(units, 'unit')} {verb} not finite"
            + (f"; {dead:,} more {'is' if dead == 1 else 'are'} dead." if dead else "."),
        )
    if not diagnosis.watched:
        return Answer("unknown", "Not known.", "Nothing was watched.")
    if diagnosis.head.samples == 0 or not (units or diagnosis.unjudged):
        return Answer("unknown", "Not known.", "No unit has been observed yet.")
    saturated = int(diagnosis.sites["saturated"].sum())
    if not dead and saturated:
        is_much = saturated > _MOSTLY * units
        return Answer(
            "bad" if is_much else "fair",
            "No." if is_much else "Mostly.",
            f"{saturated:,} of {plural(units, 'unit')} {'is' if saturated == 1 else 'are'} "
            f"saturated: none is dead, but {'it passes' if saturated == 1 else 'they pass'} no "
            "gradient.",
        )
    if not dead and not diagnosis.unjudged:
        return Answer("good", "Yes.", f"None of {plural(units, 'unit')} is dead.")
    if not dead:
        known = diagnosis.judged_units
        sentence = no_dead_sentence(diagnosis)
        return Answer("unknown", "As far as is known." if known else "Not known.", sentence)
    silent = (diagnosis.sites["dead"] == diagnosis.sites["units"]).fillna(False).any()
    mostly = diagnosis.dead_fraction <= _MOSTLY and not silent
    sentence = f"{counted} ({share(dead, units)})."
    if diagnosis.unjudged:
        sentence += f" {unjudged_count(diagnosis)} not judged."
    if is_usual(diagnosis) and not silent:
        return Answer("fair", "Some units are dead, as is usual in such a network.", sentence)
    if own_cause(diagnosis.causes) is not None:  # then it is known to be unusual
        return Answer("bad", "No.", sentence)
    return Answer("fair", "Mostly.", sentence) if mostly else Answer("bad", "No.", sentence)


def bar(diagnosis: Diagnosis) -> list[Part]:
    """The units by verdict, the worst first; none of a run that was not watched."""
    if not diagnosis.watched:
        return []
    units = int(diagnosis.sites["units"].sum())
    counts = {verdict: int(diagnosis.sites[verdict].sum()) for verdict in VERDICTS}
    return [
        Part(verdict, verdict.replace("_", " "), count, share(count, units))
        for verdict, count in counts.items()
        if count
    ]


def site_rows(diagnosis: Diagnosis) -> list[SiteRow]:
    """A row for each site, in forward order."""
    ledger = "died" in diagnosis.sites
    names = [str(name) for name in diagnosis.sites["site"]]
    labels = _labels(names)
    places, _ = unjudged_sites(names, diagnosis.unjudged)
    rows = []
    for index, row in enumerate(diagnosis.sites.to_dict("records")):
        units = None if pd.isna(row["units"]) else int(row["units"])
        lost = bool(units) and row["nonfinite"] == units
        place = places.get(names[index])
        note = "" if place is None else label(place.reason)
        others = [note] if note and units is not None else []
        others += [
            f"{int(row[v]):,} {v.replace('_', ' ')}"
            for v in VERDICTS
            if v not in ("dead", "alive") and row[v]
        ]
        if (never := _number(row["never_arrived"])) and never:
            others.append(f"{never:,} of the dead fire and never arrive")
        rows.append(
            SiteRow(
                index=index + 1,
                name=names[index],
                label=labels[index],
                heat="none" if note and not row["dead"] else _site_heat(row, units),
                text="not finite" if lost else _share_text(row, units, note),
                note=note,
                activation=str(row["activation"]),
                producer=shortened(_text(row["producer"])),
                units=units,
                samples=int(row["samples"]),
                dead=int(row["dead"]),
                share=int(row["dead"]) / units if units else -1.0,
                others=", ".join(others),
                firing="" if lost else _share_of_one(row["mean_firing_rate"]),
                firing_rate=-1.0
                if lost or pd.isna(row["mean_firing_rate"])
                else row["mean_firing_rate"],
                born=_number(row["born_dead"]) if ledger else None,
                died=_number(row["died"]) if ledger else None,
                revived=_number(row["revived"]) if ledger else None,
            )
        )
    return rows


def death_sentence(diagnosis: Diagnosis) -> str:
    """When units died, in a sentence; empty without a timeline."""
    if diagnosis.timeline is None or diagnosis.timeline.empty:
        return ""
    most = thick_of_deaths(diagnosis.timeline)
    born = int(diagnosis.sites["born_dead"].sum())
    at_birth = (
        f"{plural(born, 'unit')} {'was' if born == 1 else 'were'} dead at step 0." if born else ""
    )
    if most is None:
        return at_birth or "No unit died in this run."
    total = int(diagnosis.timeline["died"].sum())
    has_rate = most.learning_rate == most.learning_rate
    at = f", at a learning rate of {most.learning_rate:.4g}" if has_rate else ""
    deaths = f"{most.died:,} of {plural(total, 'death')} came in steps {most.steps}{at}."
    return f"{at_birth} {deaths}".strip()


def windows(diagnosis: Diagnosis) -> list[LifeWindow]:
    """The timeline in a few rows."""
    timeline = diagnosis.timeline
    return [] if timeline is None or timeline.empty else life_windows(timeline)


def cause_panels(diagnosis: Diagnosis) -> list[CausePanel]:
    """The causes: that of the run first."""
    return [
        CausePanel(
            site=cause.site or "",
            name=kind_named(cause.kind).badge or cause.kind.replace("_", " "),
            sentence=cause.sentence,
            certainty=_certainty(cause),
            evidence=tuple(
                EvidenceRow(item.what, _value(item.value), item.meaning) for item in cause.evidence
            ),
            instruction=instruction(cause),
            confirm=cause.confirm,
        )
        for cause in diagnosis.causes
    ]


def _certainty(cause: Cause) -> str:
    kind = kind_named(cause.kind)
    if cause.identifiable:
        certainty = "This run alone proves it."
    elif kind.claim == "unknown":
        return "This run alone does not show the cause."
    else:
        certainty = "This is the likeliest cause; this run alone cannot prove it."
    if kind.claim == "nothing" or kind.share_of != "deaths":
        return certainty
    return f"{certainty} It explains {share(cause.share, 1)} of the dead units."


def advice(diagnosis: Diagnosis, causes: Sequence[CausePanel]) -> list[str]:
    """What to do and what to look at next, the most serious first."""
    cures = [cause.instruction for cause in causes if cause.instruction and not cause.site]
    looks = [line for line in next_steps(diagnosis) if not line.startswith("Use --csv FILE")]
    return list(dict.fromkeys([*cures, *looks]))


def _site_heat(row: dict[Any, Any], units: int | None) -> str:
    if not units:
        return "none"
    return "nan" if row["nonfinite"] else heat(row["dead"] / units)


def _share_text(row: dict[Any, Any], units: int | None, note: str) -> str:
    if not units or (note and not row["dead"]):
        return note
    return share(row["dead"], units)


def _share_of_one(value: Any) -> str:
    return "" if pd.isna(value) else share(value, 1)


def _labels(names: Sequence[str]) -> list[str]:
    """The last part of each name, or enough parts to distinguish it; never only a number."""
    labels = [_end(name, 2 if _end(name, 1)[:1].isdigit() else 1) for name in names]
    for parts in (2, 3):
        labels = [
            _end(name, parts) if labels.count(label) > 1 else label
            for name, label in zip(names, labels, strict=True)
        ]
    return [
        name if labels.count(label) > 1 else label
        for name, label in zip(names, labels, strict=True)
    ]


def _end(name: str, parts: int) -> str:
    return ".".join(name.split(".")[-parts:])


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _number(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _value(value: float | int | str) -> str:
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

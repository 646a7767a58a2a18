"""The first lines of every report: the likeliest cause, the one thing to do, how to confirm it."""

import re
from dataclasses import dataclass

from reludiag.causes.all_kinds import kind_named
from reludiag.causes.cause import Cause
from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.reports.run.summary import instruction, next_steps, own_cause

_LONGEST = 140
"""Characters of a line: two lines of a terminal of 80 columns, beside the label."""

_CLAUSE = re.compile(r"[;.:] ")


@dataclass(frozen=True)
class FirstLine:
    """One of these lines."""

    label: str
    """`Why`, `Do`, `Confirm`, or `Next` where nothing is known of the cause."""
    text: str
    is_command: bool = False


def first_lines(diagnosis: Diagnosis) -> list[FirstLine]:
    """At most three lines; without causes what to look at first, and nothing if no unit died."""
    cause = own_cause(diagnosis.causes)
    if cause is not None:
        lines = [FirstLine("Why", _why(cause))]
        if to_do := _to_do(cause):
            lines.append(FirstLine("Do", to_do))
        if cause.confirm:
            lines.append(FirstLine("Confirm", cause.confirm, is_command=True))
        return lines
    if diagnosis.dead or diagnosis.diverged:
        return [FirstLine("Next", _brief(line)) for line in next_steps(diagnosis)[:1]]
    return []


def is_usual(diagnosis: Diagnosis) -> bool:
    """Whether units are dead, and not more than in a healthy run, as far as the run tells."""
    cause = own_cause(diagnosis.causes)
    return bool(diagnosis.dead) and cause is not None and kind_named(cause.kind).claim == "nothing"


def certainty(cause: Cause) -> str:
    """How sure the run is of its cause, in brackets behind it; empty where it names none."""
    if kind_named(cause.kind).claim != "cause":
        return ""
    if cause.identifiable:
        return "this run alone proves it"
    return "likely; this run alone cannot prove it"


def _why(cause: Cause) -> str:
    kind = kind_named(cause.kind)
    clause = _CLAUSE.split(cause.sentence)[0].rstrip(".")
    if kind.claim == "nothing":
        return _brief(cause.sentence)
    if kind.claim == "unknown":
        return _brief(f"not known. {clause}.")
    title = f"{kind.title} ({certainty(cause)})."
    whole = f"{title} {clause}."
    return whole if len(whole) <= _LONGEST else title


def _to_do(cause: Cause) -> str:
    """The first change; the whole advice where it is made of no changes."""
    if not cause.changes:
        return _brief(instruction(cause))
    sentence = cause.changes[0].sentence
    return _brief(f"{sentence[:1].upper()}{sentence[1:]}.")


def _brief(text: str) -> str:
    """At most two lines: whole clauses of it where these fit, else as many words as fit."""
    if len(text) <= _LONGEST:
        return text
    ends = [match.start() for match in _CLAUSE.finditer(text) if match.start() < _LONGEST]
    if ends:
        return f"{text[: ends[-1]]}."
    end = text.rfind(" ", 0, _LONGEST - 3)
    return f"{text[: end if end > 0 else _LONGEST - 3].rstrip()} ..."

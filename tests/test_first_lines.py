"""The first lines of every report, and the facts behind them."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import reludiag
from reludiag.causes.cause import Cause, Change
from reludiag.diagnosis import from_recording
from reludiag.recording import RecordedRun
from reludiag.recording.records import Mark
from reludiag.reports.html.content import answer
from reludiag.reports.html.page import fragment, page
from reludiag.reports.run.first_lines import first_lines
from reludiag.reports.run.markdown import markdown
from reludiag.reports.run.terminal import terminal_text
from tests import planted_runs
from tests.planted_runs import NEVER, SAMPLES, planted_run

CAUSE = Cause(
    "learning_rate", None, 1.0, False, (), "Units died in training; it was high.", "lower it",
    "reludiag replay TRAIN --lr-scale 0.3",
    (Change("lr", "lower the rate of group 0 from 0.1 to 0.03", ("0/0",), 0.1, 0.03),),
)  # fmt: skip
ALIVE, DEAD = (NEVER, NEVER), (1, NEVER)


def _texts(diagnosis: reludiag.Diagnosis) -> list[str]:
    return [
        terminal_text(diagnosis),
        markdown(diagnosis, ()),
        page(diagnosis),
        fragment(diagnosis),
    ]


def test_every_report_begins_with_the_cause_what_to_do_and_the_command() -> None:
    diagnosis = dataclasses.replace(planted_run({"a": [DEAD, ALIVE]}, 3), causes=(CAUSE,))
    for text in _texts(diagnosis):
        start = text.index("Why", text.index("dead"))
        places = [
            text.index(words, start)
            for words in ("cannot prove it", "Lower the rate of group 0", "--lr", "scale 0.3")
            if words in text
        ]
        assert len(places) >= 3 and places == sorted(places)
    lines = terminal_text(diagnosis).splitlines()
    assert max(at for at, line in enumerate(lines[:14]) if "--lr-scale 0.3" in line) < 14


@pytest.mark.parametrize("words", ["word " * 200, "x" * 500, "Some words; " * 50])
def test_the_first_lines_take_six_lines_at_most(words: str) -> None:
    changes = (Change("lr", words.strip()),)
    cause = dataclasses.replace(CAUSE, sentence=words, changes=changes)
    diagnosis = dataclasses.replace(planted_run({"a": [DEAD, ALIVE]}, 3), causes=(cause,))
    lines = terminal_text(diagnosis).splitlines()
    end = next(at for at, line in enumerate(lines) if line.startswith("╰"))
    assert lines[end + 1 :].index("") <= 6


def test_a_scan_begins_with_what_to_look_at_and_nothing_if_no_unit_is_dead() -> None:
    dead = dataclasses.replace(planted_run({"a": [DEAD, DEAD]}, 3), causes=(), timeline=None)
    assert [line.label for line in first_lines(dead)] == ["Next"]
    alive = dataclasses.replace(planted_run({"a": [ALIVE] * 3}, 3), causes=(), timeline=None)
    assert first_lines(alive) == []


def test_the_answer_does_not_contradict_the_cause() -> None:
    none = dataclasses.replace(CAUSE, kind="none", sentence="That is usual.", changes=(), advice="")
    many = dataclasses.replace(planted_run({"a": [DEAD] * 5 + [ALIVE] * 5}, 3), causes=(none,))
    assert answer(many).word == "Some units are dead, as is usual in such a network."
    few = dataclasses.replace(planted_run({"a": [DEAD] + [ALIVE] * 99}, 3), causes=(CAUSE,))
    assert answer(few).word == "No."


def _planted(monkeypatch: pytest.MonkeyPatch, change: Any, **sites: Any) -> reludiag.Diagnosis:
    """The Diagnosis of a planted run, changed before it is judged."""
    runs: list[RecordedRun] = []
    judge = from_recording.diagnose_run
    monkeypatch.setattr(
        planted_runs, "diagnose_run", lambda run, subject: runs.append(run) or judge(run, subject)
    )
    planted_run(sites, 6)
    return judge(change(runs[-1]), "planted")


def test_units_silent_on_few_samples_at_step_0_do_not_make_deaths_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def on_one_batch(run: RecordedRun) -> RecordedRun:
        (site,) = run.sites
        dead = site.dead.copy()
        dead[0, :80] = True
        samples = np.array([8, *[SAMPLES] * 5])
        facts = {**run.facts, "probe_samples": None}
        site = dataclasses.replace(site, dead=dead, samples=samples)
        return dataclasses.replace(run, facts=facts, sites=(site,))

    lives = [(3, NEVER)] * 70 + [ALIVE] * 30
    diagnosis = _planted(monkeypatch, on_one_batch, a=lives)
    assert diagnosis.causes[0].kind != "none"
    assert "80 of them fired in the next window" in terminal_text(diagnosis).replace("\n  ", "")


def test_a_small_site_that_mostly_died_needs_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = [(2, NEVER)] * 8 + [ALIVE] * 2, [ALIVE] * 1_000
    causes = {each.site: each.kind for each in planted_run({"s": small, "l": large}, 6).causes}
    assert causes["s"] != "none"


def test_deaths_right_after_a_mark_are_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    def marked(run: RecordedRun) -> RecordedRun:
        return dataclasses.replace(run, marks=(Mark(0, "first task"), Mark(20, "second task")))

    lives = [(3, NEVER)] * 5 + [ALIVE] * 5
    cause = _planted(monkeypatch, marked, a=lives).causes[0]
    row = next(each for each in cause.evidence if each.what == "died right after a mark")
    assert row.value == "5 of 5" and "'second task': 5 in steps 20-30" in row.meaning
    lives = [(1, NEVER)] * 5 + [ALIVE] * 5
    cause = _planted(monkeypatch, marked, a=lives).causes[0]
    assert "died right after a mark" not in {each.what for each in cause.evidence}


def test_each_named_model_has_its_total_and_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(run: RecordedRun) -> RecordedRun:
        facts = {**run.facts, "models": {"actor": {"trained": True}, "critic": {"trained": True}}}
        return dataclasses.replace(run, facts=facts)

    sites = {"actor.1": [DEAD, ALIVE], "critic.1": [ALIVE, ALIVE, ALIVE]}
    text = terminal_text(_planted(monkeypatch, named, **sites))
    assert "actor: 1 of 2 units dead (50 %)" in text and "critic: 0 of 3 units dead" in text

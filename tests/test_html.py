"""The HTML report as a file: its size, what it says, and that nothing can get out of it."""

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import reludiag
from reludiag.causes.cause import Cause, Evidence
from reludiag.recording.ledger import Life, life_states
from reludiag.reports.html.charts import _firing as firing_of
from reludiag.reports.html.content import answer
from reludiag.reports.run.lifelines import lifelines
from reludiag.reports.wording import share
from tests.planted_runs import NEVER, dying, planted_run

HTML = Path(reludiag.__file__).parent / "reports" / "html"
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "</script><script>alert(3)</script>",
    "[bold red]x[/]",
    "=cmd|'/c calc'",
    '<a href="https://evil.example/x">a</a><b>b</b>',
    '"quoted", and\nbroken',
    "&lt;script&gt;",
)


def hostile_run() -> reludiag.Diagnosis:
    return planted_run({name: dying(20, 12, seed=at) for at, name in enumerate(HOSTILE)}, 12)


def html(diagnosis: reludiag.Diagnosis, effects: reludiag.Effects | None = None) -> str:
    stream = io.StringIO()
    diagnosis.to_html(stream, effects)
    return stream.getvalue()


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found[1])


def test_a_page_takes_at_most_2_mb() -> None:
    assert len(html(planted_run({"relu": dying(64, 20)}, 20)).encode()) < 2.2e6


def test_5000_units_at_200_snapshots_take_at_most_3_mb(tmp_path: Path) -> None:
    run = planted_run({f"layers.{at}.relu": dying(500, 200, seed=at) for at in range(10)}, 200)
    run.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 3e6
    assert all(
        site["states"] for site in data_of((tmp_path / "report.html").read_text())["lives"]["sites"]
    )


def test_the_worst_case_of_5000_units_is_still_under_3_mb() -> None:
    died = np.random.default_rng(0).integers(1, 200, (10, 500))
    run = planted_run(
        {f"layers.{at}.relu": [(when, NEVER) for when in row] for at, row in enumerate(died)}, 200
    )
    assert run.dead == 5000
    assert len(html(run).encode()) < 3e6


def test_a_million_units_are_shown_by_site_and_it_says_so() -> None:
    run = planted_run({f"layers.{at}.relu": dying(100_000, 20, seed=at) for at in range(10)}, 20)
    page = html(run)
    assert len(page.encode()) < 3e6
    assert "10 of 10 sites have one row for the whole site" in page
    assert f"have the first 10,000 of {run.dead:,}" in page
    assert not any(site["states"] for site in data_of(page)["lives"]["sites"])


def test_a_long_run_is_joined_and_loses_no_death() -> None:
    run = planted_run({"relu": dying(64, 3_000)}, 3_000)
    lives = lifelines(run)
    assert lives.joined == 8
    assert len(lives.edges) - 1 == 376
    assert lives.whole.died.sum() == run.timeline["died"].sum() > 0
    assert lives.edges[-1] == 29_990
    assert lives.whole.dead[-1] == run.dead
    assert "A column shows 8 snapshots" in html(run)


def test_500_sites_lose_nobody_and_name_every_one() -> None:
    run = planted_run({f"blocks.{at}.act": dying(10, 40, seed=at) for at in range(500)}, 40)
    page = html(run)
    assert all(f'data-site="blocks.{at}.act"' in page for at in range(500))
    assert sum(site["units"] for site in data_of(page)["lives"]["sites"]) == 5000


def test_the_page_agrees_with_the_tables() -> None:
    run = planted_run({"a": [(0, NEVER), (3, NEVER), (2, 4), (NEVER, NEVER)]}, 6)
    page = html(run)
    assert f"2 of 4 units are dead ({share(2, 4)})" in page.replace("\u00a0", " ")
    sent = data_of(page)
    stream = io.StringIO()
    run.to_csv(stream)
    assert sent["csv"] == stream.getvalue()
    assert sent["firing"][0]["counts"][0] == 2
    assert sum(sent["firing"][0]["counts"]) == 4
    states = np.frombuffer(base64.b64decode(sent["lives"]["sites"][0]["states"]["bdata"]), np.uint8)
    assert states.reshape(4, 6).tolist() == [
        [Life.BORN_DEAD] * 6,
        [Life.ALIVE] * 3 + [Life.DEAD] * 3,
        [Life.ALIVE] * 2 + [Life.DEAD] * 2 + [Life.REVIVED] * 2,
        [Life.ALIVE] * 6,
    ]


def test_lives_are_those_of_the_ledger() -> None:
    generator = np.random.default_rng(0)
    dead = generator.random((12, 300)) < 0.4
    nonfinite = generator.random((12, 300)) < 0.1
    known = ~nonfinite & (generator.random((12, 1)) < 0.8)
    states = life_states(True, dead & known, known, nonfinite)
    for unit in range(300):
        seen_dead, since_birth = False, True
        for at in range(12):
            if nonfinite[at, unit]:
                expected = Life.NONFINITE
            elif not known[at, unit]:
                expected = Life.UNKNOWN
                since_birth &= at > 0
            elif dead[at, unit]:
                expected = Life.BORN_DEAD if since_birth else Life.DEAD
                seen_dead = True
            else:
                expected, since_birth = Life.REVIVED if seen_dead else Life.ALIVE, False
            since_birth &= not (at == 0 and expected != Life.BORN_DEAD)
            assert states[at, unit] == expected, (at, unit)


def test_a_scan_has_no_lives_and_several_checkpoints_have() -> None:
    scan = reludiag.scan(nn.Sequential(nn.Linear(2, 4), nn.ReLU()), [torch.randn(8, 2)])
    assert scan.lives is None
    page = html(scan)
    assert "When did they die?" not in page
    assert data_of(page)["lives"] is None


def test_a_number_alone_is_no_name_of_a_tile() -> None:
    lives = [(NEVER, NEVER)]
    page = html(planted_run({"stem.relu": lives, "backbone.1": lives, "backbone.3": lives}, 3))
    tiles = re.findall(r'class="tile.*?<b>(.*?)</b>', page)
    assert tiles == ["relu", "backbone.1", "backbone.3"]


def test_the_answer_is_a_word() -> None:
    def word(*sites: list[tuple[int, int]]) -> str:
        return answer(planted_run({str(at): lives for at, lives in enumerate(sites)}, 3)).word

    alive, dead = (NEVER, NEVER), (1, NEVER)
    assert word([alive] * 10) == "Yes."
    assert word([dead] + [alive] * 99) == "Some units are dead, as is usual in such a network."
    assert word([dead] * 2 + [alive] * 8) == "No."
    assert word([alive] * 99, [dead]) == "No."  # a whole site, however small


def test_the_page_names_no_option_of_the_command_line() -> None:
    run = planted_run({"relu": [(1, NEVER), (NEVER, NEVER)]}, 3)
    assert "--csv FILE" in str(run)
    assert "--csv FILE" not in html(run)


def test_one_dead_of_100000_is_not_rounded_away() -> None:
    page = html(planted_run({"relu": [(1, NEVER)] + [(NEVER, NEVER)] * 99_999}, 3))
    assert "1 of 100,000 units is dead (&lt;0.1\u00a0%)" in page


def test_names_are_text_wherever_they_stand() -> None:
    page, short = html(hostile_run()), hostile_run()._repr_html_()
    for text in (page, short):
        assert "<script>alert" not in text
        assert "<img" not in re.sub(r"<script>.*?</script>", "", text, flags=re.S)
        assert 'href="https://evil' not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<" not in re.search(r'id="data">(.*?)</script>', page, re.S)[1]
    assert {site["name"] for site in data_of(page)["lives"]["sites"]} == set(HOSTILE)


def test_the_policy_allows_the_scripts_of_the_page_and_no_request() -> None:
    page = html(hostile_run())
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1].replace("&#39;", "'")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    assert not re.search(r"https?:", policy)
    scripts = [script.encode() for script in re.findall(r"<script>(.*?)</script>", page, re.S)]
    assert len(scripts) == 2
    packed = re.search(r'<script type="application/gzip" id="plotly">(.*?)</script>', page)[1]
    scripts.append(gzip.decompress(base64.b64decode(packed)))
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    assert rules["script-src"].split() == [f"'sha256-{each}'" for each in hashes]


def test_plotly_is_the_one_that_was_published() -> None:
    """That of plotly.js-cartesian-dist-min 4.1.1, as npm has it."""
    script = gzip.decompress((HTML / "plotly-cartesian.min.js.gz").read_bytes())
    assert hashlib.sha256(script).hexdigest() == (
        "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
    )
    assert b"v4.1.1" in script[:100]


def test_a_notebook_gets_the_short_form_without_scripts() -> None:
    short = planted_run({"relu": dying(64, 10)}, 10)._repr_html_()
    assert "<script" not in short
    assert len(short) < 30_000
    assert 'class="reludiag notebook"' in short


def test_effects_add_their_heat_maps() -> None:
    rows = [
        {"lr": lr, "init": "kaiming", "seed": seed, "status": "complete", "steps": 10,
         "units": 100, "born": 0, "new": new + seed, "dead": new + seed, "nonfinite": 0}
        for lr, new in ((0.01, 0), (0.1, 10), (1.0, 60))
        for seed in range(3)
    ]  # fmt: skip

    page = html(planted_run({"relu": dying(8, 4)}, 4), reludiag.effects(pd.DataFrame(rows)))
    assert "By learning rate and initialization" in page
    assert re.search(r'class="n h-4">61 %<', page)


def test_a_notebook_gets_the_heat_maps_of_a_sweep_without_scripts() -> None:
    rows = [
        {"lr": lr, "init": HOSTILE[0], "seed": seed, "status": "complete", "units": 100, "born": 0,
         "new": new, "dead": new, "nonfinite": 0}
        for lr, new in ((0.01, 0), (1.0, 60))
        for seed in range(3)
    ]  # fmt: skip
    short = reludiag.effects(pd.DataFrame(rows))._repr_html_()
    assert "<script" not in short
    assert "&lt;script&gt;alert(1)" in short
    assert re.search(r'class="n h-4">60 %<', short)


def test_causes_come_with_their_evidence_and_what_would_confirm_them() -> None:
    plain = planted_run({"relu": dying(8, 4)}, 4)
    cause = Cause(
        kind="learning_rate",
        site=None,
        share=0.9996,
        identifiable=False,
        evidence=(Evidence("critical rate", 0.0123456, "<b>half</b> lived"),),
        sentence="The rate killed them.",
        advice="halve it",
        confirm="reludiag replay TRAIN",
    )
    page = html(dataclasses.replace(plain, causes=(cause,)))
    for said in (
        "The rate killed them.", "0.01235", "&lt;b&gt;half&lt;/b&gt; lived", "&gt;99.9\u00a0%",
        "cannot prove it", "<code>reludiag replay TRAIN</code>", "<li>Halve it.</li>",
    ):  # fmt: skip
        assert said in page, said
    assert 'id="why"' not in html(dataclasses.replace(plain, causes=()))
    for kind, said in (
        ("none", "nothing unusual"),
        ("undetermined", "This run alone does not show the cause."),
    ):
        other = dataclasses.replace(cause, kind=kind, identifiable=kind == "none")
        page = html(dataclasses.replace(plain, causes=(other,)))
        assert said in page
        assert "It explains" not in page


@pytest.mark.parametrize("frame", ["nothing", "uncalled"])
def test_a_model_of_which_nothing_is_known_has_a_page(frame: str) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
    if frame == "uncalled":
        model.unused = nn.ReLU()
        model.forward = lambda x: model[1](model[0](x))
    with reludiag.Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), every=5) as monitor:
        if frame == "uncalled":
            model(torch.randn(4, 2))
    page = html(monitor.diagnose())
    assert "Is my network healthy?" in page


def test_a_unit_that_fired_where_its_rate_was_not_counted_is_not_one_that_never_fires() -> None:
    run = planted_run({"relu": dying(8, 3)}, 3)
    units = run.units.assign(firing_rate=0.0, fired=0, counted=5, samples=50)
    sampled = dataclasses.replace(run, units=units)
    (site,) = [row for row in firing_of(sampled) if row["name"] == "relu"]
    assert site["counts"][:2] == [run.dead, 8 - run.dead] and 0 < run.dead < 8
    counted = dataclasses.replace(run, units=units.assign(samples=5))
    assert firing_of(counted)[0]["counts"][0] == 8

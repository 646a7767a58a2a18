"""The HTML report in a browser: it draws, sorts and saves, and asks nobody for anything."""

import base64
import gzip
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reludiag
from reludiag.recording.ledger import Life
from tests.browser import PATIENCE, Open, assert_every_table_sorts, overflow
from tests.planted_runs import NEVER, dying, planted_run
from tests.test_html import HOSTILE, hostile_run
from tests.test_sample_models import sample

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser


def dying_sample(name: str) -> reludiag.Diagnosis:
    module = sample(name)
    with torch.random.fork_rng():
        monitors = []

        def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> reludiag.Monitor:
            monitors.append(reludiag.Monitor(model, optimizer, every=2, probe=module.probe()[:16]))
            return monitors[0]

        module.fit(module.build(seed=0), attach=attach, **{**module.DYING, "steps": 10})
    return monitors[0].diagnose()


def trained(lr: float) -> reludiag.Diagnosis:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        inputs = torch.randn(64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with reludiag.Monitor(model, optimizer, every=1, probe=inputs) as monitor:
        for _ in range(8):
            optimizer.zero_grad()
            (model(inputs) - 1).square().sum().backward()
            optimizer.step()
    return monitor.diagnose()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "detector", "segmenter", "text"])
def test_the_dying_run_of_a_sample_model_is_shown(opened: Open, name: str) -> None:
    run = dying_sample(name)
    assert run.dead > 0
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = opened(run, width, scheme)
        assert page.locator("#sites tbody tr").count() == len(run.sites)
        assert f"{run.dead:,} of" in page.locator(".answer").inner_text()
        assert overflow(page) <= 0
        assert_every_table_sorts(page)


def test_a_healthy_run_is_shown(opened: Open) -> None:
    page = opened(planted_run({"relu": [(NEVER, NEVER)] * 64}, 10))
    assert page.locator(".answer").inner_text() == "Yes. None of 64 units is dead."
    assert page.locator("#dead").count() == 0
    assert_every_table_sorts(page)
    assert colour_at(page, picture_of(page), row=63, step=85) == colour_named(page, "alive")


def test_a_diverged_run_is_shown_as_such(opened: Open) -> None:
    run = trained(lr=1e4)
    assert run.diverged
    page = opened(run)
    assert page.locator(".answer b").inner_text() == "No: it diverged."
    assert "not finite" in page.locator("#states").inner_text()
    assert page.locator("#firing-block").is_hidden()
    assert page.locator("#sites .meter u").count() == 0  # a share of dead units would say too much
    assert "of the dead units" not in page.locator("#why").inner_text()
    assert_every_table_sorts(page)
    picture = picture_of(page)
    for row in (0, 31):
        assert colour_at(page, picture, row, step=7.5) == colour_named(page, "nonfinite")


def test_without_a_way_to_unpack_them_charts_are_a_sentence_and_tables_work(
    chromium: Any, tmp_path: Path
) -> None:
    planted_run(PLANTED, STEPS).to_html(tmp_path / "report.html")
    page = chromium.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((tmp_path / "report.html").as_uri())
    notes = page.locator(".note", has_text="No chart: this browser cannot unpack")
    playwright.expect(notes).to_have_count(3)
    assert page.locator(".chart").count() == 0
    page.locator("#theme").click()  # which would draw them anew
    page.locator(".tile").first.click()
    assert page.locator("#dead tbody tr").count() == 4
    assert_every_table_sorts(page)


def test_a_script_that_is_packed_instead_of_plotly_does_not_run(
    chromium: Any, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    planted_run(PLANTED, STEPS).to_html(path)
    other = base64.b64encode(gzip.compress(b"document.title = 'it ran'; var Plotly = {};")).decode()
    text = re.sub('(?<=id="plotly">)[^<]*', other, path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    page = chromium.new_page()
    page.goto(path.as_uri())
    playwright.expect(page.locator(".note", has_text="No chart")).to_have_count(3)
    assert page.title() != "it ran"


PLACES = [(0, 10), (0, 100), (5, 30), (9, 190)]


@pytest.mark.slow
def test_a_million_units_are_shown_by_site(opened: Open) -> None:
    run = planted_run({f"layers.{at}.relu": dying(100_000, 20, seed=at) for at in range(10)}, 20)
    page = opened(run)
    assert page.evaluate("document.getElementById('life').data[0].z.length") == 10
    assert "A row is a site" in page.locator("#life-note").inner_text()
    assert_every_table_sorts(page)
    dead = {(row, step): run.lives.states[f"layers.{row}.relu"][step // 10] for row, step in PLACES}
    picture = picture_of(page)
    for (row, step), states in dead.items():
        share = (states == Life.DEAD).mean()
        heat = sum(share >= limit for limit in (1e-9, 0.05, 0.2, 0.5, 1))
        assert colour_at(page, picture, row, step - 2) == colour_named(page, f"h{heat}"), (
            row,
            step,
            share,
        )
    page.locator(".tile").first.click()
    assert "too many units" in page.locator("#life-note").inner_text()


def test_hostile_names_do_nothing(opened: Open) -> None:
    page = opened(hostile_run())
    assert page.locator("#sites .pick").all_inner_texts() == [
        name.replace("\n", " ") for name in HOSTILE
    ]
    assert page.locator("main img, main script, svg a, #life b").count() == 0
    drawn = page.locator("#life .ytick text").all_text_contents()
    assert any("<script>alert(1)</script>" in text for text in drawn)
    for at in range(len(HOSTILE)):
        page.locator(".tile").nth(at).click()
        page.locator("#life").hover()
        assert page.locator("#life .gtitle, #tip a").count() == 0
    assert_every_table_sorts(page)
    page.wait_for_timeout(100)  # for what would still come


STEPS = 9
PLANTED = {
    "first": [(0, NEVER), (3, NEVER), (3, NEVER), (NEVER, NEVER)],
    "second": [(2, 5), (NEVER, NEVER), (NEVER, NEVER), (7, NEVER)],
}


def place_of(page: Any, row: int, step: float) -> tuple[float, float]:
    """Where on the page the middle of a row of the raster is, at a step."""
    x, y = page.evaluate(
        """([row, step]) => {
            const chart = document.getElementById("life"), { xaxis, yaxis } = chart._fullLayout;
            const box = chart.querySelector(".svg-container").getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis.l2p(step),
                    box.y + scrollY + yaxis._offset + yaxis.l2p(row)];
        }""",
        [row, step],
    )
    return x, y


def picture_of(page: Any) -> Any:
    """All of the page, as it is on the screen."""
    from PIL import Image

    return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


def colour_at(page: Any, picture: Any, row: int, step: float) -> tuple[int, ...]:
    """The colour on the screen in the middle of a row of the raster, at a step."""
    return picture.getpixel(tuple(map(round, place_of(page, row, step))))


def colour_named(page: Any, name: str) -> tuple[int, ...]:
    """What the style sheet has under this name, in the theme that is shown."""
    return tuple(map(int, page.evaluate(f"colour({name!r})")[4:-1].split(",")))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_raster_shows_planted_deaths_at_their_place(
    opened: Open, width: int, scheme: str
) -> None:
    page = opened(planted_run(PLANTED, STEPS), width, scheme)
    names = ("alive", "dead", "born-dead", "revived")
    colours = {name: colour_named(page, name) for name in names}
    # In each site the first to die are at the top: units 0, 1, 2, 3 and then 0, 3, 1, 2. A column
    # is the window that ends at its step, so snapshot 3 is what lies between steps 20 and 30.
    expected = [
        ["born-dead"] * 9,
        ["alive"] * 3 + ["dead"] * 6,
        ["alive"] * 3 + ["dead"] * 6,
        ["alive"] * 9,
        ["alive"] * 2 + ["dead"] * 3 + ["revived"] * 4,
        ["alive"] * 7 + ["dead"] * 2,
        ["alive"] * 9,
        ["alive"] * 9,
    ]
    picture = picture_of(page)
    for row, states in enumerate(expected):
        for snapshot in (0, 2, 3, 5, 8):
            seen = colour_at(page, picture, row, 10 * snapshot - 2)
            assert seen == colours[states[snapshot]], (row, snapshot)
    bars = page.evaluate("document.getElementById('life').data[1]")
    assert bars["y"] == [0, 0, 1, 2, 0, 0, 0, 1, 0]
    assert bars["x"][3] == 25


def test_what_is_under_the_pointer_is_told(opened: Open) -> None:
    page = opened(planted_run(PLANTED, STEPS))
    page.locator("#life").scroll_into_view_if_needed()

    for row, step, told in (
        (1, 25, "first, unit 1 steps 20–30: died"),
        (4, 55, "second, unit 0 steps 50–60: alive again"),
        (0, -2, "first, unit 0 step 0: dead since step 0"),
    ):
        x, y = place_of(page, row, step)
        page.mouse.move(x, y - page.evaluate("scrollY"))
        playwright.expect(page.locator("#tip")).to_have_text(told, timeout=PATIENCE)


def test_no_unit_is_lost_where_a_row_is_several(opened: Open) -> None:
    page = opened(planted_run({"wide": [(5, NEVER)] + [(NEVER, NEVER)] * 1_999}, STEPS))
    page.locator(".tile").click()
    assert "up to 3 units" in page.locator("#life-note").inner_text()
    dead = page.evaluate(
        "document.getElementById('life').data[0].z.flat().filter((s) => s === 4).length"
    )
    assert dead == STEPS - 5


def test_a_chosen_site_is_shown_alone_and_left_again(opened: Open) -> None:
    page = opened(planted_run(PLANTED, STEPS))
    rows = "document.getElementById('life').data[0].z.length"
    assert page.evaluate(rows) == 8
    page.locator(".pick", has_text="second").click()
    assert page.evaluate(rows) == 4
    assert page.locator("[data-choose]").nth(1).input_value() == "second"
    page.locator(".tile", has_text="second").click()
    assert page.evaluate(rows) == 8


def test_tables_sort_and_search_with_the_keyboard(opened: Open) -> None:
    page = opened(planted_run({f"s{at}": dying(10 + at, 12, seed=at) for at in range(12)}, 12))
    names = lambda: page.locator("#sites .pick").all_inner_texts()  # noqa: E731
    page.locator("#sites thead button", has_text="Units").focus()
    page.keyboard.press("Enter")
    assert names() == [f"s{at}" for at in reversed(range(12))]
    page.keyboard.press("Enter")
    assert names() == [f"s{at}" for at in range(12)]
    page.locator("#sites thead button", has_text="Site").click()
    assert names()[:3] == ["s0", "s1", "s2"]  # not s0, s1, s10
    page.locator("#site-search").fill("S1")
    assert page.locator("#sites tbody tr:visible").count() == 3

    steps = page.locator("#dead tbody td:nth-child(4)")
    assert page.locator("#dead th").nth(3).inner_text().startswith("Died by step")
    page.locator("#dead thead button", has_text="Died by step").click()
    seen = [int(text) for text in steps.all_inner_texts()]
    assert seen == sorted(seen, reverse=True)
    page.locator("#dead-search").fill("s11 ")
    assert set(page.locator("#dead tbody td:first-child").all_inner_texts()) == {"s11"}


def test_the_keyboard_gets_everywhere_from_the_top_down(opened: Open) -> None:
    page = opened(planted_run(PLANTED, STEPS))
    places = ("skip", "top", "map", "sites", "firing-block", "since", "dead")
    seen = []
    for _ in range(80):
        page.keyboard.press("Tab")
        seen += page.evaluate(
            """(places) => places.filter((name) => document.activeElement
                .closest(`#${name}, .${name}`))""",
            list(places),
        )
    assert list(dict.fromkeys(seen)) == list(places)

    page.locator("#theme").focus()
    for _ in range(2 + 2 + 1):  # two tiles, the search, the table, and its first heading
        page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#sites th").nth(1).get_attribute("aria-sort") == "ascending"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"  # where one is can be seen


def test_the_download_is_the_csv_of_the_dead(opened: Open, tmp_path: Path) -> None:
    run = hostile_run()
    page = opened(run)
    with page.expect_download() as download:
        page.locator("#download").click()
    stream = io.StringIO()
    run.to_csv(stream)
    assert download.value.suggested_filename == "dead-units.csv"
    assert Path(download.value.path()).read_text(encoding="utf-8") == stream.getvalue()
    assert page.locator("#dead-count").inner_text() == f"50 of {run.dead} units shown."
    page.locator("#more").click()
    assert page.locator("#dead tbody tr").count() == run.dead


def test_the_theme_is_the_systems_until_it_is_chosen(opened: Open) -> None:
    page = opened(planted_run(PLANTED, STEPS), scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(20, 24, 28)"
    page.locator("#theme").press("Enter")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert page.evaluate("document.getElementById('life').layout.font.color") == "rgb(90, 102, 112)"
    page.reload()
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_it_prints_whole_and_light(opened: Open) -> None:
    page = opened(planted_run(PLANTED, STEPS), scheme="dark")
    shut = page.locator("details:not([open])").count()
    assert shut > 0
    page.evaluate(
        "addEventListener('beforeprint', () => "
        "{ window.left = document.querySelectorAll('details:not([open])').length; })"
    )
    assert len(page.pdf()) > 10_000
    assert page.evaluate("window.left") == 0
    width = "document.querySelector('#life .main-svg').clientWidth"
    before = page.evaluate(width)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(width) <= 700  # 186 mm, what A4 has between its margins
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(width) == before > 1000
    assert page.locator("details:not([open])").count() == shut
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator(".top").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"

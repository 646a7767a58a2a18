"""The page of a sweep in a browser: as the report's, with its heat maps and every run."""

import io
from pathlib import Path

import pandas as pd
import pytest

import reludiag
from tests.browser import Open, assert_every_table_sorts, overflow
from tests.test_html import HOSTILE

pytestmark = pytest.mark.browser


def sweep_of(inits: tuple[str, ...], metric: str = "loss", failed: str = "") -> reludiag.Effects:
    """27 runs for three initializations; at 1.0 the first run of the first diverged."""
    rows = [
        {"trial": 9 * place + 3 * at + seed, "lr": lr, "init": init, "seed": seed,
         "status": "complete", "steps": 10, "units": 100, "born": 4 * place, "nonfinite": 0,
         "new": (0, 7, 50)[at] + seed, "dead": (0, 7, 50)[at] + seed + 4 * place,
         "dead_fraction": ((0, 7, 50)[at] + seed + 4 * place) / 100, "error": "", "seconds": 1.5,
         f"metric.{metric}": 0.1 * at + 1e-3 * seed}
        for place, init in enumerate(inits)
        for at, lr in enumerate((0.001, 0.01, 1.0))
        for seed in range(3)
    ]  # fmt: skip
    rows[6] |= {"status": "diverged", "nonfinite": 100, "dead_fraction": float("nan")}
    rows[8] |= {"status": "crashed", "error": failed or "ValueError: no (net.py:3)"}
    return reludiag.effects(pd.DataFrame(rows))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_sweep_has_a_page_of_its_own(opened: Open, width: int, scheme: str) -> None:
    found = sweep_of(("kaiming", "normal", "xavier"))
    page = opened(found, width, scheme)
    assert page.locator(".answer").inner_text().startswith("Learning rate explains")
    new, born = page.locator("#where table.heat").all()[:2]
    assert new.locator("tbody tr").nth(1).locator("td").all_inner_texts() == [
        "1.0 %", "8.3 %", "53 %",
    ]  # fmt: skip
    heats = [
        cell.get_attribute("class") for cell in new.locator("tbody tr").nth(0).locator("td").all()
    ]
    assert heats == ["n h-1", "n h-2", "n h-4"]
    assert born.locator("tbody tr").nth(2).locator("td").first.inner_text() == "8.0 %"
    assert "!: some runs diverged" in page.locator("#where").inner_text()
    assert page.locator("#where figcaption").nth(2).inner_text() == "loss"
    assert page.locator("#safe tbody tr").count() == 3
    assert page.locator("#explained .share b").count() > 0
    assert "1 run: ValueError: no (net.py:3)" in page.locator("#runs").inner_text()
    assert page.locator("#runs-table tbody tr").count() == 27
    assert overflow(page) <= 0
    assert_every_table_sorts(page)
    page.locator("#run-search").fill("diverged")
    assert page.locator("#runs-table tbody tr:visible").count() == 1


def test_hostile_names_do_nothing_in_the_page_of_a_sweep(opened: Open) -> None:
    found = sweep_of(HOSTILE, metric=HOSTILE[0], failed=HOSTILE[1])
    page = opened(found)
    assert page.locator("main img, main script, main a[href^=http], main td b b").count() == 0
    named = page.locator("#safe tbody th").all_inner_texts()
    assert named == [name.replace("\n", " ") for name in HOSTILE]
    assert page.locator("#where figcaption").nth(2).inner_text() == HOSTILE[0]
    assert_every_table_sorts(page)
    with page.expect_download() as download:
        page.locator("#download").click()
    stream = io.StringIO()
    found.to_csv(stream)
    assert Path(download.value.path()).read_text(encoding="utf-8") == stream.getvalue()
    page.wait_for_timeout(100)  # for what would still come


def test_a_sweep_of_which_nothing_can_be_said_has_a_page(opened: Open) -> None:
    trials = sweep_of(("kaiming",)).trials
    for few in (trials.assign(status="crashed"), trials.iloc[:0], trials.iloc[:1]):
        page = opened(reludiag.effects(few))
        assert page.locator(".answer").inner_text() != ""
        assert page.locator("#runs-table tbody tr").count() == len(few)

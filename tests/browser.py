"""A headless Chromium that opens reports, and what is asked of every page.

It must be there already (apt-get install chromium); Playwright only drives it.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import reludiag

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

PATIENCE = 300_000
"""Milliseconds after which a browser hangs, however busy the machine is."""

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a report. At the end: no error was said, nothing was requested, no dialog came."""
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE)
    wrong: list[str] = []

    def open_report(
        report: reludiag.Diagnosis | reludiag.Effects, width: int = 1280, scheme: str = "light"
    ) -> Any:
        path = tmp_path / "report.html"
        report.to_html(path)
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: wrong.append(request.url) if asks(request.url) else None)
        page.goto(path.as_uri())
        if getattr(report, "timeline", None) is not None:
            page.locator("#life .heatmaplayer image").first.wait_for(state="attached")
        return page

    def asks(url: str) -> bool:
        return not url.startswith(("data:", "blob:", f"{tmp_path.as_uri()}/report.html"))

    yield open_report
    context.close()
    assert wrong == []


def overflow(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def assert_every_table_sorts(page: Any) -> None:
    """Each heading of each table, clicked twice, orders the rows one way and the other."""
    tables = page.locator("table:has(thead button)")
    for at in range(tables.count()):
        for heading in tables.nth(at).locator("thead th").all():
            orders = set()
            for _ in range(2):
                heading.get_by_role("button").click()
                told = heading.evaluate(HOW_SORTED)
                assert told["sorted"], (at, heading.inner_text(), told)
                orders.add(told["order"])
            assert orders == {"ascending", "descending"}
    assert tables.count() > 0


HOW_SORTED = """(heading) => {
    const order = heading.getAttribute("aria-sort"), sign = order === "ascending" ? 1 : -1;
    const rows = [...heading.closest("table").tBodies[0].rows].map((row) => row.cells[heading.cellIndex]);
    const keys = rows.map((cell) => cell.dataset.key ?? cell.textContent.trim());
    const compared = heading.classList.contains("n")
        ? (a, b) => parseFloat(a) - parseFloat(b)
        : new Intl.Collator("en", { numeric: true }).compare;
    const known = keys.filter((key) => key !== "");
    return { order, keys, sorted: known.every((key, at) => !at || sign * compared(known[at - 1], key) <= 0) };
}"""  # noqa: E501

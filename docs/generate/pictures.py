"""Pictures: what the documentation shows of a report, from the runs of the tutorial."""

import shutil
from pathlib import Path
from typing import Literal

from docs.generate.blocks import ROOT
from docs.generate.stage import Stage

IMAGES = ROOT / "docs" / "images"
_RUN, _PAGE = "demo/run.reludiag", "demo/report.html"
_WIDTH, _HEIGHT = 1_100, 1_250
_SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def draw(stage: Stage) -> list[str]:
    """Write all pictures; returns what could not be drawn here, and why."""
    svg, lifelines = str(IMAGES / "report.svg"), str(IMAGES / "lifelines.svg")
    with stage.entered():
        stage.run(["reludiag", "report", _RUN, "--svg", svg, "--html", _PAGE])
        stage.run(["reludiag", "plot", _RUN, "--kind", "lifelines", "-o", lifelines])
        return _photograph(Path(_PAGE).resolve())


def _photograph(page: Path) -> list[str]:
    """The HTML report in a browser, light and dark, as far down as the lives of units."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return ["page-light.png, page-dark.png: Playwright is not installed"]
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        except Error as error:
            return [f"page-light.png, page-dark.png: {error.message.splitlines()[0]}"]
        for scheme in _SCHEMES:
            view = browser.new_page()
            view.set_viewport_size({"width": _WIDTH, "height": _HEIGHT})
            view.emulate_media(color_scheme=scheme)
            view.goto(page.as_uri())
            view.wait_for_load_state("networkidle")
            view.wait_for_timeout(1_000)  # Plotly draws on
            view.screenshot(path=IMAGES / f"page-{scheme}.png")
        browser.close()
    return []

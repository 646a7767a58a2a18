"""Pictures: what the documentation shows of a report, from the runs of the tutorial."""

from pathlib import Path

from docs.generate.blocks import ROOT
from docs.generate.stage import Stage

IMAGES = ROOT / "docs" / "images"
_SIZE = {"width": 1_100, "height": 1_250}


def draw(stage: Stage) -> list[str]:
    """Write all pictures; returns what could not be drawn here, and why."""
    with stage.entered():
        run = "demo/run.reludiag"
        stage.run(["reludiag", "report", run, "--svg", str(IMAGES / "report.svg")])
        stage.run(["reludiag", "plot", run, "--kind", "lifelines", "-o", str(IMAGES / "lifelines.svg")])
        stage.run(["reludiag", "report", run, "--html", "demo/report.html", "-o", "demo/report.txt"])
        return _photograph(stage.folder / "demo" / "report.html")


def _photograph(page: Path) -> list[str]:
    """The HTML report in a browser, light and dark, as far down as the lives of units."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return ["page-light.png, page-dark.png: Playwright is not installed"]
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=_chromium())
        except Error as error:
            return [f"page-light.png, page-dark.png: {error.message.splitlines()[0]}"]
        for scheme in ("light", "dark"):
            view = browser.new_page(viewport=_SIZE, color_scheme=scheme)
            view.goto(page.as_uri())
            view.wait_for_load_state("networkidle")
            view.wait_for_timeout(1_000)
            view.screenshot(path=IMAGES / f"page-{scheme}.png")
        browser.close()
    return []


def _chromium() -> str | None:
    import shutil

    return shutil.which("chromium") or shutil.which("chromium-browser")

"""The documentation: what is on its pages runs, and is what the code makes today."""

import re
import shutil
import subprocess
import sys
import threading
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from reludiag_cli.app import app

import reludiag
from benchmarks.peers import by_reludiag, cases
from docs.generate.blocks import ROOT, Block, blocks, written_pages
from docs.generate.constants import named_constants, with_constants
from docs.generate.reference import reference_pages
from docs.generate.stage import EXPERIMENTS, Stage
from docs.generate.tables import ROWS, named_tables, with_tables
from reludiag.measure.verdicts import VERDICTS
from tests.browser import PATIENCE

DOCS = ROOT / "docs"
PAGES = [page for page in written_pages() if page.is_relative_to(DOCS)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A folder in which the tutorial was gone through: its outputs are those of the others, too."""
    stage = Stage(tmp_path_factory.mktemp("docs"))
    compare_outputs(stage, DOCS / "tutorial.md")
    return stage


def words(text: str) -> set[str]:
    """What stays of an output where numbers differ: of bars, counts and places nothing does.

    A training gives other numbers on another processor, for sums are added up in another order
    and 600 steps make much of it. Which words the report has hardly depends on them; a column that
    is called otherwise, or another sentence, does.
    """
    return set(re.findall(r"[A-Za-z_]{3,}", text))


def compare_outputs(stage: Stage, page: Path) -> None:
    for block, output in stage.play(page, experiments=False):
        shown, real = words(block.text), words(output)
        assert shown, f"{name_of(page)}: no output of {block.source}; `make pages` writes it"
        # A sentence that says "1 unit" here says "2 units" there, or is not said.
        alike = len(shown & real) / len(shown | real)
        assert alike >= 0.85, f"{name_of(page)}: {block.source} is not as it was: `make pages`"


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "tutorial"], ids=name_of)
def test_every_block_of_a_page_runs(stage: Stage, page: Path) -> None:
    stage.missing.clear()
    compare_outputs(stage, page)
    if stage.missing:
        pytest.skip(f"{', '.join(stage.missing)} is not installed")


@pytest.mark.slow
def test_the_outputs_in_the_readme_are_what_its_commands_print(stage: Stage) -> None:
    """That all of its commands run is for another test."""
    shown = [block for block in blocks(ROOT / "README.md") if block.source in stage.outputs]
    assert shown
    for block in shown:
        # Whether some unit is rare, and the report says that word, depends on the processor.
        assert words(block.text) - set(VERDICTS) <= words(stage.outputs[str(block.source)])


def test_an_experiment_on_a_page_is_run_by_the_test_of_the_readme() -> None:
    """Each takes several trainings in processes of their own."""
    readme = [" ".join(command) for command in all_commands(ROOT / "README.md")]
    for page in PAGES:
        for command in all_commands(page):
            if command[0] == "reludiag" and command[1] in EXPERIMENTS:
                assert " ".join(command) in readme, name_of(page)


def test_an_example_on_a_page_is_run_by_the_test_of_examples() -> None:
    ran = {path.stem for path in (ROOT / "examples").glob("*.py")}
    shown = {block.included.stem for page in PAGES for block in blocks(page) if block.included}
    assert shown == ran


def test_a_command_that_is_shown_and_not_run_has_the_options_that_it_is_given() -> None:
    """Those for several machines, which a test does not have."""
    commands: Any = typer.main.get_command(app)
    for page in PAGES:
        for block in blocks(page):
            shown = block.text.splitlines() if block.language == "text" else []
            for line in shown if block.source is None else []:
                program, _, rest = line.partition(" ")
                if program != "reludiag":
                    continue
                known = {o for p in commands.commands[rest.split()[0]].params for o in p.opts}
                assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"{name_of(page)}: {line}"


def test_an_extra_that_a_page_names_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in written_pages():
        for named in re.findall(r"reludiag\[([a-z,]+)\]", page.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= project["optional-dependencies"].keys(), name_of(page)


def test_an_output_follows_every_comment_that_announces_one() -> None:
    for page in written_pages():
        announced = page.read_text(encoding="utf-8").count("<!-- output of:")
        assert announced == sum(block.source is not None for block in blocks(page)), name_of(page)


@pytest.mark.parametrize("page", reference_pages().items(), ids=lambda item: item[0].name)
def test_a_page_made_from_the_code_is_as_it_makes_it(page: tuple[Path, str]) -> None:
    path, text = page
    assert path.read_text(encoding="utf-8") == text, "`make pages` writes it anew"


@pytest.mark.parametrize("page", written_pages(), ids=name_of)
def test_a_number_that_is_named_in_the_code_is_the_one_it_has_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert with_constants(text) == text, "`make pages` writes it anew"


def test_the_rows_of_a_table_are_those_of_the_code() -> None:
    texts = [page.read_text(encoding="utf-8") for page in written_pages()]
    assert {name for text in texts for name in named_tables(text)} == ROWS.keys()
    for text in texts:
        assert with_tables(text) == text, "`make pages` writes it anew"


def test_the_page_of_decisions_names_its_constants() -> None:
    assert len(set(named_constants(DOCS / "how-it-decides.md"))) > 20


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    documented = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    public = set(reludiag.__all__) - {"__version__", "RANDOM_INPUT"}
    assert public <= documented


def test_the_comparison_says_of_reludiag_what_it_finds() -> None:
    """What the other tools say is of their versions on the day that the page names."""
    text = (DOCS / "comparison.md").read_text(encoding="utf-8")
    for case in cases():
        row = next(line for line in text.splitlines() if line.startswith(f"| {case.name} |"))
        assert row.split(" | ")[2] == by_reludiag(case)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation; a warning is an error."""
    for library in ("material", "mkdocstrings_handlers.python", "latex2mathml"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_built_of_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:link|script|img|iframe)[^>]*(?:href|src)=\"?(?:\w+:)?//", text)


@pytest.mark.slow
@pytest.mark.browser
def test_reading_and_searching_the_site_asks_nobody_for_anything(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        asked, said = list[str](), list[str]()
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=chromium, args=["--no-sandbox"], timeout=PATIENCE
            )
            page = browser.new_page()
            page.set_default_timeout(PATIENCE)
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.goto(f"{here}how-it-decides.html")
            assert page.locator("math").count() > 5
            page.wait_for_load_state("networkidle")  # the search listens from then on
            page.get_by_placeholder("Search").press_sequentially("critical rate")
            page.locator(".md-search-result__item").first.wait_for(state="attached")
            browser.close()
        server.shutdown()
    assert all(url.startswith((here, "data:", "blob:")) for url in asked)
    assert said == []


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def all_commands(page: Path) -> list[list[str]]:
    written: list[Block] = [block for block in blocks(page) if block.language == "sh"]
    return [command for block in written for command in block.commands()]

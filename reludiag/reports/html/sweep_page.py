"""The page of a sweep, or of several runs, and the short form of it that a notebook shows."""

from reludiag.experiments.analysis.effects import Effects
from reludiag.reports.html import sweep_content
from reludiag.reports.html.shell import fragment_of, page_of


def effects_page(effects: Effects) -> str:
    """The whole report as an HTML document: its heat maps are tables, so it has no charts."""
    return page_of(
        "sweep.html.j2",
        ["page.js", "sweep.js"],
        {"csv": sweep_content.trials_csv(effects)},
        charts=False,
        **sweep_content.content_of(effects),
    )


def effects_fragment(effects: Effects) -> str:
    """What a notebook shows: the sentence, the heat maps, what they say; no script."""
    return fragment_of("sweep_notebook.html.j2", **sweep_content.content_of(effects))

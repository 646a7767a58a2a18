"""The page of a Diagnosis, and the short form of it that a notebook shows."""

from typing import IO, TYPE_CHECKING, Any

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.reports.html import content
from reludiag.reports.html.charts import MOST_LISTED, MOST_METRICS, charts
from reludiag.reports.html.shell import fragment_of, page_of
from reludiag.reports.run.first_lines import first_lines
from reludiag.reports.run.formats import ReportOptions
from reludiag.reports.run.lifelines import MOST_UNITS, LifelineChart, lifelines
from reludiag.reports.run.marks import growth, stretches
from reludiag.reports.run.metrics import MOST_SHOWN, metric_cells
from reludiag.reports.run.summary import instruction
from reludiag.reports.wording import plural

if TYPE_CHECKING:  # the analysis of several runs takes its time to import
    from reludiag.experiments.analysis.effects import Effects

_MOST_SITES_IN_NOTEBOOK = 20


def write_page(diagnosis: Diagnosis, stream: IO[str], choices: ReportOptions) -> None:
    """The whole page."""
    stream.write(page(diagnosis, choices.effects))


def page(diagnosis: Diagnosis, effects: "Effects | None" = None) -> str:
    """The whole report as an HTML document; with the heat maps of several runs, if given."""
    lives = lifelines(diagnosis)
    grid = None
    if effects is not None:
        from reludiag.reports.html.heat_maps import grid_of

        grid = grid_of(effects)
    return page_of(
        "report.html.j2",
        ["page.js", "report.js"],
        charts(diagnosis, lives),
        charts=True,
        **_report_content(diagnosis),
        grid=grid,
        abridged=_abridged(diagnosis, lives),
        listed=MOST_LISTED,
        drawn=MOST_METRICS,
    )


def fragment(diagnosis: Diagnosis) -> str:
    """The HTML for a notebook: the answer, the map, the worst sites and what to do; no script."""
    content = _report_content(diagnosis)
    worst = sorted(content["sites"], key=lambda row: (-row.share, row.index))
    return fragment_of("notebook.html.j2", **content, worst=worst[:_MOST_SITES_IN_NOTEBOOK])


def _report_content(diagnosis: Diagnosis) -> dict[str, Any]:
    causes = content.cause_panels(diagnosis)
    windows = content.windows(diagnosis)
    metrics = metric_cells(diagnosis, windows)
    return {
        "head": diagnosis.head,
        "answer": content.answer(diagnosis),
        "first": first_lines(diagnosis),
        "bar": content.bar(diagnosis),
        "sites": content.site_rows(diagnosis),
        "named": len(diagnosis.sites) <= content.MOST_TILES_NAMED,
        "ledger": diagnosis.timeline is not None,
        "since": content.death_sentence(diagnosis),
        "windows": windows,
        "marks": stretches(diagnosis),
        "growth": growth(diagnosis),
        "metrics": metrics,
        "tabled": list(metrics)[:MOST_SHOWN],
        "causes": causes,
        "advice": content.advice(diagnosis, causes),
        "structure": [(note.sentence, instruction(note)) for note in diagnosis.structure],
        "dead": diagnosis.dead,
        "diverged": diagnosis.diverged,
    }


def _abridged(diagnosis: Diagnosis, lives: LifelineChart | None) -> list[str]:
    """Notes on what the charts leave out."""
    if lives is None:
        return []
    notes = []
    hidden = [site for site in lives.sites if site.states is None]
    if hidden:
        notes.append(
            f"{len(hidden):,} of {plural(len(lives.sites), 'site')} "
            f"{'has' if len(hidden) == 1 else 'have'} one row for the whole site instead of one "
            f"per unit: the site has more than {MOST_UNITS:,} units, or all sites together have "
            "more than a page can hold."
        )
    if lives.joined > 1:
        notes.append(
            f"A column shows {lives.joined:,} snapshots: the state at the last one, and the "
            "deaths in all of them."
        )
    return notes

"""The page: one file with all that it needs, from which nothing can be requested.

The policy in its head allows no script but the three that stand in it, by their hashes, and no
request at all; so a name that slipped through every escape would still do nothing.
"""

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.experiments.analysis.effects import Effects
from reludiag.reports.html import content, sweep
from reludiag.reports.html.charts import MOST_LISTED, charts
from reludiag.reports.html.heat_maps import grid
from reludiag.reports.html.verdict_style import verdict_css
from reludiag.reports.run.lifelines import MOST_UNITS, Lifelines, lifelines
from reludiag.reports.wording import many

_THEME = """\
try { document.documentElement.dataset.theme = localStorage.getItem("reludiag-theme") || "auto"; }
catch { document.documentElement.dataset.theme = "auto"; }
"""  # before anything is painted
_MOST_SITES_IN_NOTEBOOK = 20


def page(diagnosis: Diagnosis, effects: Effects | None = None) -> str:
    """The whole report as an HTML document."""
    from plotly.offline import get_plotlyjs

    lives = lifelines(diagnosis)
    return _page(
        "report.html.j2",
        [get_plotlyjs(), _asset("page.js") + _asset("report.js")],
        charts(diagnosis, lives),
        **_said(diagnosis, effects),
        abridged=_abridged(diagnosis, lives),
        listed=MOST_LISTED,
    )


def effects_page(effects: Effects) -> str:
    """The report of a sweep as an HTML document: its heat maps are tables, so it has no charts."""
    return _page(
        "sweep.html.j2",
        [_asset("page.js") + _asset("sweep.js")],
        {"csv": sweep.trials_csv(effects)},
        **sweep.said(effects),
    )


def fragment(diagnosis: Diagnosis) -> str:
    """What a notebook shows: the answer, the map, the worst sites and what to do; no script."""
    said = _said(diagnosis, None)
    worst = sorted(said["sites"], key=lambda row: (-row.share, row.index))
    return (
        _environment()
        .get_template("notebook.html.j2")
        .render(**said, worst=worst[:_MOST_SITES_IN_NOTEBOOK])
    )


def effects_fragment(effects: Effects) -> str:
    """What a notebook shows of a sweep: the sentence, the heat maps, what they say; no script."""
    template = _environment().get_template("sweep_notebook.html.j2")
    return template.render(style=_style(), **sweep.said(effects))


def _style() -> Markup:
    return Markup(_asset("style.css") + verdict_css())


def _page(template: str, scripts: list[str], data: dict[str, Any], **said: Any) -> str:
    scripts = [_THEME, *scripts]
    return (
        _environment()
        .get_template(template)
        .render(
            {"style": _style(), **said},
            policy=_policy(scripts),
            scripts=[Markup(script) for script in scripts],
            data=_data(data),
        )
    )


def _said(diagnosis: Diagnosis, effects: Effects | None) -> dict[str, Any]:
    causes = content.whys(diagnosis)
    return {
        "head": diagnosis.head,
        "style": _style(),
        "answer": content.answer(diagnosis),
        "bar": content.bar(diagnosis),
        "sites": content.site_rows(diagnosis),
        "named": len(diagnosis.sites) <= content.MOST_TILES_NAMED,
        "ledger": diagnosis.timeline is not None,
        "since": content.since(diagnosis),
        "windows": content.windows(diagnosis),
        "causes": causes,
        "grid": grid(effects),
        "advice": content.advice(diagnosis, causes),
        "dead": diagnosis.dead,
        "diverged": diagnosis.diverged,
    }


def _abridged(diagnosis: Diagnosis, lives: Lifelines | None) -> list[str]:
    """What the pictures leave out, said so."""
    if lives is None:
        return []
    said = []
    hidden = [site for site in lives.sites if site.states is None]
    if hidden:
        said.append(
            f"{len(hidden):,} of {many(len(lives.sites), 'site')} "
            f"{'has' if len(hidden) == 1 else 'have'} one row for the whole site, not one for "
            f"each unit: a site has more than {MOST_UNITS:,} units, or all have more than a page "
            "can hold."
        )
    if lives.joined > 1:
        said.append(
            f"A column is {lives.joined:,} snapshots: the state at the last of them, the deaths "
            "of all."
        )
    return said


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reludiag.reports.html", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["unbroken"] = _unbroken
    return environment


def _unbroken(sentence: str) -> str:
    """No line ends between a number and its per cent, nor within a range."""
    return re.sub(r"(?<=\d)-(?=\d)", "\u2011", sentence.replace(" %", "\u00a0%"))


@cache
def _asset(name: str) -> str:
    return (files("reludiag.reports.html") / name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    # Plotly sets styles; with images of data alone, a style can request nothing.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; form-action 'none'; base-uri 'none'"
    )


def _data(content: dict[str, Any]) -> Markup:
    """JSON that may stand in a script element: nothing in it can end that."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))

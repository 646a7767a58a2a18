"""The frame of every page: one file with all that it needs, from which nothing can be requested.

The policy in its head allows no script but those that the page itself brings, by their hashes, and
no request at all; so a name that slipped through every escape would still do nothing.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reludiag.reports.html import plotly_script
from reludiag.reports.html.verdict_style import verdict_css

_THEME = """\
try { document.documentElement.dataset.theme = localStorage.getItem("reludiag-theme") || "auto"; }
catch { document.documentElement.dataset.theme = "auto"; }
"""  # before anything is painted


def page_of(
    template: str, scripts: Sequence[str], data: dict[str, Any], charts: bool, **content: Any
) -> str:
    """A whole page: `scripts` are names of files beside this one, run as one in their order.

    With `charts`, it brings Plotly, packed.
    """
    here = [_THEME, "".join(_asset(name) for name in scripts)]
    return _rendered(
        template,
        **content,
        policy=_policy(
            [plotly_script.source_of(script.encode()) for script in here]
            + [plotly_script.hash_source()] * charts
        ),
        theme=Markup(here[0]),
        script=Markup(here[1]),
        plotly=plotly_script.packed() if charts else "",
        data=_data(data),
    )


def fragment_of(template: str, **content: Any) -> str:
    """A part of somebody else's page, as a notebook shows it: without a script."""
    return _rendered(template, **content)


def _rendered(template: str, **content: Any) -> str:
    style = Markup(_asset("style.css") + verdict_css())
    return _environment().get_template(template).render({"style": style, **content})


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
    """Prevents line breaks between a number and its % sign, and within a range."""
    return re.sub(r"(?<=\d)-(?=\d)", "\u2011", sentence.replace(" %", "\u00a0%"))


@cache
def _asset(name: str) -> str:
    return (files("reludiag.reports.html") / name).read_text(encoding="utf-8")


def _policy(hashes: Sequence[str]) -> str:
    # Plotly sets styles; as images are limited to data, a style can request nothing.
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; form-action 'none'; base-uri 'none'"
    )


def _data(content: dict[str, Any]) -> Markup:
    """JSON for a script element: nothing in it can end the element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))

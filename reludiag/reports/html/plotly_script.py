"""Plotly, which draws the charts of a page: its bundle for charts with axes, packed as it is kept.

plotly-cartesian.min.js.gz is version 4.1.1 of the package plotly.js-cartesian-dist-min of npm, MIT
licensed (plotly-LICENSE.txt), packed by `gzip -9n`. A page holds it as text, a seventh of what the
whole of Plotly takes up, and the browser unpacks it.
"""

import base64
import gzip
import hashlib
from functools import cache
from importlib.resources import files


@cache
def packed() -> str:
    """Base64 of the gzip file, as the page holds it."""
    return base64.b64encode(_file()).decode()


@cache
def hash_source() -> str:
    """The hash of the unpacked script, for the content security policy of a page."""
    return source_of(gzip.decompress(_file()))


def source_of(script: bytes) -> str:
    """What a content security policy calls a script by: 'sha256-...', with the quotes."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"


def _file() -> bytes:
    return (files("reludiag.reports.html") / "plotly-cartesian.min.js.gz").read_bytes()

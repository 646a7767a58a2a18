"""Constants: numbers on a page that are named in the code, each with its name behind it.

updates of at least 0.02<!--causes.learning_rate.LARGE_UPDATE--> of the weights
3 %<!--causes.chance.FEW--> of the units
"""

import importlib
import re
from pathlib import Path

_NAMED = re.compile(r"(?P<number>[\d,.e+-]+)(?P<percent> %)?<!--(?P<name>[\w.]+)-->")


def with_constants(text: str) -> str:
    """The text of a page with each number as the code has it."""
    return _NAMED.sub(_current, text)


def named_constants(page: Path) -> list[str]:
    """Names of the constants on a page."""
    return [match["name"] for match in _NAMED.finditer(page.read_text(encoding="utf-8"))]


def value_of(name: str) -> float:
    """Of a constant by its path in the package, `module.NAME` or `module.Class.field`."""
    parts = name.split(".")
    for at in range(len(parts) - 1, 0, -1):
        try:
            value = importlib.import_module(".".join(["reludiag", *parts[:at]]))
        except ModuleNotFoundError:
            continue
        for part in parts[at:]:
            value = getattr(value, part)
        return float(value)
    raise LookupError(f"reludiag has no {name}")


def _current(match: re.Match[str]) -> str:
    value = value_of(match["name"]) * (100 if match["percent"] else 1)
    number = f"{value:,.0f}" if value == int(value) else f"{value:.6g}"
    return f"{number}{match['percent'] or ''}<!--{match['name']}-->"

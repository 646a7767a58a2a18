"""MathML: formulae as browsers draw them by themselves, without a script."""

from typing import Any

import latex2mathml.converter


def fence(source: str, language: str, css_class: str, options: Any, md: Any, **rest: Any) -> str:
    """A block of `math`, as superfences asks for it."""
    element = latex2mathml.converter.convert(source.strip(), display="block")
    return f'<div class="formula">{element}</div>'

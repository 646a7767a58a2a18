"""How numbers are written: counts, shares, learning rates, p-values."""

import math

from reludiag.sites.products import SEPARATOR, shortened


def plural(count: int, noun: str) -> str:
    """`1 unit`, `1,200 units`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def weights_in_words(producer: str) -> str:
    """The weights that feed a site, from its `producer`, and what follows if there are several."""
    names = [f"'{name or '(model)'}'" for name in shortened(producer).split(SEPARATOR)]
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]} together: none of them may be cut alone"


def share(part: float, whole: float) -> str:
    """A percentage that is 0 % only for none and 100 % only for all."""
    if not whole or math.isnan(part):
        return ""
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    if 0 < percent < 10 or 99 < percent < 100:
        return f"{percent:.1f} %"
    return f"{percent:.0f} %"


def upper_share(bound: float) -> str:
    """An upper bound as a percentage with two digits, rounded up to stay an upper bound."""
    digits = 1 - math.floor(math.log10(100 * bound))
    scale = 10**digits
    return f"{math.ceil(100 * bound * scale) / scale:.{max(digits, 0)}f} %"


def rate(value: float) -> str:
    """A learning rate as people write it."""
    return f"{value:.6g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.3g}"


def number(value: float) -> str:
    """A metric in at most nine characters."""
    return f"{value:.3g}"


def p_text(value: float | None) -> str:
    """A p-value; empty if there is none."""
    if value is None:
        return ""
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"

"""The colour of a share of dead units: the same for a site, and for a cell of a heat map."""

_LIMITS = (0.05, 0.2, 0.5, 1.0)  # shares from which the next colour begins


def heat(part: float) -> str:
    """`0` where none is dead, `1` to `4` for some, `5` for all: what the style sheet calls it."""
    if part <= 0:
        return "0"
    return str(1 + sum(part >= limit for limit in _LIMITS))

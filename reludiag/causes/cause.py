"""Cause: what killed the units of a site or of a whole run, according to the evidence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """One measured quantity, and what it means."""

    what: str
    value: float | int | str
    meaning: str


@dataclass(frozen=True)
class Cause:
    """Why units died: the explanation with the best evidence."""

    kind: str
    """Its name in the table of kinds: `learning_rate`, `initialization`, ...; `none` if not more
    units are dead than by chance; `undetermined` if the evidence names no cause.
    """
    site: str | None
    """None for the whole run."""
    share: float
    """Share of the units dead at the end that this explains; for a divergence, the share of all
    units that are not finite.
    """
    identifiable: bool
    """Whether this run alone can prove the cause.

    If not, the kind is the likeliest one, and `confirm` is the experiment that would decide.
    """
    evidence: tuple[Evidence, ...]
    sentence: str
    advice: str
    """Empty if there is nothing to do."""
    confirm: str
    """The command that would confirm it by experiment; TRAIN stands for the user's function.

    Empty if there is none.
    """


def rounded(value: float) -> float:
    """To four significant digits, as evidence is given."""
    return float(f"{value:.4g}")

"""Cause: what the evidence says killed the units of a site, or of a whole run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """One thing that was measured, and what it means."""

    what: str
    value: float | int | str
    meaning: str


@dataclass(frozen=True)
class Cause:
    """Why units died: the best-supported explanation, with what supports it."""

    kind: str
    """Its name in the table of kinds: `learning_rate`, `initialization`, ...; `none` where no more
    is dead than chance leaves; `undetermined` where the evidence names nothing."""
    site: str | None
    """None of the run as a whole."""
    share: float
    """Of the units that are dead in the end, those that this explains; of a divergence, the units
    of all that are not finite."""
    identifiable: bool
    """Whether this run alone can tell. Where it cannot, the kind is the likeliest, and `confirm`
    names the experiment that would."""
    evidence: tuple[Evidence, ...]
    sentence: str
    advice: str
    """Empty where there is nothing to do."""
    confirm: str
    """The command that would confirm it by experiment; TRAIN stands for the user's function. Empty
    where there is none."""


def rounded(value: float) -> float:
    """To four significant digits, as evidence is given."""
    return float(f"{value:.4g}")

"""Counterfactual: what the dead units of a run say, beside those of the same run made otherwise.

Same seed, same order of data, and one thing changed: the difference is of that thing. With the
learning rate scaled, the initialization changed, and both, there are four answers to "why":

    one of the changes alone prevents the deaths     it is the cause
    each of them alone does                          either is enough, and both take part
    only both together do                            each masks the other: both must be fixed
                                                     (where no unit is born dead, the learning
                                                     rate was not lowered enough instead)
    not even both                                    the cause is elsewhere
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from reludiag.experiments.trials import METRIC

HEALTHY = 0.05
"""With at most this share of units dead there is nothing to explain: healthy runs of a small
network on digits have 0 to 3 %, and one that is deep is born with some (facts of its depth)."""
PREVENTED = 0.8
"""A change that prevents at least this share of the deaths explains them. Of an MLP on digits whose
cause was built in, the change that undoes it prevented 93 to 98 %, and another change at most 3 %;
of the sample models 91 to 99 % where it does at all."""
MOSTLY = 0.5
"""A learning rate that is lowered and prevents at least this share is the cause, though still too
high, if the initialization has killed nothing by itself: not at step 0, nor where it is changed.
Set after two of the sample models, of which a tenth of the learning rate prevented 68 and 71 %."""
PARTLY = 0.2
"""One that prevents at least this share takes part. A choice: the dead fraction of the MLP differs
by a tenth of itself between seeds, that of other networks by more, hence `agreeing`."""

ANSWERS = (
    "learning_rate",
    "initialization",
    "either",
    "both",
    "neither",
    "none",
    "divergence",
    "undetermined",
)
FACTUAL, RATE, INIT, BOTH = "factual", "lr", "init", "both"
ARMS = (FACTUAL, RATE, INIT, BOTH)


@dataclass(frozen=True)
class Arm:
    """The runs made in one way; the shares are means over those that were completed."""

    name: str
    """`factual`, `lr`, `init` or `both`: what was changed."""
    runs: int
    counted: int
    """Completed: neither crashed nor diverged."""
    diverged: int
    crashed: int
    dead: float | None
    """Share of units dead at the end."""
    born: float | None
    """Share of units dead at step 0."""
    new: float | None
    """Share of units alive at step 0 and dead at the end."""
    prevented: float | None
    """Share of the factual run's deaths that it does not have; below 0 where it has more."""
    metrics: Mapping[str, float]
    """Means of what train returned: a change that prevents learning prevents deaths as well."""


@dataclass(frozen=True)
class Answer:
    """What the arms say together."""

    kind: str
    """One of `ANSWERS`."""
    dominant: str | None
    """Where both must be fixed, `learning_rate` or `initialization` if it alone already prevents
    a part of the deaths, and more than the other."""
    agreeing: int
    """Seeds that say the same by themselves."""
    seeds: int
    """Seeds that can be asked."""


def arms_of(trials: pd.DataFrame) -> tuple[Arm, ...]:
    """The arms of a table of trials that has a column `arm` as well, in the order of `ARMS`."""
    by_arm = {name: trials[trials["arm"] == name] for name in ARMS}
    factual = by_arm[FACTUAL]
    return tuple(_arm(name, rows, factual) for name, rows in by_arm.items() if len(rows))


def answer(trials: pd.DataFrame) -> Answer:
    """The answer of all seeds together, and how many of them give it alone."""
    kind, dominant = _decide({arm.name: arm for arm in arms_of(trials)})
    each = [
        _decide({arm.name: arm for arm in arms_of(rows)})[0] for _, rows in trials.groupby("seed")
    ]
    return Answer(kind, dominant, each.count(kind), len(each))


def _decide(arms: Mapping[str, Arm]) -> tuple[str, str | None]:
    factual = arms[FACTUAL]
    if factual.dead is None:
        return ("divergence" if factual.diverged else "undetermined"), None
    if factual.dead <= HEALTHY:
        return "none", None
    by_rate, by_init, by_both = (_prevented(arms.get(name)) for name in (RATE, INIT, BOTH))
    if by_rate >= PREVENTED and by_init >= PREVENTED:
        return "either", None
    if by_rate >= PREVENTED:
        return "learning_rate", None
    if by_init >= PREVENTED:
        return "initialization", None
    born = factual.born is not None and factual.born > HEALTHY
    if by_rate >= MOSTLY and not by_init >= PARTLY and not born:
        return "learning_rate", None
    if by_both >= PREVENTED:
        if max(by_rate, by_init) < PARTLY or abs(by_rate - by_init) < PARTLY:
            return "both", None
        return "both", "learning_rate" if by_rate > by_init else "initialization"
    if all(arm.dead is None for name, arm in arms.items() if name != FACTUAL):
        return "undetermined", None
    return "neither", None


def _prevented(arm: Arm | None) -> float:
    """NaN, which is less than every share, where the arm was not run to its end."""
    return math.nan if arm is None or arm.prevented is None else arm.prevented


def _arm(name: str, rows: pd.DataFrame, factual: pd.DataFrame) -> Arm:
    # Seeds differ: a change is only seen beside the same seed unchanged.
    both = set(_completed(rows)["seed"]) & set(_completed(factual)["seed"])
    before, after = (_mean(of[of["seed"].isin(both)], "dead") for of in (factual, rows))
    return Arm(
        name=name,
        runs=len(rows),
        counted=int((rows["status"] == "complete").sum()),
        diverged=int((rows["status"] == "diverged").sum()),
        crashed=int((rows["status"] == "crashed").sum()),
        dead=_mean(rows, "dead"),
        born=_mean(rows, "born"),
        new=_mean(rows, "new"),
        prevented=None if after is None or not before else 1 - after / before,
        metrics={
            str(name).removeprefix(METRIC): float(mean)
            for name, mean in _completed(rows).filter(like=METRIC).mean().items()
        },
    )


def _mean(rows: pd.DataFrame, column: str) -> float | None:
    """Mean share of units over the completed runs; None if there is none."""
    complete = _completed(rows)
    complete = complete[complete["units"] > 0]
    shares: Sequence[float] = (complete[column] / complete["units"]).dropna().tolist()
    return sum(shares) / len(shares) if shares else None


def _completed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["status"] == "complete"]

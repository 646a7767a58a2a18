"""Counterfactual: what the dead units of a run say, beside those of the same run made otherwise.

Same seed, same order of data, and one thing changed: the difference is of that thing. With the
learning rate scaled, the initialization changed, and both, there are four answers to "why":

    one of the changes alone prevents the deaths     it is the cause
    each of them alone does                          either is enough, and both take part
    only both together do                            each masks the other: both must be fixed
                                                     (where no unit is born dead, the learning
                                                     rate was not lowered enough instead)
    not even both                                    the cause is elsewhere

What a change prevents is told of what can be prevented: chance leaves some units of a deep network
dead at step 0 whatever scheme draws its weights. A change whose runs did not get to their end says
nothing, and what would need it cannot be told.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from reludiag.experiments.trial_table import METRIC

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
    """Share of the factual run's deaths that can be prevented that it does not have; below 0 where
    it has more. Those born dead under either scheme cannot be; where no more than `HEALTHY` is
    left, it is the share of all deaths. None if no seed was completed here and as it is."""
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
    factual, floor = by_arm[FACTUAL], _floor(by_arm)
    return tuple(_arm(name, rows, factual, floor) for name, rows in by_arm.items() if len(rows))


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
    lost = {name for name, arm in arms.items() if arm.prevented is None}
    # What is born dead under both schemes sets the floor, so that redrawing prevents all other
    # births by definition: where most deaths remain, it must be judged by all of them.
    by_init, by_both = (
        _of_all(share, factual.dead, arms.get(name))
        for share, name in ((by_init, INIT), (by_both, BOTH))
    )
    if by_rate >= PREVENTED and by_init >= PREVENTED:
        return "either", None
    if by_rate >= PREVENTED:
        return "learning_rate", None
    if by_init >= PREVENTED:
        return "initialization", None
    born = _births_prevented(arms) > HEALTHY
    if by_rate >= MOSTLY and not by_init >= PARTLY and not born and INIT not in lost:
        return "learning_rate", None
    if by_init >= MOSTLY and by_rate < PARTLY and by_both - by_init < PARTLY:
        return "initialization", None  # a lower learning rate adds next to nothing to it
    if by_both >= PREVENTED and not lost:
        if max(by_rate, by_init) < PARTLY or abs(by_rate - by_init) < PARTLY:
            return "both", None
        return "both", "learning_rate" if by_rate > by_init else "initialization"
    return ("undetermined" if lost else "neither"), None


def _of_all(prevented: float, before: float, arm: Arm | None) -> float:
    if arm is None or arm.dead is None or arm.dead <= (1 - MOSTLY) * before:
        return prevented
    return min(prevented, 1 - arm.dead / before)


def _births_prevented(arms: Mapping[str, Arm]) -> float:
    """Share of units born dead as it is, and not where the scheme is redrawn, if that was tried."""
    born = arms[FACTUAL].born or 0.0
    remaining = [arms[name].born for name in (INIT, BOTH) if name in arms]
    return born - min((share for share in remaining if share is not None), default=0.0)


def _floor(by_arm: Mapping[str, pd.DataFrame]) -> float:
    """Share of units that no change can save: born dead as it is and where the scheme is redrawn,
    and no more than the best arm has.
    """
    births = [_mean(by_arm[name], "born") for name in (FACTUAL, INIT, BOTH)]
    if births[0] is None:
        return 0.0
    deaths = [_mean(rows, "dead") for rows in by_arm.values()]
    return min(share for share in (*births, *deaths) if share is not None)


def _prevented(arm: Arm | None) -> float:
    """NaN, which is less than every share, where the arm was not run to its end."""
    return math.nan if arm is None or arm.prevented is None else arm.prevented


def _arm(name: str, rows: pd.DataFrame, factual: pd.DataFrame, floor: float) -> Arm:
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
        prevented=_prevented_share(before, after, floor),
        metrics={
            str(name).removeprefix(METRIC): float(mean)
            for name, mean in _completed(rows).filter(like=METRIC).mean().items()
        },
    )


def _prevented_share(before: float | None, after: float | None, floor: float) -> float | None:
    if before is None or after is None or not before:
        return None
    preventable = before - floor if before - floor > HEALTHY else before
    return (before - after) / preventable


def _mean(rows: pd.DataFrame, column: str) -> float | None:
    """Mean share of units over the completed runs; None if there is none."""
    complete = _completed(rows)
    complete = complete[complete["units"] > 0]
    shares: Sequence[float] = (complete[column] / complete["units"]).dropna().tolist()
    return sum(shares) / len(shares) if shares else None


def _completed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["status"] == "complete"]

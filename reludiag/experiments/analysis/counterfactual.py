"""Counterfactual: compares the dead units of a run with those of the same run with one change.

Seed and order of the data are the same and one thing is changed, so the difference is caused by
that thing. With the learning rate scaled, the initialization changed, and both, there are these
answers to "why":

    one of the changes alone prevents the deaths     it is the cause
    each of them alone does                          either is enough, and both take part
    only both together do                            each masks the other: both must be fixed
                                                     (where no unit is born dead, the learning
                                                     rate was not lowered enough instead)
    not even both                                    the cause is elsewhere

Only preventable deaths count: by chance some units of a deep network are dead at step 0 under every
scheme. A change whose runs did not finish is ignored, and conclusions that need it are not drawn.
So is a scheme that left the weights of the dead units as they were.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from reludiag.experiments.trial_table import METRIC

HEALTHY = 0.05
"""With at most this share of dead units there is nothing to explain: healthy runs of a small
network on digits have 0 to 3 %, and deep networks have some dead units at step 0.
"""
PREVENTED = 0.8
"""A change that prevents at least this share of the deaths explains them.

For an MLP on digits with a planted cause, the change that removes it prevented 93 to 98 %, and
another change at most 3 %; for the sample models it was 91 to 99 %, where the change works at all.
"""
MOSTLY = 0.5
"""If lowering the learning rate prevents at least this share, the rate is the cause but still too
high, provided that the initialization alone killed no units (neither at step 0, nor when it is
changed). Chosen from two of the sample models, in which a tenth of the learning rate prevented
68 and 71 %.
"""
PARTLY = 0.2
"""A change that prevents at least this share is part of the cause.

This is a choice: between seeds the dead fraction of the MLP varies by a tenth of itself, that of
other networks by more, hence `agreeing`.
"""

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
    """The runs with one kind of change; the shares are means over the completed runs."""

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
    """Share of the factual run's preventable deaths that this arm avoids; below 0 if it has more
    deaths. Units born dead under either scheme are not preventable; if at most `HEALTHY` is
    left, it is the share of all deaths. None if no seed was completed both here and in the
    factual run.
    """
    undrawn: float | None
    """Share of units that are dead at the end and whose weights the scheme left as they were: of
    these the runs show nothing, and above `HEALTHY` nothing is concluded from them."""
    metrics: Mapping[str, float]
    """Means of what train returned: a change that prevents learning also prevents deaths."""


@dataclass(frozen=True)
class Answer:
    """The conclusion from all arms."""

    kind: str
    """One of `ANSWERS`."""
    dominant: str | None
    """If both must be fixed: `learning_rate` or `initialization`, if fixing it alone prevents a
    part of the deaths, and more than fixing the other.
    """
    agreeing: int
    """Seeds that give the same answer alone."""
    seeds: int
    """Seeds that give an answer."""


def arms_of(trials: pd.DataFrame) -> tuple[Arm, ...]:
    """The arms of a table of trials that has a column `arm` as well, in the order of `ARMS`."""
    by_arm = {name: trials[trials["arm"] == name] for name in ARMS}
    factual, floor = by_arm[FACTUAL], _floor(by_arm)
    return tuple(_arm(name, rows, factual, floor) for name, rows in by_arm.items() if len(rows))


def answer(trials: pd.DataFrame) -> Answer:
    """The answer of all seeds together, and the number of seeds that give it alone."""
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
    # Units born dead under both schemes set the floor, so redrawing prevents all other
    # births by definition. If most deaths remain, the change is judged by all deaths.
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


def _of_all(prevented: float, factual_dead: float, arm: Arm | None) -> float:
    if arm is None or arm.dead is None or arm.dead <= (1 - MOSTLY) * factual_dead:
        return prevented
    return min(prevented, 1 - arm.dead / factual_dead)


def _births_prevented(arms: Mapping[str, Arm]) -> float:
    """Share of units born dead in the factual run, but not with the other scheme if tried."""
    born = arms[FACTUAL].born or 0.0
    remaining = [arms[name].born for name in (INIT, BOTH) if name in arms]
    return born - min((share for share in remaining if share is not None), default=0.0)


def _floor(by_arm: Mapping[str, pd.DataFrame]) -> float:
    """Share of units that no change can save: born dead in the factual run and with the other
    scheme. It is not more than the dead share of the best arm.
    """
    births = [_mean(by_arm[name], "born") for name in (FACTUAL, INIT, BOTH)]
    if births[0] is None:
        return 0.0
    deaths = [_mean(rows, "dead") for rows in by_arm.values()]
    return min(share for share in (*births, *deaths) if share is not None)


def _prevented(arm: Arm | None) -> float:
    """NaN, which compares false with every share, if the arm has no completed run."""
    return math.nan if arm is None or arm.prevented is None else arm.prevented


def _arm(name: str, rows: pd.DataFrame, factual: pd.DataFrame, floor: float) -> Arm:
    # Seeds differ: a change is only seen beside the same seed unchanged.
    both = set(_completed(rows)["seed"]) & set(_completed(factual)["seed"])
    dead_unchanged, dead_changed = (
        _mean(of[of["seed"].isin(both)], "dead") for of in (factual, rows)
    )
    undrawn = _mean(rows, "undrawn") if "undrawn" in rows else None
    return Arm(
        name=name,
        runs=len(rows),
        counted=int((rows["status"] == "complete").sum()),
        diverged=int((rows["status"] == "diverged").sum()),
        crashed=int((rows["status"] == "crashed").sum()),
        dead=_mean(rows, "dead"),
        born=_mean(rows, "born"),
        new=_mean(rows, "new"),
        prevented=(
            None
            if undrawn is not None and undrawn > HEALTHY
            else _prevented_share(dead_unchanged, dead_changed, floor)
        ),
        undrawn=undrawn,
        metrics={
            str(name).removeprefix(METRIC): float(mean)
            for name, mean in _completed(rows).filter(like=METRIC).mean().items()
        },
    )


def _prevented_share(
    dead_unchanged: float | None, dead_changed: float | None, floor: float
) -> float | None:
    if dead_unchanged is None or dead_changed is None or not dead_unchanged:
        return None
    preventable = dead_unchanged - floor if dead_unchanged - floor > HEALTHY else dead_unchanged
    return (dead_unchanged - dead_changed) / preventable


def _mean(rows: pd.DataFrame, column: str) -> float | None:
    """Mean share of units over the completed runs; None if there is none."""
    complete = _completed(rows)
    complete = complete[complete["units"] > 0]
    shares: Sequence[float] = (complete[column] / complete["units"]).dropna().tolist()
    return sum(shares) / len(shares) if shares else None


def _completed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["status"] == "complete"]

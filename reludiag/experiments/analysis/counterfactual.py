"""Counterfactual: compares the dead units of a run with those of the same run with one change.

Seed and order of the data are the same and one thing is changed, so the difference is caused by
that thing. With the learning rate scaled, the initialization or any other setting changed, and all
of them together, there are these answers to "why":

    one of the changes alone prevents the deaths     it is the cause
    several of them alone do                         either is enough, and all take part
    only all together do                             each masks the other: all must be fixed
                                                     (where no unit is born dead, the learning
                                                     rate was not lowered enough instead)
    not even all                                     the cause is elsewhere

A lower rate in the same number of steps moves the weights less. With as many more steps they move
as far: if units die then as well, the rate only hurries what kills them.

Only preventable deaths count: by chance some units of a deep network are dead at step 0 under every
scheme. A change whose runs did not finish is ignored, and conclusions that need it are not drawn.
So is a scheme that left the weights of the dead units as they were.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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
    "input",
    "either",
    "both",
    "neither",
    "none",
    "divergence",
    "undetermined",
)
"""The answers, beside the names of other settings that were changed."""
FACTUAL, RATE, INIT, INPUT, BOTH = "factual", "lr", "init", "input", "both"
TRAVEL = "lr, more steps"
"""Names of arms; of another setting it is `name=value`. `both` are all changes together, `TRAVEL`
is the lower rate with as many more steps.
"""
_KINDS = {RATE: "learning_rate", INIT: "initialization", INPUT: "input"}


@dataclass(frozen=True)
class Arm:
    """The runs with one kind of change; the shares are means over the completed runs."""

    name: str
    """What was changed: `factual` (nothing), `lr`, `init`, `input`, a setting as `weight_decay=0`,
    `both` (all of them), or `lr, more steps`."""
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
    """One of `ANSWERS`, or the name of another setting that was changed."""
    dominant: str | None
    """If all must be fixed: `learning_rate`, `initialization` or another, if fixing it alone
    prevents a part of the deaths, and more than fixing any other.
    """
    agreeing: int
    """Seeds that give the same answer alone."""
    seeds: int
    """Seeds that give an answer."""


def kind_of(arm: str) -> str:
    """The kind of the answer if this change alone prevents the deaths."""
    return _KINDS.get(arm) or arm.partition("=")[0]


def single_changes(arms: Iterable[str]) -> list[str]:
    """The names of the arms that change one thing."""
    return [name for name in arms if name not in (FACTUAL, BOTH, TRAVEL)]


def arms_of(trials: pd.DataFrame) -> tuple[Arm, ...]:
    """The arms of a table of trials that has a column `arm` as well, in its order."""
    names = list(dict.fromkeys([FACTUAL, *trials["arm"]]))
    by_arm = {name: trials[trials["arm"] == name] for name in names}
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
    singles = single_changes(arms)
    # Units born dead unchanged and with a change set the floor, so redrawing prevents all other
    # births by definition. If most deaths remain, such a change is judged by all deaths.
    share = {
        name: _prevented(arm)
        if name in (RATE, TRAVEL)
        else _of_all(_prevented(arm), factual.dead, arm)
        for name, arm in arms.items()
    }
    if TRAVEL in arms and RATE in arms:
        share[RATE] = min(share[RATE], share[TRAVEL])
    lost = {name for name, arm in arms.items() if arm.prevented is None}
    enough = [name for name in singles if share[name] >= PREVENTED]
    if enough:
        return ("either" if len(enough) > 1 else kind_of(enough[0])), None
    best = max(singles, key=lambda name: (share[name] >= 0, share[name]))
    others = [share[name] for name in singles if name != best]
    if best == RATE and share[RATE] >= MOSTLY:
        least = not any(each >= PARTLY for each in others)
        if least and not _births_prevented(arms) > HEALTHY and not lost.intersection(singles):
            return kind_of(best), None
    elif (
        share[best] >= MOSTLY
        and all(each < PARTLY for each in others)
        and BOTH in arms
        and share[BOTH] - share[best] < PARTLY
    ):
        return kind_of(best), None  # the others add next to nothing to it
    if BOTH in arms and share[BOTH] >= PREVENTED and not lost:
        if share[best] < PARTLY or share[best] - max(others) < PARTLY:
            return "both", None
        return "both", kind_of(best)
    return ("undetermined" if lost else "neither"), None


def _of_all(prevented: float, factual_dead: float, arm: Arm) -> float:
    if arm.dead is None or arm.dead <= (1 - MOSTLY) * factual_dead:
        return prevented
    return min(prevented, 1 - arm.dead / factual_dead)


def _births_prevented(arms: Mapping[str, Arm]) -> float:
    """Share of units born dead in the factual run, but not with another change if tried."""
    born = arms[FACTUAL].born or 0.0
    remaining = [arm.born for name, arm in arms.items() if name not in (FACTUAL, RATE, TRAVEL)]
    return born - min((share for share in remaining if share is not None), default=0.0)


def _floor(by_arm: Mapping[str, pd.DataFrame]) -> float:
    """Share of units that no change can save: born dead in the factual run and with each change.
    It is not more than the dead share of the best arm.
    """
    births = [_mean(rows, "born") for rows in by_arm.values()]
    if births[0] is None:  # of the factual run
        return 0.0
    deaths = [_mean(rows, "dead") for rows in by_arm.values()]
    return min(share for share in (*births, *deaths) if share is not None)


def _prevented(arm: Arm) -> float:
    """NaN, which compares false with every share, if the arm has no completed run."""
    return math.nan if arm.prevented is None else arm.prevented


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

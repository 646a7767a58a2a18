"""The ledger: from the state of each unit at each snapshot to whether it was born dead and when it
died and revived.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
States = np.ndarray[Any, np.dtype[np.uint8]]

NEVER = -1
"""A step that stands for "never"."""


@dataclass(frozen=True)
class Ledger:
    """The life of one site's units; arrays `[unit]`, with steps `NEVER` if it did not happen."""

    born_known: bool
    """Whether the first snapshot is of step 0: only then are born dead units known."""
    born_dead: Mask
    died_step: Integers
    """Snapshot at which the unit last died."""
    previous_step: Integers
    """The snapshot before, at which it was still alive."""
    revived_step: Integers
    """Snapshot at which the unit last revived."""
    died: Mask
    """`[snapshot, unit]`: died in the window that ends there."""
    revived: Mask
    """`[snapshot, unit]`: revived in the window that ends there."""


class Lifelines:
    """The current state of one site's units, `[unit]`."""

    def __init__(self, units: int) -> None:
        self.dead = np.zeros(units, dtype=bool)
        """A unit that is not known to be dead or alive keeps its last known state."""
        self.had_state = np.zeros(units, dtype=bool)

    def advance(self, step: int, dead: Mask, has_state: Mask) -> tuple[Mask, Mask]:
        """Advance to a snapshot; returns which units have died and which have revived."""
        now = np.where(has_state, dead, self.dead)
        # Dead when first seen: born dead at step 0, otherwise it died at an earlier step.
        was_dead = self.dead | (has_state & ~self.had_state & now & (step == 0))
        died, revived = has_state & now & ~was_dead, has_state & ~now & self.dead
        self.dead, self.had_state = now, self.had_state | has_state
        return died, revived


def trace_lives(steps: Sequence[int], dead: Mask, has_state: Mask) -> Ledger:
    """Follow the units of one site through its snapshots.

    `dead` and `has_state` are `[snapshot, unit]`; a unit that is not known to be dead or alive (its
    site was not called, or it was not finite) keeps its last known state. A unit that is dead when
    first seen, after step 0, died at that snapshot or before.
    """
    units = dead.shape[1]
    born_known = len(steps) > 0 and steps[0] == 0
    lives = Lifelines(units)
    last_alive = np.full(units, NEVER, dtype=np.int64)
    died_step, previous, revived_step = (np.full(units, NEVER, dtype=np.int64) for _ in range(3))
    died, revived = np.zeros_like(dead), np.zeros_like(dead)
    born = dead[0] & has_state[0] if born_known else np.zeros(units, dtype=bool)
    for index, step in enumerate(steps):
        died[index], revived[index] = lives.advance(step, dead[index], has_state[index])
        died_step[died[index]] = step
        previous[died[index]] = last_alive[died[index]]
        revived_step[revived[index]] = step
        last_alive[has_state[index] & ~lives.dead] = step
    return Ledger(born_known, born, died_step, previous, revived_step, died, revived)


class Life(IntEnum):
    """The state of a unit at a snapshot, including its history."""

    UNKNOWN = 0
    """Its site was not called."""
    ALIVE = 1
    REVIVED = 2
    """Alive again after having been dead."""
    BORN_DEAD = 3
    """Dead since step 0."""
    DEAD = 4
    NONFINITE = 5


@dataclass(frozen=True)
class Lives:
    """The state of every unit at every snapshot."""

    steps: tuple[int, ...]
    states: Mapping[str, States]
    """Of each site `[snapshot, unit]`, values of `Life`; sites in forward order."""


def life_states(born_known: bool, dead: Mask, has_state: Mask, nonfinite: Mask) -> States:
    """The `Life` of each unit of one site at each snapshot, all `[snapshot, unit]`.

    `has_state` marks units that are known to be dead or alive; `born_known` is as in the ledger.
    """
    states = np.where(dead, Life.DEAD, Life.ALIVE).astype(np.uint8)
    units = dead.shape[1]
    born, was_dead = np.full(units, born_known), np.zeros(units, dtype=bool)
    for index, row in enumerate(states):
        if index == 0:
            born &= has_state[0] & dead[0]
        born &= dead[index] | ~has_state[index]
        row[born & dead[index]] = Life.BORN_DEAD
        row[was_dead & ~dead[index]] = Life.REVIVED
        was_dead |= has_state[index] & dead[index]
    states[~has_state] = Life.UNKNOWN
    states[nonfinite] = Life.NONFINITE
    return states

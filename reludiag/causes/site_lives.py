"""Site lives: the life of a run's units, as all kinds of evidence read it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reludiag.recording import RecordedRun, RecordedSite
from reludiag.recording.learning_rates import LearningRates
from reludiag.recording.ledger import NEVER, Ledger, trace_lives
from reludiag.recording.observations import Baseline, Death, History, InputStatistics

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]

NEARLY = 0.95
"""A site with this share of dead units is almost completely dead: if one unit lives, its output has
one direction, on which half of the units that it feeds are silent.
"""


@dataclass(frozen=True)
class SiteLives:
    """One site that can die. Arrays are `[unit]`, or `[window]` between two snapshots."""

    recorded: RecordedSite
    order: int
    """Its place among the sites, in forward order."""
    ledger: Ledger
    born: Mask
    """Dead at step 0, also if they revived."""
    never_alive: Mask
    """Of these, dead at every snapshot."""
    new: Mask
    """Dead at the end, and alive at an earlier snapshot or first seen after step 0. A unit is also
    alive that fires on the statistics of the batch only (see `only_in_eval`)."""
    only_in_eval: Mask
    """Dead at the end on BatchNorm's running statistics, and not on those of the batch."""
    hidden: Mask
    """The other way round."""
    nonfinite: int
    """Units that are not finite at the end."""
    window_rates: Floats
    """Largest learning rate in each window; NaN if unknown."""
    exposure: Floats
    """Steps of each window times units alive at its beginning."""
    died: Integers
    """Units that died in each window."""
    rate_at_death: Floats
    """Learning rate of the window in which a unit last died; NaN if it did not."""
    dead_since: int
    """First snapshot from which all units stay dead to the end; NEVER if there is none."""
    nearly_dead_since: int
    """The same for a share of `NEARLY` of the units."""
    is_constant: bool
    """Whether at the last snapshot no unit's output varied over the samples."""
    deaths: tuple[Death, ...]
    """Deaths observed between snapshots on a probe."""
    histories: tuple[History, ...]
    """What moved the units that died, in order of steps."""
    unexamined: Mask
    """Units of whose last death no evidence was collected, for want of time."""
    baseline: Baseline | None
    layer: dict[str, Any] | None
    """Initialization of the layer that feeds it."""
    layer_input: InputStatistics | None

    @property
    def name(self) -> str:
        """Of the site."""
        return self.recorded.site.name

    @property
    def units(self) -> int:
        """Number of units."""
        return self.recorded.site.units or 0

    @property
    def dead(self) -> Mask:
        """Dead at the end."""
        return self.never_alive | self.new

    def is_last_death(self, unit: int, step: int) -> bool:
        """Whether a unit that is dead now, and was not born so, died at this step."""
        return bool(self.new[unit]) and step == int(self.ledger.died_step[unit])

    @property
    def collapsed_since(self) -> int:
        """Snapshot from which all units are dead; if some live, almost all."""
        return self.nearly_dead_since if self.dead_since == NEVER else self.dead_since


def median_of(values: Sequence[float]) -> float:
    """Of those that are known; NaN if none is."""
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else math.nan


def trace_sites(run: RecordedRun) -> list[SiteLives]:
    """The lives of all sites whose units can die, in forward order."""
    rates = LearningRates(run)
    observations = run.observations
    baselines = {baseline.site: baseline for baseline in observations.baselines}
    layers = {start.module: dict(start.layer) for start in observations.initial_layers}
    inputs = {each.module: each for each in observations.inputs}
    deaths: dict[str, list[Death]] = {}
    for death in observations.deaths:
        deaths.setdefault(death.site, []).append(death)
    position = {step: index for index, step in enumerate(run.steps)}
    histories: dict[str, list[History]] = {}
    for history in observations.histories:
        histories.setdefault(history.site, []).append(history)
    lives = []
    for order, recorded in enumerate(run.sites):
        site = recorded.site
        if not site.rectifier.can_die or not site.units or not run.steps:
            continue
        ledger = trace_lives(run.steps, recorded.dead_in_training, recorded.has_state)
        states = _states(recorded, recorded.dead_in_training)
        at_end = _states(recorded, recorded.dead)[-1]
        never_alive = ledger.born_dead & states.all(axis=0)
        steps = np.asarray(run.steps, dtype=np.int64)
        counts = recorded.counts
        lives.append(
            SiteLives(
                recorded=recorded,
                order=order,
                ledger=ledger,
                born=ledger.born_dead,
                never_alive=never_alive,
                new=at_end & ~never_alive,
                only_in_eval=at_end & recorded.only_in_eval[-1],
                hidden=recorded.hidden,
                nonfinite=int(recorded.nonfinite[-1].sum()),
                window_rates=np.array(
                    rates.by_window(recorded, run.steps, of_deaths=True)[1:], dtype=np.float64
                ),
                exposure=(np.diff(steps) * (~states[:-1]).sum(axis=1)).astype(np.float64),
                died=ledger.died[1:].sum(axis=1),
                rate_at_death=rates.at_death(recorded, ledger),
                dead_since=_dead_since(run.steps, states, 1.0),
                nearly_dead_since=_dead_since(run.steps, states, NEARLY),
                is_constant=counts.counted > 0 and bool((counts.maximum == counts.minimum).all()),
                deaths=tuple(
                    death
                    for death in deaths.get(site.name, ())
                    if not recorded.only_in_eval[position[death.step], death.unit]
                ),
                histories=tuple(histories.get(site.name, ())),
                unexamined=_unexamined(deaths.get(site.name, ()), ledger),
                baseline=baselines.get(site.name),
                # Of several layers that feed a site none is its layer.
                layer=None if site.producer is None else layers.get(site.producer),
                layer_input=None if site.producer is None else inputs.get(site.producer),
            )
        )
    return lives


def _unexamined(deaths: Sequence[Death], ledger: Ledger) -> Mask:
    units = np.zeros(len(ledger.died_step), dtype=bool)
    for death in deaths:
        if not death.examined and death.step == ledger.died_step[death.unit]:
            units[death.unit] = True
    return units


def collapsed_above(site: SiteLives, above: Sequence[SiteLives]) -> SiteLives | None:
    """The first earlier site that is completely dead, if the input here is constant since then;
    else the site directly before, if it is almost completely dead.

    A dead site with a shortcut around it silences nothing: outputs here still vary.
    """
    whole = next((each for each in above if each.dead_since != NEVER), None)
    if whole is not None:
        return whole if site.is_constant else None
    nearest = above[-1] if above else None
    is_first = site.layer_input is not None and site.layer_input.is_first
    is_sum = len(site.recorded.site.producers) > 1  # its input comes around the nearest site, too
    if nearest is None or is_first or is_sum or nearest.nearly_dead_since == NEVER:
        return None
    return nearest


def _states(recorded: RecordedSite, dead: Mask) -> Mask:
    """`[snapshot, unit]`: dead; if unknown, as at the previous snapshot."""
    states = dead & recorded.has_state
    for index in range(1, len(states)):
        states[index] = np.where(recorded.has_state[index], states[index], states[index - 1])
    if len(states):
        states[-1] &= ~recorded.nonfinite[-1]
    return states


def _dead_since(steps: Sequence[int], states: Mask, share: float) -> int:
    alive = np.flatnonzero(states.mean(axis=1) < share)
    first = int(alive[-1]) + 1 if len(alive) else 0
    return int(steps[first]) if first < len(steps) else NEVER

"""Compare: puts recordings of existing runs into the table of a sweep."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reludiag.errors import UsageError
from reludiag.experiments.trial_table import TRIAL_COLUMNS
from reludiag.recording import RecordedRun, RecordedSite, read_recording
from reludiag.recording.ledger import trace_lives
from reludiag.sites.site import Site
from reludiag.tables import table_of

UNKNOWN = "unknown"
"""The name of the initialization if a recording does not name it."""


def compare(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The table of trials of these recordings, one row each, in their order: `TRIAL_COLUMNS`.

    The learning rate is the largest of all steps and groups of the run. A run that has not ended or
    was interrupted is `crashed`, because its units had less time to die.

    Raises UsageError if a recording is given twice, RecordingError if one cannot be read.
    """
    files = [Path(path) for path in paths]
    twice = sorted({str(f) for f in files if [g.resolve() for g in files].count(f.resolve()) > 1})
    if twice:
        raise UsageError(
            f"{', '.join(twice)} was given more than once; expected each run once, because a run "
            "that counts twice makes every difference look surer than it is"
        )
    rows = [
        {"trial": index, **trial_row(read_recording(file)), "recording": str(file)}
        for index, file in enumerate(files)
    ]
    return table_of(TRIAL_COLUMNS, rows)


def trial_row(run: RecordedRun) -> dict[str, Any]:
    """One recording as a row of the table of trials; None for unknown values."""
    settings = _settings_of(run.facts)
    lives = [_lives(run, site) for site in run.sites if _can_die(site)]
    units, born, new, revived, dead, nonfinite = (
        sum(column) for column in (zip(*lives, strict=True) if lives else [()] * 6)
    )
    born_known = bool(run.steps) and run.steps[0] == 0
    ended = str(run.facts.get("status", "running"))
    error = "" if ended == "complete" else f"not complete: {ended}"
    return {
        "lr": max((rate for _, _, rate in run.learning_rates), default=math.nan),
        "init": str(settings.get("init", UNKNOWN)),
        "seed": settings.get("seed"),
        "status": "crashed" if error else "diverged" if nonfinite else "complete",
        "steps": run.steps[-1] if run.steps else 0,
        "units": units,
        "born": born if born_known else None,
        "new": new if born_known else None,
        "revived": revived,
        "dead": dead,
        "nonfinite": nonfinite,
        "dead_fraction": dead / units if units and not nonfinite else math.nan,
        "error": error,
        "probe": run.facts.get("probe_samples"),
        "notes": "\n".join([*run.facts.get("notes", []), *_left_notes(settings)]),
        "undrawn": _undrawn(run, settings),
    }


def _settings_of(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the run, from the facts of its recording."""
    trial = facts.get("trial")
    return {**facts, **trial} if isinstance(trial, Mapping) else facts


def _left_notes(settings: Mapping[str, Any]) -> list[str]:
    left = settings.get("left")
    return (
        [f"The scheme {settings.get('init')} leaves weights as they are: {left}."] if left else []
    )


def _undrawn(run: RecordedRun, settings: Mapping[str, Any]) -> int | None:
    """Units that are dead at the end, of sites not all of whose weights were drawn by a scheme;
    None if nothing was to be drawn.
    """
    if "drawn" not in settings:
        return None
    # A branch of a sum may come from another site, whose weights are its own affair.
    drawn = {*settings["drawn"], *(_branch_name(run, site.site) for site in run.sites)}
    kept = [
        site
        for site in run.sites
        if _can_die(site) and not (site.site.producers and drawn.issuperset(site.site.producers))
    ]
    return sum(_lives(run, site)[4] for site in kept)


def _branch_name(run: RecordedRun, site: Site) -> str:
    """How a producer names a branch that comes from this site."""
    owner = site.module or str(run.facts.get("model"))
    return f"{owner}:{site.operator}" if site.operator else owner


def _can_die(site: RecordedSite) -> bool:
    return site.site.rectifier.can_die and site.site.units is not None


def _lives(run: RecordedRun, site: RecordedSite) -> tuple[int, int, int, int, int, int]:
    """Counts of one site: units, born, new, revived, dead at the end, not finite at the end."""
    units = site.site.units or 0
    if not run.steps:
        return units, 0, 0, 0, 0, 0
    ledger = trace_lives(run.steps, site.dead_in_training, site.has_state)
    # A window in which the site was not called says nothing: the last that does, stands.
    informative = site.has_state | site.nonfinite
    last = len(run.steps) - 1 - np.argmax(informative[::-1], axis=0)
    here = (last, np.arange(units))
    nonfinite = site.nonfinite[here]
    dead = site.dead[here] & site.has_state[here] & ~nonfinite
    alive_first = site.has_state[0] & ~site.dead_in_training[0]
    return (
        units,
        int(ledger.born_dead.sum()),
        int((dead & alive_first).sum()),
        int(ledger.revived.any(axis=0).sum()),
        int(dead.sum()),
        int(nonfinite.sum()),
    )

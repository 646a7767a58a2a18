"""Edited: something beside the optimizer changed the weights, and units died then.

Weights are rounded, pruned, clamped after each step, or replaced by those of another state. Many
edits are meant and harmless: those that no deaths follow are no cause.
"""

import numpy as np

from reludiag.causes.cause import Change, Evidence
from reludiag.causes.chance import more_died
from reludiag.causes.incidents import Incidents, died_in, incidents
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.outlier import death_evidence, rounded_or_infinite
from reludiag.causes.site_lives import Mask
from reludiag.recording.observations import Edit

LARGE_EDIT = 0.1
"""An edit is an incident if it moves weights by at least this share of their norm."""
BESIDE_UPDATES = 3.0
"""It also has to be at least this many times as large as their usual update."""
OFTEN = 0.5
"""Weights that are edited after this share of the steps of a window are held by the edits there."""
NAMED = 3
"""Most modules that the account names."""


def large_edits(run: RunLives) -> tuple[Edit, ...]:
    """The edits that moved weights far."""
    return tuple(
        edit
        for edit in run.recorded.observations.edits
        if edit.size >= LARGE_EDIT and not edit.size < BESIDE_UPDATES * edit.update
    )


def _study(run: RunLives) -> Incidents | None:
    # The snapshot after a step is taken before what follows that step.
    return incidents(run, [edit.step + 1 for edit in large_edits(run)])


def _held(run: RunLives) -> Mask:
    """`[window]`: in which the weights were edited all the time, as far as the optimizer moved
    them.
    """
    ends = run.recorded.steps
    held = np.zeros(max(0, len(ends) - 1), dtype=bool)
    for edit in run.recorded.observations.edits:
        window = min(int(np.searchsorted(ends, edit.step + 1)) - 1, len(held) - 1)
        if window < 0 or edit.times < OFTEN * (ends[window + 1] - ends[window]):
            continue
        held[window] |= edit.size >= edit.update
    return held


def _windows(run: RunLives) -> Mask | None:
    """`[window]`: in which units died of an edit; None if they did in none."""
    study, held = run.once(_study), run.once(_held)
    kills = study is not None and study.kills
    if not run.once(more_died) and not (study is not None and study.is_conclusive):
        return None
    claimed = np.zeros_like(held)
    if study is not None and kills:
        claimed |= study.claimed
    if kills or (len(held) and held.all()):
        claimed |= held
    return claimed if claimed.any() else None


def _deaths(site: SiteAttribution) -> Mask | bool:
    windows = site.run.once(_windows)
    return False if windows is None else died_in(site, windows) | silenced_by_edit(site)


def silenced_by_edit(site: SiteAttribution) -> Mask | bool:
    """`[unit]`: which fell silent with an edit on running statistics alone: an edit of a norm or of
    a layer makes them wrong, too.
    """
    windows, dead = site.run.once(_windows), site.lives.recorded.dead
    if windows is None:
        return False
    # Window of the last snapshot at which it fired; of a unit that never did, none.
    last = len(dead) - 1 - np.argmin(dead[::-1], axis=0)
    since = np.minimum(last, len(windows) - 1)
    return np.asarray(site.lives.only_in_eval & ~dead.all(axis=0) & windows[since])


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    run = attribution.run
    study, edits = run.once(_study), run.recorded.observations.edits
    edit = max(large_edits(run) or edits, key=lambda each: each.size)
    times = sum(each.times for each in edits)
    modules = list(dict.fromkeys(module for each in edits for module in each.modules))
    names = ", ".join(f"'{module}'" for module in modules[:NAMED])
    names += ", ..." if len(modules) > NAMED else ""
    first = min(each.step for each in edits)
    when = (
        f"after step {edit.step}"
        if times == 1
        else f"after {times} steps, most after step {edit.step}"
    )
    is_proved = study is not None and study.is_conclusive
    deaths = ""
    if study is not None and study.kills:
        deaths = f"{study.deaths} of {study.all_deaths} deaths came in that window. "
    unproved = "" if is_proved else " This run alone cannot prove that units died of it."
    return Account(
        identifiable=is_proved,
        evidence=(
            Evidence(
                "largest edit",
                rounded_or_infinite(edit.size),
                f"norm of the change over norm of the weights of a parameter, {when}; its usual "
                f"update is {edit.update:.2g}",
            ),
            Evidence(
                "steps with an edit after them",
                times,
                f"the first seen after step {first}; of {names}",
            ),
            *(death_evidence(study) if study is not None else ()),
        ),
        sentence=f"Something beside the optimizer changed the weights of {names} {when}, by "
        f"{edit.size:.0%} of their norm. {deaths}".strip()
        + unproved,
        advice="",
        confirm="",
        changes=(
            Change(
                "edits",
                "leave out what changes the weights outside the optimizer, such as rounding, "
                "pruning, clamping or loading a state, or do it in smaller parts",
                tuple(modules),
                after="none",
            ),
        ),
    )


KIND = CauseKind(
    name="edited",
    title="an edit of the weights",
    badge="edited",
    clue="units died when something beside the optimizer changed the weights",
    rule=(
        f"between two steps a weight changed by at least {100 * LARGE_EDIT:g} % of its norm and "
        f"{BESIDE_UPDATES:g} usual updates, and at least three times as many units died per "
        "exposure in that window as before and later; it died then, in the windows after it as "
        "long as units died in each, or while weights were edited after most steps"
    ),
    deaths=_deaths,
    account=_account,
    advice_order=0,
)

"""Divergence: units are NaN or infinite. Of the run as a whole, whatever else its units died of."""

import math

import numpy as np

from reludiag.causes.cause import Evidence, rounded
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.learning_rate import LARGE_UPDATE
from reludiag.causes.rate_changes import lowered_rates
from reludiag.causes.scale_of_targets import (
    far_targets,
    standardized_targets,
    targets_evidence,
)
from reludiag.causes.variation import FALLBACK_SCALE
from reludiag.causes.wording import replay_command


def _of_run(attribution: RunAttribution) -> float:
    """The share of units that are not finite at the end."""
    nonfinite = sum(site.lives.nonfinite for site in attribution.sites)
    return nonfinite / sum(site.lives.units for site in attribution.sites) if nonfinite else 0.0


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    run, share = attribution.run.recorded, _of_run(attribution)
    first = next(site for site in attribution.sites if site.lives.nonfinite).lives
    step = run.steps[int(np.argmax(first.recorded.nonfinite.any(axis=1)))]
    if step == 0:
        return _of_the_beginning(share, first.name)
    rates = first.window_rates
    highest = float(np.nanmax(rates)) if np.isfinite(rates).any() else math.nan
    at = f" at a learning rate of up to {highest:.3g}" if math.isfinite(highest) else ""
    scale = _scale(attribution.run, step)
    targets = attribution.run.once(far_targets)
    changes = lowered_rates(
        run,
        [site.lives for site in attribution.sites if site.lives.nonfinite],
        scale=scale,
        remark=", or clip the gradients",
    )
    if targets is not None and targets.is_harmless_if_standardized:
        changes = (standardized_targets(targets),)
    return Account(
        identifiable=True,
        evidence=(
            Evidence(
                "first step not finite",
                step,
                f"snapshot at which '{first.name}' had NaN or infinite values",
            ),
            Evidence("not finite", rounded(share), "share of units, at the end"),
            *(() if targets is None else targets_evidence(targets)),
        ),
        sentence=(
            f"The run diverged by step {step}{at}: its units are NaN or infinite, so they are "
            "neither dead nor alive."
        ),
        advice="",
        confirm=replay_command(scale=scale),
        changes=changes,
    )


def _of_the_beginning(share: float, site: str) -> Account:
    return Account(
        identifiable=False,  # neither the weights nor the data were looked at
        evidence=(Evidence("not finite", rounded(share), "share of units, at the end"),),
        sentence=f"Units of '{site}' were NaN or infinite before the first step: the weights that "
        "the run began with, or its data, are not finite. No learning rate did that.",
        advice="look for NaN and infinite values in the checkpoint that the run began with, and in "
        "the data",
        confirm="reludiag init MODEL --data DATA",
    )


def _scale(run: RunLives, step: int) -> float:
    """The factor of the learning rate at which the first measured update would have been healthy.

    A step is proportional to the rate, so where it was thousands of times the weights, a tenth of
    the rate diverges, too. The first is of the initial weights, whatever the later ones did.
    """
    updates = [each for each in run.recorded.observations.updates if each.step <= step]
    first = min((each.step for each in updates), default=0)
    largest = max((each.ratio for each in updates if each.step == first), default=0.0)
    return min(FALLBACK_SCALE, LARGE_UPDATE / largest) if largest > 0 else FALLBACK_SCALE


KIND = CauseKind(
    name="divergence",
    title="the run diverged",
    clue="units have values that are not finite",
    rule=("any unit is not finite: this is then the cause of the run, whatever else happened"),
    of_run=_of_run,
    account=_account,
    share_of="units",
)

"""Divergence: units are NaN or infinite. Of the run as a whole, whatever else its units died of."""

import math

import numpy as np

from reludiag.causes.cause import Evidence, rounded
from reludiag.causes.kind import Account, CauseKind, RunAttribution, SiteAttribution
from reludiag.causes.wording import FALLBACK_SCALE, group_in_words, one_digit, replay_command


def _of_run(attribution: RunAttribution) -> float:
    """The share of units that are not finite at the end."""
    nonfinite = sum(site.lives.nonfinite for site in attribution.sites)
    return nonfinite / sum(site.lives.units for site in attribution.sites) if nonfinite else 0.0


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    run, share = attribution.run.recorded, _of_run(attribution)
    first = next(site for site in attribution.sites if site.lives.nonfinite).lives
    step = run.steps[int(np.argmax(first.recorded.nonfinite.any(axis=1)))]
    rates = first.window_rates
    highest = float(np.nanmax(rates)) if np.isfinite(rates).any() else math.nan
    at = f" at a learning rate of up to {highest:.3g}" if math.isfinite(highest) else ""
    lower = f" from {highest:.3g} to {one_digit(FALLBACK_SCALE * highest):.1g}" if at else ""
    return Account(
        identifiable=True,
        evidence=(
            Evidence(
                "first step not finite",
                step,
                f"snapshot at which '{first.name}' had NaN or infinite values",
            ),
            Evidence("not finite", rounded(share), "share of units, at the end"),
        ),
        sentence=(
            f"The run diverged by step {step}{at}: its units are NaN or infinite, so they are "
            "neither dead nor alive."
        ),
        advice=(
            f"lower the learning rate of {group_in_words(run, first)}{lower}, or clip the gradients"
        ),
        confirm=replay_command(scale=FALLBACK_SCALE),
    )


KIND = CauseKind(
    name="divergence",
    title="the run diverged",
    clue="units have values that are not finite",
    rule=("any unit is not finite: this is then the cause of the run, whatever else happened"),
    of_run=_of_run,
    account=_account,
    share_of="units",
)

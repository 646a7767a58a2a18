"""Input shift: whether the data is centred, and how many units born dead that explains.

Inputs that point the same way are all on the same side of a unit's plane, whatever the scheme that
drew it. gamma = |mean| / |standard deviation| of the input predicts death at initialization (Simon
et al. 2026, arXiv 2605.31518); subtracting the mean takes it away.
"""

import math

from reludiag.causes.cause import Change, Evidence, rounded
from reludiag.causes.chance import (
    FEW,
    FEW_UNEXPLAINED,
    born_by_chance,
    chance_evidence,
    more_died,
    several_born,
)
from reludiag.causes.input_scale import LARGE, LargeInput, large_input
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.shifted_data import Shift, data_shift
from reludiag.causes.site_lives import Mask
from reludiag.initialization.chance_deaths import born_dead_by_depth
from reludiag.measure.structure import UNCENTRED
from reludiag.recording.observations import InputStatistics


def uncentred_input(run: RunLives) -> InputStatistics | None:
    """The first layer's input that is furthest from centred; None if all are centred enough."""
    inputs = run.recorded.observations.inputs
    first = [each for each in inputs if each.is_first and each.gamma > UNCENTRED]
    return max(first, key=lambda each: each.gamma, default=None)


def _centred_share(site: SiteAttribution) -> float:
    """Share of a site's units that would be born dead by chance if the input were centred.

    `depth` layers lie between the input and the layer that feeds it.
    """
    samples = site.lives.recorded.samples
    first = int(samples[0]) if len(samples) else 0
    return born_dead_by_depth(0.0, max(1, first), site.depth + 1)[-1]


def _births(site: SiteAttribution) -> bool:
    if not several_born(site) or site.run.once(uncentred_input) is None:
        return False
    return int(site.lives.born.sum()) / site.lives.units - _centred_share(site) > FEW


def _deaths(site: SiteAttribution) -> Mask | bool:
    """Of a large input; one that is not centred gets those at sites where it explains most."""
    lives = site.lives
    if not site.run.once(more_died):
        return False
    again = int(((site.births == KIND.name) & lives.dead).sum())
    known = site.run.once(large_input) or site.run.once(data_shift)
    if known is None and 2 * again < int(lives.dead.sum()) and not site.run.once(_is_little):
        return False
    return ~lives.unexamined


def _is_little(run: RunLives) -> bool:
    """Whether the input is not centred, and so few units died that it may be due to this alone."""
    units = sum(site.units for site in run.sites)
    new = sum(int(site.new.sum()) for site in run.sites)
    return uncentred_input(run) is not None and new <= FEW_UNEXPLAINED * units


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    site = only or max(
        attribution.sites,
        key=lambda each: int((each.lives.born & (each.kinds == KIND.name)).sum()),
    )
    uncentred, lives = attribution.run.once(uncentred_input), site.lives
    if uncentred is None or site.tally[KIND.name] > 2 * int(lives.never_alive.sum()):
        if (shift := attribution.run.once(data_shift)) is not None:
            return _of_shift(shift)
        if (large := attribution.run.once(large_input)) is not None:
            return _of_large(large)
    assert uncentred is not None
    evidence = [
        Evidence(
            "gamma",
            rounded(uncentred.gamma),
            f"norm of the mean of the input of '{uncentred.module}' over norm of its standard "
            "deviation; above 1 it is not centred",
        )
    ]
    comparison = ""
    compared = not math.isnan(born_by_chance(lives))
    if compared:
        evidence += chance_evidence(lives)
        comparison = ", as they would be under any scheme"
    born = int(lives.born.sum())
    return Account(
        # It proves births. Later deaths have only the input's shift in common.
        identifiable=compared and site.tally[KIND.name] <= 2 * int(lives.never_alive.sum()),
        evidence=tuple(evidence),
        sentence=f"The input is not centred: its mean is {uncentred.gamma:.2g} times as long as "
        f"its standard deviation, so samples point the same way. {born} of {lives.units} units of "
        f"'{lives.name}' were dead before any training{comparison}.",
        advice="",
        confirm="reludiag replay TRAIN --center-input",
        changes=(
            Change(
                "input",
                f"subtract the mean of each feature from the input of '{uncentred.module}'",
                (uncentred.module,),
                after="centred",
            ),
        ),
    )


def _of_shift(shift: Shift) -> Account:
    before, after = shift.before, shift.after
    return Account(
        identifiable=False,  # what else changed then is not known
        evidence=(
            Evidence(
                "training input, first",
                f"{before.mean:.3g}, {before.std:.3g}",
                f"mean and standard deviation of a batch before step {before.step}",
            ),
            Evidence(
                "training input, shifted",
                f"{after.mean:.3g}, {after.std:.3g}",
                f"the same before step {after.step}",
            ),
        ),
        sentence=f"The data shifted by step {shift.step}: the mean of the inputs was "
        f"{before.mean:.3g} and became {after.mean:.3g}, their standard deviation {before.std:.3g} "
        f"and {after.std:.3g}. {shift.deaths_after} of {shift.deaths} deaths came with it or "
        f"later, after {shift.unshifted:.0%} of the steps.",
        advice="",
        confirm="",
        changes=(
            Change(
                "data",
                f"look at what the data loader returns from step {shift.step} on: it must be "
                "scaled as before",
                after="as before",
            ),
        ),
    )


def _of_large(large: LargeInput) -> Account:
    scale = large.scale
    smaller = ""
    if not math.isnan(large.needed):
        smaller = f"; at {large.needed:.2g} times smaller steps half of the units would have lived"
    return Account(
        # A lower rate makes smaller steps, too: only another run can tell which is at fault.
        identifiable=False,
        evidence=(
            Evidence(
                "scale of the input",
                rounded(scale.rms),
                f"root mean square of the input of '{scale.layer}'; a standardized one has 1. "
                f"Values from {scale.low:.4g} to {scale.high:.4g}",
            ),
        ),
        sentence=f"Units died in training on a large input: its root mean square is "
        f"{scale.rms:.3g}, where a standardized one has 1. So steps moved the pre-activations of "
        f"'{scale.layer}' about {large.factor:.2g} times as far as they would on a standardized "
        f"input{smaller}.",
        advice="",
        confirm="reludiag init MODEL --data STANDARDIZED",
        changes=(
            Change(
                "input",
                f"standardize the input of '{scale.layer}': subtract the mean of each feature and "
                "divide by its standard deviation, as of the training data",
                (scale.layer,),
                after="standardized",
            ),
        ),
    )


KIND = CauseKind(
    name="input_shift",
    title="the input",
    clue="units are dead at step 0 under any scheme, and the input is far from centred",
    rule=(
        "it is dead since step 0; its site has about as many such units as the baseline, but "
        f"{100 * FEW:g} % more than with a centred input, and γ is above {UNCENTRED:g}. Or it died "
        f"in training with more than {100 * FEW:g} % of all units, and only the size of the steps "
        f"explains it: the root mean square of the input is above {LARGE:g}, and steps on a "
        "standardized input would be small enough for half of these units to survive. Or most "
        "units died after the training inputs had changed for good: their mean by a standard "
        "deviation, or this by a factor of 3"
    ),
    births=_births,
    deaths=_deaths,
    account=_account,
    advice_order=1,
)

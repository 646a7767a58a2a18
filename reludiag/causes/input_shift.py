"""Input shift: whether the data is centred, and how many units born dead that explains.

Inputs that point the same way are all on the same side of a unit's plane, whatever the scheme that
drew it. gamma = |mean| / |standard deviation| of the input predicts death at initialization (Simon
et al. 2026, arXiv 2605.31518); subtracting the mean takes it away.
"""

import math

from reludiag.causes.cause import Change, Evidence, rounded
from reludiag.causes.chance import FEW, born_by_chance, chance_evidence, more_died, several_born
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
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
    if not site.run.once(more_died) or site.run.once(uncentred_input) is None:
        return False
    return ~site.lives.unexamined


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    site = only or max(
        attribution.sites,
        key=lambda each: int((each.lives.born & (each.kinds == KIND.name)).sum()),
    )
    uncentred, lives = attribution.run.once(uncentred_input), site.lives
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


KIND = CauseKind(
    name="input_shift",
    title="the input",
    clue="units are dead at step 0 under any scheme, and the input is far from centred",
    rule=(
        "it is dead since step 0, its site has not clearly more such units than the baseline, but "
        f"{100 * FEW:g} % more than it would have with a centred input, and γ is above "
        f"{UNCENTRED:g}; or it died in training with more than {100 * FEW:g} % of all units, γ is "
        f"above {UNCENTRED:g}, and "
        "there is no evidence for another cause"
    ),
    births=_births,
    deaths=_deaths,
    account=_account,
    advice_order=1,
)

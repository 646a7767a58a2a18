"""Outlier: one step moved the weights many times as far as the others, at the same learning rate.

A batch in other units, a few broken samples, a target far off, or a loss that is summed where it is
a mean elsewhere does that to SGD. Adam and its like bound the size of a step: it kills few units
there.
"""

import math

import numpy as np

from reludiag.causes.cause import Change, Evidence, rounded, text_of
from reludiag.causes.chance import more_died
from reludiag.causes.incidents import Incidents, died_in, incidents
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.learning_rate import LARGE_UPDATE
from reludiag.causes.shifted_data import changed_at
from reludiag.causes.site_lives import Mask
from reludiag.causes.wording import replay_of
from reludiag.recording.observations import JUMP, Jump

RISE, LATELY = 1.5, 32
"""After a learning rate that rose by this factor from one step to the next, the gradients may be
large for this many steps: what jumps then is a consequence of the rate."""


STAYS, LARGER = 2, 3.0
"""Where as many measured gradients after a jump are this many times the largest before it, it need
not have been a single batch."""


def jumps_of(run: RunLives) -> tuple[Jump, ...]:
    """The sudden jumps of a run, without those that the learning rate explains, or other inputs
    that came to stay.
    """
    rises = _rises(run)
    return tuple(
        jump
        for jump in run.recorded.observations.jumps
        if jump.is_sudden
        and not any(jump.step - LATELY <= step <= jump.step for step in rises)
        and not changed_at(run, jump.step)
    )


def _rises(run: RunLives) -> list[int]:
    """The steps at which a learning rate rose."""
    last: dict[str, float] = {}
    rises = []
    for step, group, rate in run.recorded.learning_rates:
        if group in last and rate > RISE * last[group]:
            rises.append(step)
        last[group] = rate
    return rises


def _study(run: RunLives) -> Incidents | None:
    return incidents(run, [jump.step for jump in jumps_of(run)])


def _deaths(site: SiteAttribution) -> Mask | bool:
    study = site.run.once(_study)
    if study is None or not study.kills:
        return False
    if not study.is_conclusive and not site.run.once(more_died):
        return False
    return died_in(site, study.claimed)


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    run = attribution.run
    study, jump = run.once(_study), run.once(_foremost)
    assert study is not None and jump is not None
    times = f"{jump.ratio:,.0f}" if math.isfinite(jump.ratio) else "infinitely many"
    usual = jump.size / jump.ratio
    limit = _usual_norm(run, jump)
    changes = (_clipped(limit),)
    return Account(
        identifiable=study.is_conclusive
        and usual < LARGE_UPDATE
        and not _stays_large(run, jump, limit),
        evidence=(
            Evidence(
                "largest jump",
                rounded_or_infinite(jump.ratio),
                f"update of step {jump.step}, relative to the weights and the learning rate, over "
                f"the median of the 32 before; without an outlier, {JUMP:g} at once is rare",
            ),
            Evidence(
                "size of that step",
                rounded_or_infinite(jump.size),
                "norm of the change over norm of the weights",
            ),
            *death_evidence(study),
            *_gradient_evidence(limit),
        ),
        sentence=(
            f"{study.deaths} of {study.all_deaths} deaths came with step {jump.step}, which moved "
            f"the weights {times} times as far as is usual at its learning rate. Its batch or its "
            "loss is unlike the others"
            + ("." if study.is_conclusive else ": this run alone cannot prove it.")
        ),
        advice=f"{text_of(changes)}; look at the batch of step {jump.step}, and at how its loss "
        "was computed; a loss such as smooth_l1_loss bounds what a target far off can do",
        confirm=replay_of(changes),
        changes=changes,
    )


def _clipped(limit: float | None) -> Change:
    """Clip the gradients at the largest norm that is usual."""
    if limit is None:
        return Change("clip_grad_norm", "clip the norm of the gradients")
    value = _one_digit_up(limit)
    sentence = f"clip the norm of the gradients at {value:.1g}, which it did not exceed before"
    return Change("clip_grad_norm", sentence, after=float(f"{value:.1g}"))


def _foremost(run: RunLives) -> Jump | None:
    """The jump in whose window most units died."""
    study, jumps = run.once(_study), jumps_of(run)
    if study is None:
        return None
    died, ends = np.sum([site.died for site in run.sites], axis=0), run.recorded.steps
    return max(jumps, key=lambda jump: int(died[int(np.searchsorted(ends, jump.step)) - 1]))


def _usual_norm(run: RunLives, jump: Jump) -> float | None:
    """The largest norm of the gradient in the measured steps before a jump."""
    norms = run.recorded.observations.gradient_norms
    before = [each.norm for each in norms if each.step < jump.step and math.isfinite(each.norm)]
    return max(before, default=0.0) or None


def _stays_large(run: RunLives, jump: Jump, limit: float | None) -> bool:
    """Whether gradients stay much larger after a jump, as with targets that are others for good."""
    norms = run.recorded.observations.gradient_norms
    after = [each.norm for each in norms if each.step > jump.step][:STAYS]
    return len(after) == STAYS and limit is not None and min(after) > LARGER * limit


def _one_digit_up(value: float) -> float:
    scale = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / scale - 1e-9) * scale


def rounded_or_infinite(value: float) -> float | str:
    """For evidence, which JSON has to hold."""
    return rounded(value) if math.isfinite(value) else "infinite"


def death_evidence(study: Incidents) -> list[Evidence]:
    """Whether the deaths came with the incidents."""
    return [
        Evidence(
            "deaths in its window",
            rounded(study.deaths / study.all_deaths),
            f"{study.deaths} of {study.all_deaths}, with {study.exposure:.0%} of the exposure; "
            f"p = {study.p_value:.1g} if units died independently, which they do not",
        )
    ]


def _gradient_evidence(limit: float | None) -> list[Evidence]:
    if limit is None:
        return []
    return [
        Evidence(
            "norm of the gradient before",
            rounded(limit),
            "the largest of the steps that were measured before: the first, and the last before "
            "each snapshot",
        )
    ]


KIND = CauseKind(
    name="outlier",
    title="an outlier",
    clue=(
        "units died with one step that moved the weights many times as far as the steps before it, "
        "at the same learning rate"
    ),
    rule=(
        f"a step moved the weights at least {JUMP:g} times as far as the median of the 32 before, "
        "at its learning rate, which came at once, not after a rise of the rate, nor with training "
        "inputs that are others from then on; at least three times as many units died per exposure "
        "in its window as before and later; and it died then or in the windows after it, as long "
        "as units died in each"
    ),
    deaths=_deaths,
    account=_account,
    advice_order=1,
)

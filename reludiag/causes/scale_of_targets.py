"""Scale of the targets: whether they are so far from 0 that steps of a usual rate kill units.

Of a squared error, the gradient at the output y is c (y - t), and the mean over all entries, which
is the default, has c = 2 / their number. So y and its gradient give the mean and the spread of the
targets t, exactly. They are the same in every step, whatever became of y: where what is computed is
not, the loss is another one, and nothing is said.

A step of SGD is proportional to y - t. On standardized targets, with mean 0 and standard deviation
1, it would be smaller by the root mean square of t. Adam and its like divide by the size of the
gradient: there it would be the same.
"""

import math
from dataclasses import dataclass

import numpy as np

from reludiag.causes.cause import Change, Evidence, rounded
from reludiag.causes.chance import more_died
from reludiag.causes.event_study import study_of
from reludiag.causes.input_scale import has_normalized_steps, large_input
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.rate_changes import lowered_rates
from reludiag.causes.regularization import is_candidate
from reludiag.causes.site_lives import Mask
from reludiag.causes.structure import is_misplaced
from reludiag.causes.wording import replay_of
from reludiag.recording.observations import OutputGradient
from reludiag.sites.consumers import only_returned

FAR = 3.0
"""Root mean square of targets that are far from standardized ones, which have 1."""
SAME = 0.25
"""Standard deviation of its logarithm over the measured steps, up to which it is the same."""
SHARED = 0.01
"""The gradients of a cross-entropy sum to 0 over the classes, but for rounding."""
USUAL, USUAL_CLIPPED = 0.1, 0.03
"""The first update, relative to the weights, that would be harmless on standardized targets: in
general, and where gradients are clipped, so that the larger ones were not as large as the targets.

Found on 48 trainings and held against 97 others, of five tasks with SGD, momentum and Adam at rates
from low to far too high, in all of which 10 % of the units or more died and are finite. Of 43 of
the others that live on standardized targets 29 are named, and the rest called the learning rate; of
54 that do not 2 are named, both with clipped gradients.
"""
CLIPPED = 1e-3
"""Norms of two gradients that are so close to the largest one were clipped."""


@dataclass(frozen=True)
class Targets:
    """The targets of one output, as its gradients show them: medians over the measured steps."""

    mean: float
    std: float
    steps: int
    """Number of steps that they are known from."""
    output_rms: float
    """Root mean square of the output in the first of them."""
    update: float
    """The largest first update of a layer, relative to its weights, at the highest rate of the
    run and with what momentum makes of it."""
    limit: float
    """What that may be on standardized targets."""

    @property
    def rms(self) -> float:
        """Root mean square."""
        return math.hypot(self.mean, self.std)

    @property
    def standardized_update(self) -> float:
        """The first update as it would be on standardized targets."""
        return self.update / self.rms

    @property
    def is_harmless_if_standardized(self) -> bool:
        """Whether units would then live at the same rate."""
        return self.standardized_update <= self.limit


def far_targets(run: RunLives) -> Targets | None:
    """The targets that are furthest from 0; None where none are far, where they are not known, and
    where an optimizer makes steps that do not depend on them.
    """
    if has_normalized_steps(run):
        return None
    outputs = {each.output for each in run.recorded.observations.output_gradients}
    known = [each for output in sorted(outputs) if (each := _targets(run, output)) is not None]
    return max(known, key=lambda each: each.rms, default=None)


def _targets(run: RunLives, output: int) -> Targets | None:
    seen = [each for each in run.recorded.observations.output_gradients if each.output == output]
    if min(each.shared for each in seen) < SHARED:
        return None
    series = [_of_squared_error(each) for each in seen]
    sizes = np.array([math.hypot(mean, std) for mean, std in series])
    first = seen[0]
    distance = first.count / 2 * math.hypot(first.gradient_mean, first.gradient_std)
    if not sizes.all() or float(np.median(sizes)) < FAR or distance < FAR:
        return None
    if float(np.std(np.log(sizes))) > SAME:
        return None
    clipped = _is_clipped(run)
    return Targets(
        mean=float(np.median([mean for mean, _ in series])),
        std=float(np.median([std for _, std in series])),
        steps=len(series),
        output_rms=math.hypot(first.mean, first.std),
        update=_first_update(run),
        limit=USUAL_CLIPPED if clipped else USUAL,
    )


def _of_squared_error(seen: OutputGradient) -> tuple[float, float]:
    """Mean and standard deviation of the targets of a mean squared error."""
    c = seen.count / 2
    variance = seen.std**2 - 2 * c * seen.covariance + (c * seen.gradient_std) ** 2
    return seen.mean - c * seen.gradient_mean, math.sqrt(max(0.0, variance))


def _first_update(run: RunLives) -> float:
    updates = run.recorded.observations.updates
    first = min((each.step for each in updates), default=0)
    ratio = max((each.ratio for each in updates if each.step == first), default=math.nan)
    rates = [(step, rate) for step, _, rate in run.recorded.learning_rates]
    at_first = max((rate for step, rate in rates if step <= first), default=0.0)
    if at_first > 0:
        ratio *= max(rate for _, rate in rates) / at_first
    momentum = max(dict(run.recorded.facts.get("momentum", {})).values(), default=0.0)
    return ratio / (1 - min(0.99, momentum))


def _is_clipped(run: RunLives) -> bool:
    norms = [each.norm for each in run.recorded.observations.gradient_norms]
    largest = max(norms, default=0.0)
    return sum(norm >= (1 - CLIPPED) * largest for norm in norms) > 1


def harmless_if_standardized(run: RunLives) -> Targets | None:
    """The far targets of a run, if units would live on standardized ones."""
    targets = run.once(far_targets)
    return targets if targets is not None and targets.is_harmless_if_standardized else None


def _deaths(site: SiteAttribution) -> Mask | bool:
    run = site.run
    if not run.once(more_died) or run.once(harmless_if_standardized) is None:
        return False
    study = run.once(study_of)
    if study is not None and study.is_conclusive:
        return False
    if run.once(large_input) is not None or is_candidate(site) or is_misplaced(site):
        return False
    if only_returned(site.lives.recorded.site.consumers):
        return False  # a rectified output: the loss may push it down, whatever the targets' scale
    return ~site.lives.unexamined


def standardized_targets(targets: Targets) -> Change:
    """What to do about far targets."""
    return Change(
        "targets",
        f"standardize the targets: subtract their mean, about {targets.mean:.3g}, and divide by "
        f"their standard deviation, about {targets.std:.3g}, of all training data",
        after="standardized",
    )


def targets_evidence(targets: Targets) -> tuple[Evidence, ...]:
    """How far they are from 0, and what that does to a step."""
    return (
        Evidence(
            "targets",
            f"{targets.mean:.3g}, {targets.std:.3g}",
            "mean and standard deviation, from the output and its gradient if the loss is the mean "
            f"squared error; median over {targets.steps} measured steps. The output began with a "
            f"root mean square of {targets.output_rms:.2g}",
        ),
        Evidence(
            "update on standardized targets",
            rounded(targets.standardized_update),
            f"largest first update of a layer at the highest rate of the run, {targets.update:.2g} "
            f"times its weights, over the root mean square of the targets; up to {targets.limit:g} "
            "units lived",
        ),
    )


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    targets = attribution.run.once(harmless_if_standardized)
    assert targets is not None
    sites = [only] if only else [each for each in attribution.sites if KIND.name in each.tally]
    rates = lowered_rates(attribution.run.recorded, [each.lives for each in sites])
    changes = (standardized_targets(targets),)
    return Account(
        identifiable=False,  # at a lower rate units may live on these targets, too
        evidence=targets_evidence(targets),
        sentence=f"Units died in training on targets far from 0: their mean is {targets.mean:.3g}, "
        f"their standard deviation {targets.std:.3g}, and so the steps of a squared error were "
        f"about {targets.rms:.2g} times as large as on standardized ones. Only another run can "
        "tell whether a lower learning rate would do as well.",
        advice="",
        confirm=replay_of(rates),
        changes=changes,
    )


KIND = CauseKind(
    name="scale_of_targets",
    title="the scale of the targets",
    badge="targets",
    clue="the targets of a squared error are far from 0, and so the steps of SGD are large",
    rule=(
        "it died in training with more than 3 % of all units, and only the size of the steps "
        "explains it. The optimizer does not divide by the size of the gradient, as Adam does. The "
        f"root mean square of the targets is above {FAR:g} in all measured steps; the first update "
        f"of each layer, divided by it, is at most {USUAL:g} times the weights, or "
        f"{USUAL_CLIPPED:g} where gradients are clipped"
    ),
    deaths=_deaths,
    account=_account,
    advice_order=2,
)

"""Regularization: weight decay, or a penalty in the loss, that costs more than it is told to.

- Weight decay shrinks the weights of a layer, or the weight of its BatchNorm, for hundreds of
  steps; a gradient step does the rest. So not the step of the death tells, but the sum over the
  life: how much the decay alone would have shrunk them, and whether they did shrink. A decay that
  shrinks everything that makes a pre-activation, and nothing else, changes no sign: it acts through
  biases that are not decayed, through an adaptive optimizer that divides it by the size of the
  gradient, and through steps that become large beside the small weights.
- A penalty on activations pushes each unit down while it fires. Its gradient does not come from the
  model's output, and so it is told exactly from that of the task.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from reludiag.causes.cause import Change, Evidence, rounded
from reludiag.causes.chance import more_died
from reludiag.causes.event_study import study_of
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.site_lives import SiteLives, median_of
from reludiag.causes.wording import groups_in_words, replay_of

# The bounds are measured, on 275 trainings with 10 % of dead units or more: five tasks, SGD, Adam,
# AdamW and RMSprop, with and without BatchNorm, decay and learning rate drawn over two powers of
# ten or more. A cause is proved if 70 % of the deaths are gone without it. Of 59 trainings that a
# decay killed, 42 are named, and 14 are undetermined. Of 79 that only the learning rate killed,
# beside a decay, none is named; of 31 more that are, the deaths are gone only in part without the
# decay (21), or neither proves it (10). Of 30 that a penalty on activations killed, 28 are named;
# of 20 that only the learning rate killed, beside a penalty, none.

SHRUNK = 0.5
"""Sum of the shrinkage from which on a decay may be the cause: alone it would have left 61 %."""
SMALL = 0.7
"""And the weights did shrink, to at most this share of their norm at the beginning."""
OWN_UPDATE = 0.1
"""But gradients did not move weights by more than this share of their norm at the beginning in any
step: then the learning rate may kill units by itself."""
COLLAPSED = 0.1
"""Behind a BatchNorm, where the weights shrank to at most this share, by a decay that alone leaves
less, it is the decay if the updates are below `LARGEST_UPDATE`: in 10 of 10 trainings drawn as
above. Without a norm it was in 10 of 22 only."""
SHRUNK_ANYWAY = 1.0
"""Then a decay with this shrinkage is still a candidate. A harmless one also shrinks units that are
mostly silent before they die by the learning rate, by 0.7 at most."""
PUSH = 1.0
"""A penalty on activations is the cause if it pushed units down at least as much as the task pushed
them either way,"""
PUSH_UPDATE = 0.3
"""and gradients moved weights by less than this share of their norm at the beginning."""
SURE_PUSH = 2.5
"""At this push, and updates below `OWN_UPDATE`, it was the cause in 20 of 20 trainings."""
WEAK_PUSH = 0.3
"""From this push on it is a candidate,"""
LARGEST_UPDATE = 1.0
"""unless it is below `PUSH` and the weights were moved by this much: then it is the rate."""
HARMLESS_PUSH = 0.05
"""The advice divides a penalty by what brings its push to this: of 20 penalties with less, one
killed."""


@dataclass(frozen=True)
class Forces:
    """What moved the units of a site that are dead at the end and were not born so: medians over
    them, NaN where nothing was measured.
    """

    units: int
    """Number of units that were measured."""
    normed: bool
    """Whether these are behind a normalization."""
    decay: float
    """Shrinkage by weight decay, summed over the life."""
    penalty: float
    """The same by a penalty on the weights."""
    size: float
    """Norm of the weights / norm at the beginning."""
    update: float
    """Largest change of the weights by gradients in a step / norm at the beginning."""
    push: float
    """Push of penalties on activations / size of the task's."""

    @property
    def shrank(self) -> bool:
        """Whether decay, or a penalty on the weights, shrank them much."""
        return self.decay + self.penalty >= SHRUNK and self.size <= SMALL

    @property
    def collapsed(self) -> bool:
        """Whether it left next to nothing of them."""
        shrinkage = self.decay + self.penalty
        return (
            self.normed
            and self.size <= COLLAPSED
            and shrinkage >= -math.log(COLLAPSED)
            and not self.update >= LARGEST_UPDATE
        )

    @property
    def is_decay(self) -> bool:
        """Whether that is the cause."""
        return (self.shrank and self.update < OWN_UPDATE) or self.collapsed

    @property
    def is_penalty(self) -> bool:
        """Whether a penalty on activations is."""
        return self.push >= PUSH and not self.update >= PUSH_UPDATE

    @property
    def is_surely_penalty(self) -> bool:
        """Whether another run would say the same."""
        return self.push >= SURE_PUSH and self.update < OWN_UPDATE

    @property
    def may_be(self) -> bool:
        """Whether regularization is a candidate beside the learning rate."""
        if self.shrank and self.decay + self.penalty >= SHRUNK_ANYWAY:
            return True
        return self.push >= PUSH or (self.push >= WEAK_PUSH and not self.update >= LARGEST_UPDATE)


def forces_on(sites: Iterable[SiteLives]) -> Forces:
    """What moved the units of these sites that died and are dead at the end."""
    histories, normed = [], False
    for site in sites:
        mine = [each for each in site.histories if site.is_last_death(each.unit, each.step)]
        histories += mine
        normed |= bool(mine) and site.recorded.site.norm is not None
    return Forces(
        normed=normed,
        units=sum(
            math.isfinite(each.size) or math.isfinite(each.around_output) for each in histories
        ),
        decay=median_of([each.shrinkage for each in histories]),
        penalty=median_of([each.penalty_shrinkage for each in histories]),
        size=median_of([each.size for each in histories]),
        update=median_of([each.largest_update for each in histories]),
        push=median_of(
            [each.around_output / each.through_size for each in histories if each.through_size > 0]
        ),
    )


def _explains_by_time(run: RunLives) -> bool:
    study = run.once(study_of)
    return study is not None and study.is_conclusive


def _forces_of_run(run: RunLives) -> Forces:
    return forces_on(run.sites)


def has_collapsed(run: RunLives) -> bool:
    """Whether decay left next to nothing of the weights of most units that died in training."""
    return run.once(_forces_of_run).collapsed and not _explains_by_time(run)


def _forces(site: SiteAttribution) -> Forces:
    """On a site; on all where nothing was measured of its units, and decay left them nothing."""
    forces = forces_on([site.lives])
    return forces if forces.units or not has_collapsed(site.run) else _forces_of_run(site.run)


def _deaths(site: SiteAttribution) -> bool:
    if not site.run.once(more_died) or _explains_by_time(site.run):
        return False
    forces = _forces(site)
    return forces.is_decay or forces.is_penalty


def is_candidate(site: SiteAttribution) -> bool:
    """Whether the run can tell neither from the other: this cause and the learning rate."""
    if _explains_by_time(site.run):
        return False
    forces = _forces(site)
    return forces.may_be and not (forces.is_decay or forces.is_penalty)


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    sites = [only] if only else [each for each in attribution.sites if KIND.name in each.tally]
    forces, run = _forces(only) if only else forces_on([s.lives for s in sites]), attribution.run
    if forces.push >= WEAK_PUSH and not forces.is_decay:
        return Account(
            # All deaths have to say so, those of other causes too.
            identifiable=forces_on(
                each.lives for each in ([only] if only else attribution.sites)
            ).is_surely_penalty,
            evidence=(*_push_evidence(forces), *_size_evidence(forces)),
            sentence="A part of the loss reads the activations themselves. It pushed the units "
            f"that died down {forces.push:.2g} times as much as the task moved them either way, "
            "until they were silent.",
            advice="",
            confirm=COMPARED,
            changes=(_less_penalty("activations", forces.push),),
        )
    by_decay, changes = not forces.penalty > forces.decay, _less_shrinkage(run, forces)
    what = "Weight decay" if by_decay else "A penalty on the weights in the loss"
    left = math.exp(-min(700.0, forces.decay + forces.penalty))
    return Account(
        identifiable=False,
        evidence=(*_size_evidence(forces), *_push_evidence(forces)),
        sentence=f"{what} shrank what feeds the units that died to {forces.size:.2g} times its "
        f"size at the beginning; alone it would have left {left:.1g} times. Gradients moved "
        f"weights by at most {forces.update:.2g} times their first norm in a step. This run alone "
        "cannot prove it.",
        advice="",
        confirm=replay_of(changes) or COMPARED,
        changes=changes,
    )


COMPARED = "reludiag diff THIS_RUN RUN_WITHOUT_PENALTY"
"""Nothing but the user's own program can leave a penalty out."""


def candidates(site: SiteAttribution) -> Account | None:
    """The account where this and the learning rate may be the cause; None where this may not."""
    if not is_candidate(site):
        return None
    forces = forces_on([site.lives])
    changes: tuple[Change, ...] = (_less_penalty("activations", forces.push),)
    what = (
        "a part of the loss that reads the activations themselves pushed them down "
        f"{forces.push:.2g} times as much as the task moved them either way"
    )
    if forces.shrank:
        changes = _less_shrinkage(site.run, forces)
        what = (
            f"what feeds them shrank to {forces.size:.2g} times its size at the beginning, and "
            f"gradients moved weights by up to {forces.update:.2g} times their first norm in a step"
        )
    return Account(
        identifiable=False,
        evidence=(*_size_evidence(forces), *_push_evidence(forces)),
        sentence=f"Units of '{site.lives.name}' died in training by the learning rate or by "
        f"regularization: {what}. This run cannot tell which.",
        advice="",
        confirm=replay_of(changes) or COMPARED,
        changes=changes,
    )


def _less_shrinkage(run: RunLives, forces: Forces) -> tuple[Change, ...]:
    """Without the decay of each group, or with less of the penalty on the weights."""
    decays: dict[str, float] = dict(run.recorded.facts.get("weight_decay", {}))
    if forces.penalty > forces.decay or not decays:
        return (_less_penalty("the weights", math.nan),)
    classes = [str(name) for name in run.recorded.facts.get("optimizers", ())]
    by_value: dict[float, list[str]] = {}
    for group, value in decays.items():
        by_value.setdefault(value, []).append(group)
    changes = []
    for value, groups in by_value.items():
        words = groups_in_words(run.recorded, groups)
        sentence = f"set weight_decay of {words} from {value:g} to 0"
        if {classes[int(group.partition("/")[0])] for group in groups} & {"Adam", "RMSprop"}:
            sentence += ", or use AdamW"
        changes.append(Change("weight_decay", sentence, tuple(groups), value, 0.0))
    return tuple(changes)


def _less_penalty(of: str, push: float) -> Change:
    divisor = _divisor(push) if math.isfinite(push) else 100
    sentence = f"divide the weight of the penalty on {of} in the loss by {divisor:,}"
    return Change("penalty", sentence, before=1.0, after=1 / divisor)


def _divisor(push: float) -> int:
    """To one significant digit, at least 10."""
    wanted = max(10.0, push / HARMLESS_PUSH)
    scale = 10 ** math.floor(math.log10(wanted))
    return int(math.ceil(wanted / scale - 1e-9) * scale)


def _size_evidence(forces: Forces) -> list[Evidence]:
    if not math.isfinite(forces.size):
        return []
    evidence = [
        Evidence(
            "size of the weights",
            rounded(forces.size),
            f"norm of the weights, or of the BatchNorm's weight, of {forces.units} units that died "
            "over that at the beginning; median",
        )
    ]
    if forces.decay > 0:
        evidence.append(
            Evidence(
                "shrinkage by decay",
                rounded(forces.decay),
                "relative loss by weight decay in a step, summed over the life; after 1, decay "
                "alone leaves 37 %",
            )
        )
    if forces.penalty > 0:
        evidence.append(
            Evidence(
                "shrinkage by a penalty",
                rounded(forces.penalty),
                "the same by a part of the loss that reads the weights themselves",
            )
        )
    return evidence


def _push_evidence(forces: Forces) -> list[Evidence]:
    if not forces.push > 0:
        return []
    return [
        Evidence(
            "push of a penalty",
            rounded(forces.push),
            "gradient of the mean pre-activation by parts of the loss that read the activation "
            "itself, over the sizes of that through the model's output",
        )
    ]


KIND = CauseKind(
    name="regularization",
    title="regularization",
    clue=(
        "weight decay shrank the weights, or a penalty in the loss pushed the units down more than "
        "the task did"
    ),
    rule=(
        "it died in training with more than 3 % of all units, and the event study below is not "
        "conclusive; and of the units of its site that died, by the median, the shrinkage by decay "
        f"is {SHRUNK:g} or more, the weights shrank to {SMALL:g} times or less, and no update by "
        f"gradients was {OWN_UPDATE:g} times their first norm or more; or, behind a normalization, "
        f"they shrank to {COLLAPSED:g} times or less, by decay alone; or a penalty on activations "
        f"pushed them down at least {PUSH:g} times as much as the task pushed them either way, and "
        f"no update was {PUSH_UPDATE:g} or more"
    ),
    deaths=_deaths,
    account=_account,
)

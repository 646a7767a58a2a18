"""Structure: a rectifier that cannot work where it stands.

- It is the output of the model, so that its dead units get no gradient at all. A dead unit inside a
  network passes no gradient back either, but the layers before it still learn through the others,
  and may bring it back. Where all units of the output are dead, nothing does. Where some are, the
  loss itself has pushed them down: a target at 0 or below asks for it, and so does a logit that is
  to be low.
- What reaches it is nowhere positive, whatever the weights: after a log-softmax, or a ReLU with its
  sign changed.
"""

import math

import numpy as np

from reludiag.causes.cause import Change, Evidence, rounded
from reludiag.causes.chance import chance_evidence, more_died
from reludiag.causes.kind import Account, CauseKind, RunAttribution, SiteAttribution
from reludiag.recording.ledger import NEVER
from reludiag.sites.consumers import only_returned

PUSHED = 0.5
"""The loss pushed the units of an output down if, of what moved them in the measured steps, half or
more was downwards and not undone. Of 26 trainings of five tasks in which a rectified output died,
at Adam's 0.001 to 0.1, it was above 0.9 in 25, by the median.
"""


def is_misplaced(site: SiteAttribution) -> bool:
    """Whether its units died because it is the output of the model."""
    if not only_returned(site.lives.recorded.site.consumers):
        return False
    if site.run.recorded.facts.get("other_parameters"):
        return False  # what is trained beside the model may read its output
    if site.lives.dead_since != NEVER:
        return True
    return site.run.once(more_died) and _push(site) >= PUSHED


def _push(site: SiteAttribution) -> float:
    """The median over units that died of how far the loss pushed them down, over how far it moved
    them either way; NaN where nothing was measured.
    """
    pushes = [
        each.through_output / each.through_size
        for each in site.lives.histories
        if each.step == site.lives.ledger.died_step[each.unit]
        and site.lives.new[each.unit]
        and each.through_size > 0
    ]
    return float(np.median(pushes)) if pushes else math.nan


def _deaths(site: SiteAttribution) -> bool:
    return _claims(site) or is_misplaced(site)


def _claims(site: SiteAttribution) -> bool:
    """All of a site is dead that is the output of the model, or would be with any weights."""
    if site.lives.dead_since == NEVER:
        return False
    return only_returned(site.lives.recorded.site.consumers) or _never_fires(site)


def _never_fires(site: SiteAttribution) -> bool:
    """Whether all of it was dead at step 0, and in each draw of other weights."""
    lives = site.lives
    return bool(lives.born.all()) and lives.baseline is not None and lives.baseline.born_dead == 1


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    site = only or attribution.foremost(KIND.name)
    if only_returned(site.lives.recorded.site.consumers):
        return _of_output(site) if site.lives.dead_since != NEVER else _of_some_outputs(site)
    lives, producer = site.lives, site.lives.recorded.site.producer
    after = f"after '{producer}'" if producer else f"before '{lives.name}'"
    return Account(
        identifiable=bool(lives.never_alive.all()),
        evidence=tuple(chance_evidence(lives)),
        sentence=f"All {lives.units} units of '{lives.name}' were dead before any training, and so "
        "they are with other weights: what reaches this rectifier is nowhere positive.",
        advice=f"look at what is done {after}, such as a log-softmax, a ReLU with its sign "
        "changed, or a large constant that is subtracted",
        confirm="",
    )


def _of_output(site: SiteAttribution) -> Account:
    lives, _recorded = site.lives, site.lives.recorded
    units = f"All {lives.units} units" if lives.units > 1 else "The one unit"
    be = "are" if lives.units > 1 else "is"
    return Account(
        identifiable=bool(lives.never_alive.all()),
        evidence=(
            Evidence(
                f"'{lives.name}' completely dead",
                lives.dead_since,
                "step from which this output of the model is 0 for every sample",
            ),
            Evidence(
                f"what reads '{lives.name}'",
                "nothing",
                "the model returns it unchanged: its units get a gradient from the loss alone, and "
                "only for samples on which they fire",
            ),
        ),
        sentence=f"{units} of '{lives.name}' {be} dead since step {lives.dead_since}, and the "
        "model returns its output unchanged: only zeros. A rectifier that is silent passes no "
        "gradient back, so the layers before it learn nothing from this output that would make it "
        "fire.",
        advice="",
        confirm="",
        changes=(_bare_output(site),),
    )


def _bare_output(site: SiteAttribution) -> Change:
    recorded = site.lives.recorded.site
    fed_by = f"the output of '{recorded.producer}'" if recorded.producer else "its input"
    return Change(
        "rectifier",
        f"return {fed_by} without a rectifier, or with softplus if the outputs must not be below 0",
        (site.lives.name,),
        before=recorded.rectifier.activation,
        after="none",
    )


def _of_some_outputs(site: SiteAttribution) -> Account:
    """Of an output that is dead in part."""
    lives, push = site.lives, _push(site)
    dead = site.tally[KIND.name]
    return Account(
        identifiable=False,  # the learning rate may have overshot, too
        evidence=(
            Evidence(
                "push of the loss",
                rounded(push),
                "gradient of the mean pre-activation of the units that died, over its size, summed "
                "over the measured steps: 1 where it always pushed them down; median",
            ),
            Evidence(
                f"what reads '{lives.name}'",
                "nothing",
                "the model returns it unchanged: its units get a gradient from the loss alone, and "
                "only for samples on which they fire",
            ),
        ),
        sentence=f"{dead} of {lives.units} units of '{lives.name}' died in training, and the model "
        "returns its output unchanged. The loss pushed them down, as it does where a target is at "
        "0 or below, and a rectifier that is silent gets no gradient that would bring it back. A "
        "lower learning rate may only delay that: this run alone cannot prove it.",
        advice="",
        confirm="",
        changes=(_bare_output(site),),
    )


KIND = CauseKind(
    name="structure",
    title="the place of a rectifier",
    badge="structure",
    clue=(
        "a rectifier whose units died is the output of the model, or would be dead with any weights"
    ),
    rule=(
        "nothing reads the units of its site in the model: they are returned as they are, and all "
        "of them are dead; or more units died in training than in a healthy run, and the loss "
        "pushed those of the output down; or all of its site were dead at step 0, and are in each "
        "draw of the baseline"
    ),
    births=_claims,
    deaths=_deaths,
    account=_account,
    advice_order=0,
)

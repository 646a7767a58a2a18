"""Structure: a rectifier that cannot work where it stands.

- It is the output of the model, so that its dead units get no gradient at all. A dead unit inside a
  network passes no gradient back either, but the layers before it still learn through the others,
  and may bring it back. Where all units of the output are dead, nothing does.
- What reaches it is nowhere positive, whatever the weights: after a log-softmax, or a ReLU with its
  sign changed.
"""

from reludiag.causes.cause import Change, Evidence
from reludiag.causes.chance import chance_evidence
from reludiag.causes.kind import Account, CauseKind, RunAttribution, SiteAttribution
from reludiag.recording.ledger import NEVER
from reludiag.sites.consumers import only_returned


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
        return _of_output(site)
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
    lives, recorded = site.lives, site.lives.recorded
    units = f"All {lives.units} units" if lives.units > 1 else "The one unit"
    be = "are" if lives.units > 1 else "is"
    fed_by = f"the output of '{recorded.site.producer}'" if recorded.site.producer else "its input"
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
        changes=(
            Change(
                "rectifier",
                f"return {fed_by} without a rectifier, or with softplus if the outputs must not be "
                "below 0",
                (lives.name,),
                before=recorded.site.rectifier.activation,
                after="none",
            ),
        ),
    )


KIND = CauseKind(
    name="structure",
    title="the place of a rectifier",
    badge="structure",
    clue=(
        "a rectifier that is completely dead is the output of the model, or would be dead with any "
        "weights"
    ),
    rule=(
        "all units of its site are dead, and nothing reads them in the model: they are returned "
        "as they are; or all of them were dead at step 0, and are in each draw of the baseline"
    ),
    births=_claims,
    deaths=_claims,
    account=_account,
    advice_order=0,
)

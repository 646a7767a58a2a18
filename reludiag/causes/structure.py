"""Structure: a rectifier is the output of the model, so that its dead units get no gradient at all.

A dead unit inside a network passes no gradient back either, but the layers before it still learn
through the others, and may bring it back. Where all units of the output are dead, nothing does.
"""

from reludiag.causes.cause import Evidence
from reludiag.causes.kind import Account, CauseKind, RunAttribution, SiteAttribution
from reludiag.recording.ledger import NEVER
from reludiag.sites.consumers import only_returned


def _claims(site: SiteAttribution) -> bool:
    """All of a site that is the output of the model is dead."""
    return site.lives.dead_since != NEVER and only_returned(site.lives.recorded.site.consumers)


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    site = only or attribution.foremost(KIND.name)
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
        advice=f"return {fed_by} without a rectifier, or with softplus if the outputs must not be "
        "below 0",
        confirm="",
    )


KIND = CauseKind(
    name="structure",
    title="a rectifier as the output",
    subject="the rectifier at the output",
    badge="rectified output",
    clue="a rectifier that is completely dead is the output of the model",
    rule=(
        "all units of its site are dead, and nothing reads them in the model: they are returned "
        "as they are"
    ),
    births=_claims,
    deaths=_claims,
    account=_account,
    advice_order=0,
)

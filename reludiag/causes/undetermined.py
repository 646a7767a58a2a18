"""Undetermined: units died, and nothing that was recorded says why."""

import math

from reludiag.causes.cause import Evidence
from reludiag.causes.chance import born_by_chance
from reludiag.causes.drift import drift_evidence
from reludiag.causes.event_study import study_evidence, study_of
from reludiag.causes.kind import Account, CauseKind, RunAttribution, SiteAttribution
from reludiag.causes.learning_rate import update_evidence
from reludiag.causes.regularization import candidates
from reludiag.causes.selection import is_mostly_unselected, unselected
from reludiag.causes.site_lives import SiteLives
from reludiag.causes.variation import FALLBACK_SCALE
from reludiag.causes.wording import replay_command


def _births(site: SiteAttribution) -> bool:
    return True  # what no other kind has claimed


def _deaths(site: SiteAttribution) -> bool:
    return True  # what no other kind has claimed


def _compared(lives: SiteLives) -> str:
    """What is known of the same units with other weights."""
    chance = born_by_chance(lives)
    if math.isnan(chance):
        return "no other draw of its weights is there to compare with"
    return f"with weights of Kaiming and zero biases {chance:.1%} are"


MORE_TIME = "pass the Monitor a larger `evidence`, a smaller probe, or a larger `every`"


def _unexamined(attribution: RunAttribution, only: SiteAttribution | None) -> int:
    """Number of units that nothing explains, of whose death no evidence was collected."""
    sites = [only] if only else attribution.sites
    return sum(int(((s.kinds == KIND.name) & s.lives.unexamined).sum()) for s in sites)


def _unexamined_sentence(attribution: RunAttribution, only: SiteAttribution | None) -> str:
    """Why they are not explained; empty if there are none."""
    count = _unexamined(attribution, only)
    if not count:
        return ""
    where = "" if only is None else f" of '{only.lives.name}'"
    return (
        f"Of the deaths of {count} units{where} no evidence was collected, because it would have "
        "taken too much of the run's time: their cause is not known."
    )


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    site = only or attribution.foremost(KIND.name)
    run, lives = attribution.run, site.lives
    if 2 * int(lives.never_alive.sum()) > int(lives.dead.sum()):
        names = " and ".join(lives.recorded.site.producers) or f"'{lives.name}'"
        return Account(
            identifiable=False,
            evidence=(),
            sentence=f"{int(lives.born.sum())} of {lives.units} units of '{lives.name}' were dead "
            f"before any training, and the recording does not show why: {_compared(lives)}.",
            advice=f"check the initial weights and biases of {names}, and that the input is "
            "centred",
            confirm="reludiag init MODEL --data DATA",
        )
    if is_mostly_unselected(lives):
        return _of_selection(lives)
    both = candidates(site)
    if both is not None and not _unexamined(attribution, only):
        return both
    return Account(
        identifiable=False,
        evidence=(
            *study_evidence(run.once(study_of)),
            *update_evidence(site),
            *drift_evidence([each.lives for each in ([only] if only else attribution.sites)]),
        ),
        sentence=_unexamined_sentence(attribution, only)
        or f"Units of '{site.lives.name}' died in training, and the recording does not "
        "show why: the size of the updates, the initial weights and the input do not "
        "explain it.",
        advice=MORE_TIME
        if _unexamined(attribution, only)
        else "pass the Monitor a smaller `every`, to see the deaths as they happen"
        if run.recorded.facts.get("probe_samples")
        else "pass the Monitor a probe and a smaller `every`, to see the deaths as they happen",
        confirm=replay_command(scale=FALLBACK_SCALE, init="kaiming"),
    )


def _of_selection(lives: SiteLives) -> Account:
    """Sources of the advice: Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (the
    auxiliary loss); Bricken et al. 2023, "Towards Monosemanticity" (resampling).
    """
    dead, fire = int(lives.dead.sum()), int(unselected(lives).sum())
    never = dead - fire
    return Account(
        identifiable=False,
        evidence=(
            Evidence(
                "fire, never selected",
                f"{fire} of {dead}",
                f"dead units that fire in '{lives.recorded.site.selects_from}' and never pass the "
                f"selection; {never} do not fire there either",
            ),
        ),
        sentence=f"{fire} of the {dead} dead units of '{lives.name}' fire and are never selected: "
        "others are always larger, and a unit that is not selected gets no gradient. The recording "
        "does not show why they fell behind.",
        advice="select more units (a larger k), add an auxiliary loss that lets the dead units "
        "rebuild what the others miss, or resample the dead units",
        confirm="",
    )


KIND = CauseKind(
    name="undetermined",
    title="undetermined",
    subject="an unknown cause",
    clue="none of these causes has enough evidence",
    rule="none of these rules applies",
    births=_births,
    deaths=_deaths,
    account=_account,
    claim="unknown",
)

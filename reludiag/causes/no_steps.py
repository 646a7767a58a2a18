"""No steps: no weight changed in the whole run, so what is dead is what the weights began with.

The optimizer took no step, or its steps changed nothing. Training revives many units that are dead
at its beginning, and here there was none: that no more are dead than in a healthy run is no answer.
"""

from collections.abc import Mapping
from typing import Any

from reludiag.causes.cause import Change, Evidence, text_of
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution

UNCHANGED = frozenset({"steps_skipped", "optimizer_idle", "no_weight_changed"})
"""Why a run was not judged: of these reasons it is known that no weight changed."""
NAMED = 3
"""Most parameters that the account names."""


def reason_of(facts: Mapping[str, Any]) -> str:
    """The reason of `UNCHANGED` in the facts of a run; empty if there is none, or if the run went
    on with another one, in which weights did change.
    """
    if facts.get("resumed"):
        return ""
    reasons = (place["reason"] for place in facts.get("unjudged", ()) if not place["where"])
    return next((str(reason) for reason in reasons if reason in UNCHANGED), "")


def _of_run(attribution: RunAttribution) -> float:
    run = attribution.run
    return float(bool(reason_of(run.recorded.facts)) or _rate_is_zero(run))


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    run, lives = attribution.run, [site.lives for site in attribution.sites]
    reason = reason_of(run.recorded.facts)
    dead, units = sum(int(each.dead.sum()) for each in lives), sum(each.units for each in lives)
    what = {
        "steps_skipped": "The optimizer took no step, and the gradients are not finite",
        "optimizer_idle": "The optimizer took no step",
    }.get(reason, "Steps were counted, but they changed no weight")
    change, evidence = _change(run, reason), list(_evidence(run, reason))
    began, changes = "", [change]
    if dead:
        verb = "is" if dead == 1 else "are"
        began = (
            f" {dead} of {units} units {verb} dead, as the weights began. Training may revive "
            "them: a run without steps cannot tell."
        )
    kinds = run.kinds
    counts = {name: n for name, n in attribution.roots().items() if kinds[name].claim == "cause"}
    if counts:
        first = kinds[max(counts, key=lambda name: counts[name])]
        account = first.account(attribution, None)
        began += f" {account.sentence}"
        evidence += account.evidence
        changes += account.changes
    return Account(
        identifiable=False,  # that training would revive the units is not known
        evidence=tuple(evidence),
        sentence=f"{what}: nothing was trained.{began}",
        advice=text_of(changes),
        confirm="",
        changes=tuple(changes),
    )


def _rate_is_zero(run: RunLives) -> bool:
    """Whether all steps had a learning rate of 0, and nothing else changed the weights."""
    rates = [rate for _, _, rate in run.recorded.learning_rates]
    return bool(rates) and max(rates) == 0 and not run.recorded.observations.edits


def _overflown(run: RunLives) -> str:
    """The parameters whose gradients are not finite, in words; empty if not known."""
    names = [str(name) for name in run.recorded.facts.get("nonfinite_gradients", ())]
    more = ", ..." if len(names) > NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:NAMED]) + more


def _change(run: RunLives, reason: str) -> Change:
    """What to do so that steps are taken and change weights."""
    if reason == "steps_skipped":
        nonfinite = next((site.name for site in run.sites if site.nonfinite), "")
        where = _overflown(run)
        if nonfinite:
            sentence = (
                f"look at what is not finite in the forward pass: '{nonfinite}' is the first "
                "rectifier with a NaN or an infinity"
            )
        else:
            sentence = (
                "look for a NaN or an infinity in the loss and in the backward pass"
                + (f", at {where}" if where else "")
                + "; under a GradScaler lower its init_scale, and scale down a loss that is large"
            )
        return Change("steps", sentence, after="taken")
    if reason == "optimizer_idle":
        sentence = (
            "let the optimizer step: look whether optimizer.step() is ever reached, whether the "
            "accumulation of gradients is ever complete, and whether a GradScaler skips every step"
        )
        return Change("steps", sentence, after="taken")
    if _rate_is_zero(run):
        return Change("lr", "raise the learning rate, which was 0 in all steps", before=0.0)
    sentence = (
        "look whether the weights are frozen (requires_grad), get gradients, and are those of the "
        "model that is trained"
    )
    return Change("steps", sentence, after="taken")


def _evidence(run: RunLives, reason: str) -> list[Evidence]:
    steps = run.recorded.steps[-1] if run.recorded.steps else 0
    evidence = [Evidence("steps", steps, "that the optimizer took; no weight changed")]
    if reason == "steps_skipped" and (where := _overflown(run)):
        evidence.append(
            Evidence(
                "gradients that are not finite",
                len(run.recorded.facts["nonfinite_gradients"]),
                f"parameters, in forward order {where}; the backward pass reaches the last first",
            )
        )
    return evidence


KIND = CauseKind(
    name="no_steps",
    title="no step",
    badge="no step",
    clue="the optimizer took no step, or its steps changed no weight",
    rule=(
        "the weights were the same at the end of the run as at its beginning, or all steps had a "
        "learning rate of 0: this is then the cause of the run"
    ),
    of_run=_of_run,
    account=_account,
)

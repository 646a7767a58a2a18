"""BatchNorm's statistics: the running ones, which eval mode uses, do not fit the data.

A unit is silent on them, and fires where BatchNorm uses the statistics of the batch, as it does in
training: it learns, and is lost only to whoever evaluates the model. The other way round is worse:
running statistics that are behind hide units that are dead in training.
"""

from typing import Any

import numpy as np

from reludiag.causes.cause import Change, Evidence
from reludiag.causes.chance import FEW, FEWEST_BORN, more_died
from reludiag.causes.edited import silenced_by_edit
from reludiag.causes.kind import Account, CauseKind, RunAttribution, RunLives, SiteAttribution
from reludiag.causes.regularization import has_collapsed
from reludiag.causes.site_lives import Mask

USUAL_MOMENTUM = 0.1
"""PyTorch's."""


def _deaths(site: SiteAttribution) -> Mask | bool:
    # Of weights that are next to nothing the statistics are, too, and no longer those of before.
    if site.run.once(more_died) and site.run.once(has_collapsed):
        return False
    return np.asarray(site.lives.only_in_eval & ~np.asarray(silenced_by_edit(site)))


def _in_training(run: RunLives) -> int:
    """Number of units that died on the statistics of the batch, too."""
    return sum(int((site.new & ~site.only_in_eval).sum()) for site in run.sites)


def _hidden(run: RunLives) -> int:
    return sum(int(site.hidden.sum()) for site in run.sites)


def _of_run(attribution: RunAttribution) -> float:
    """Where eval mode hides most of the units that are dead in training, and more than a few."""
    run = attribution.run
    hidden, units = _hidden(run), sum(site.units for site in run.sites)
    dead = sum(int(site.dead.sum()) for site in run.sites)
    if hidden < FEWEST_BORN or hidden <= FEW * units or hidden <= dead:
        return 0.0
    return hidden / (hidden + dead)


def _account(attribution: RunAttribution, only: SiteAttribution | None) -> Account:
    run = attribution.run
    if only is None and _of_run(attribution):
        return _of_hidden(attribution)
    sites = [only] if only else attribution.sites
    dead = sum(int(site.lives.dead.sum()) for site in sites)
    firing = sum(site.tally[KIND.name] for site in sites)
    where = "" if only is None else f" of '{only.lives.name}'"
    fire = "fires" if firing == 1 else "fire"
    of_all = f"of the {dead} dead units" if dead > 1 else "dead unit"
    return Account(
        # What killed others in training may have changed the statistics, too. And those that
        # follow the data within the run are behind only if something moves them fast.
        identifiable=2 * _in_training(run) <= firing and _is_stale(run),
        evidence=(
            Evidence(
                "fire on batch statistics",
                firing,
                f"of the {dead} units{where} that are dead on the probe in eval mode, with the "
                "same weights and samples",
            ),
            *_momentum_evidence(run),
        ),
        sentence=f"{firing} {of_all}{where} {fire} on batch statistics: the running statistics of "
        "BatchNorm do not fit the data (yet). Eval mode uses them; in training these units are not "
        "dead.",
        advice="",
        changes=(
            Change(
                "batchnorm.statistics",
                "compute the statistics of BatchNorm anew before you evaluate, as "
                f"torch.optim.swa_utils.update_bn does{_or_longer(run)}",
                after="recomputed",
            ),
            *_faster(run),
        ),
        confirm="reludiag scan MODEL CHECKPOINT --data DATA --train-mode",
    )


def _of_hidden(attribution: RunAttribution) -> Account:
    run = attribution.run
    hidden, units = _hidden(run), sum(site.units for site in run.sites)
    dead = sum(int(site.dead.sum()) for site in run.sites)
    worst = max(run.sites, key=lambda site: int(site.hidden.sum()))
    in_eval = f"only {dead} {'is' if dead == 1 else 'are'}" if dead else "none is"
    return Account(
        # What they died of was not looked at: in eval mode they never died.
        identifiable=False,
        evidence=(
            Evidence(
                "silent on batch statistics",
                hidden,
                "units that fire on the probe in eval mode, and on no sample where BatchNorm uses "
                "the statistics of the batch, with the same weights",
            ),
            *_momentum_evidence(run),
        ),
        sentence=f"{hidden} of {units} units that fire in eval mode are dead on batch statistics, "
        f"as in training; most of them in '{worst.name}'. In eval mode {in_eval} "
        "dead: the running statistics of BatchNorm do not fit the "
        "data (yet), and hide the others. What they died of is not known.",
        advice="; ".join(
            [
                "monitor without a probe, to see when and why they die: the batches of a training "
                "are judged on their own statistics",
                *(change.sentence for change in _faster(run)),
            ]
        ),
        confirm="reludiag scan MODEL CHECKPOINT --data DATA --train-mode",
    )


def _norms(run: RunLives) -> dict[str, Any]:
    facts: dict[str, Any] = run.recorded.facts.get("batch_norms") or {}
    return facts


def _faster(run: RunLives) -> tuple[Change, ...]:
    """How the statistics would have followed the data, if they follow it more slowly than usual."""
    momentum = _norms(run).get("momentum")
    if momentum is None or momentum >= USUAL_MOMENTUM:
        return ()
    sentence = f"raise the momentum of BatchNorm from {momentum:g} to {USUAL_MOMENTUM:g}"
    return (Change("batchnorm.momentum", sentence, before=float(momentum), after=USUAL_MOMENTUM),)


def _or_longer(run: RunLives) -> str:
    few = _is_stale(run)
    return ", or train for more steps before" if few and not _faster(run) else ""


def _is_stale(run: RunLives) -> bool:
    """Whether more than a little is left in the statistics of those that the run began with."""
    momentum, steps = _norms(run).get("momentum"), run.recorded.steps[-1]
    return momentum is not None and (1 - momentum) ** steps > FEW


def _momentum_evidence(run: RunLives) -> tuple[Evidence, ...]:
    momentum, steps = _norms(run).get("momentum"), run.recorded.steps[-1]
    if momentum is None:
        return ()
    return (
        Evidence(
            "momentum of BatchNorm",
            f"{momentum:g}",
            f"the lowest. After {steps:,} steps, {100 * (1 - momentum) ** steps:.2g} % of running "
            "statistics at this momentum are still those that the run began with",
        ),
    )


KIND = CauseKind(
    name="batchnorm_statistics",
    title="the running statistics of BatchNorm",
    badge="BatchNorm statistics",
    clue="units that are dead in eval mode fire on batch statistics, or the other way round",
    rule=(
        "it is dead on the probe in eval mode, and fires on the same samples where BatchNorm uses "
        "the statistics of the batch, as in training; but not if it fell silent with an edit of "
        "the weights, or if a decay left next to nothing of them"
    ),
    deaths=_deaths,
    account=_account,
    of_run=_of_run,
    advice_order=3,
)

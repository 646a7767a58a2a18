"""One training with one seed: proved, asked about, and every fix tried."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.deadbench.advice import Followed, follow, scaled_rate
from benchmarks.deadbench.diagnosing import Answer, ask
from benchmarks.deadbench.loop import Outcome, train
from benchmarks.deadbench.proof import Proof, prove
from benchmarks.deadbench.training import Group, Settings, Training

DOWN = 0.80
"""A fix has to remove this share of the deaths,"""
WORSE, LEAST_WORSE = 0.05, 0.02
"""and the loss may be this share higher, or this much if that is more."""
ADVICE, TRUE = "advice", "true fix"
TENTH, THIRD, LEAKY = "rate / 10", "rate / 3", "LeakyReLU"
FIXES = (ADVICE, TENTH, THIRD, LEAKY, TRUE)


@dataclass(frozen=True)
class Effect:
    """What a fix did, at equal steps."""

    prevented: float
    """Share of the deaths that it removed."""
    loss: float
    is_worse: bool

    @property
    def is_down(self) -> bool:
        return self.prevented >= DOWN

    @property
    def works(self) -> bool:
        return self.is_down and not self.is_worse


@dataclass(frozen=True)
class Row:
    """What was measured of one training with one seed."""

    training: Training
    seed: int
    answer: Answer
    proof: Proof
    followed: Followed
    effects: Mapping[str, Effect]
    """By name of the fix; no advice if none was given or none could be followed."""
    at_critical: float | None
    """Share of the deaths that the named critical rate prevents; about a half would be right."""

    @property
    def is_right(self) -> bool:
        return self.answer.cause in self.proof.proved


def judge(training: Training, seed: int, probe: bool = True) -> Row:
    answer = ask(training.settings, seed, training.site, probe)
    proof = prove(training, seed, answer.outcome)
    followed = follow(answer.changes, answer.advice)
    if not proof.proved:
        return Row(training, seed, answer, proof, followed, {}, None)
    settings, faulty = training.settings, answer.outcome

    def effect_of(changed: Settings) -> Effect:
        return effect(faulty, train(changed, seed), training.site)

    effects = {}
    if followed.change:
        effects[ADVICE] = effect_of(followed.change(settings))
    if training.cause != "none":
        effects[TENTH] = effect_of(scaled_rate(1 / 10, settings))
        effects[THIRD] = effect_of(scaled_rate(1 / 3, settings))
        effects[LEAKY] = effect_of(settings.but(leak=0.01))
        effects[TRUE] = effect(faulty, proof.without[training.cause], training.site)
    critical = None
    if answer.critical and "learning_rate" in proof.proved and _is_constant(settings):
        critical = effect_of(settings.but(lr=answer.critical)).prevented
    return Row(training, seed, answer, proof, followed, effects, critical)


def effect(faulty: Outcome, changed: Outcome, site: str) -> Effect:
    lost = faulty.at(site)
    allowed = faulty.loss + max(WORSE * faulty.loss, LEAST_WORSE)
    return Effect(
        prevented=1 - changed.at(site) / lost if lost else 0.0,
        loss=changed.loss,
        is_worse=not changed.loss <= allowed,
    )


def _is_constant(settings: Settings) -> bool:
    """Whether there is one rate, so that another one can take its place."""
    rates = {settings.schedule(step) for step in range(settings.steps)}
    return rates == {1.0} and settings.groups == (Group(),)

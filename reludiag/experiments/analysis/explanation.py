"""ReplayConclusion: the answer of a replay as sentences."""

import pandas as pd

from reludiag.experiments.analysis.counterfactual import (
    BOTH,
    FACTUAL,
    HEALTHY,
    INIT,
    PARTLY,
    PREVENTED,
    RATE,
    Answer,
    Arm,
)
from reludiag.experiments.trial_table import recording_notes


class ReplayConclusion:
    """The sentence, the advice, and the notes that weaken them."""

    def __init__(
        self,
        arms: dict[str, Arm],
        answer: Answer,
        rate: float | None,
        lr_scale: float | None,
        init: str | None,
    ) -> None:
        self._arms, self._answer = arms, answer
        self._rate = "" if rate is None else f" {rate:.4g}"
        self._lowered = f"{rate * lr_scale:.4g}" if rate and lr_scale else f"x {lr_scale}"
        self._init = init
        verb = "lowered" if lr_scale is None or lr_scale < 1 else "raised"
        self._change_lr = f"the learning rate {verb} to {self._lowered}"
        self._change_init = f"{init} initialization"

    def sentence(self) -> str:
        """What killed the units, with the shares as evidence."""
        arms, dead = self._arms, self._dead(FACTUAL)
        rate, init, both = (self._dead(name) for name in (RATE, INIT, BOTH))
        match self._answer.kind:
            case "none":
                return f"There is nothing to explain: only {dead} of the units are dead."
            case "divergence":
                finite = [
                    text
                    for name, text in (
                        (RATE, self._change_lr),
                        (INIT, self._change_init),
                        (BOTH, f"{self._change_lr} and {self._change_init}"),
                    )
                    if name in arms and arms[name].counted
                ]
                but = f"; with {' or with '.join(finite)} it does not" if finite else ""
                return (
                    f"The run diverges{but}: its units are not finite, so they are neither "
                    "dead nor alive."
                )
            case "undetermined":
                return self._unknown_sentence()
            case "learning_rate":
                return (
                    f"The learning rate{self._rate} killed {self._killed()}: {dead} of the units "
                    f"are dead, {rate} with {self._change_lr}"
                    + (", which is still too high" if self._too_high() else "")
                    + (f"; with {self._change_init} it is still {init}." if init else ".")
                )
            case "initialization":
                return (
                    f"The initialization killed them: {dead} of the units are dead, {init} with "
                    f"{self._change_init}"
                    + (f"; with {self._change_lr} it is still {rate}." if rate else ".")
                )
            case "either":
                return (
                    "Learning rate and initialization together killed the units, and changing "
                    f"either is enough: {dead} of the units are dead, {rate} with "
                    f"{self._change_lr}, {init} "
                    f"with {self._change_init}."
                )
            case "both":
                return (
                    f"{self._masked()}: {dead} of the units are dead, {rate} with "
                    f"{self._change_lr}, {init} with {self._change_init}, and {both} with both."
                )
        which = "Neither change explains" if len(arms) > 2 else "This change does not explain"
        return f"{which} the deaths: {self._shares()}."

    def advice(self) -> str:
        """What to do next."""
        lower = f"Use a learning rate of {self._lowered}"
        draw = f"Initialize the model by {self._init}"
        match self._answer.kind:
            case "none":
                return "Change nothing."
            case "learning_rate":
                if self._too_high():
                    return f"Use a learning rate below {self._lowered}."
                if self._born_dead() and INIT not in self._arms:
                    return (
                        f"{lower}, and try --init kaiming: that may save some of the units born "
                        "dead."
                    )
                return f"{lower}."
            case "initialization":
                return f"{draw}."
            case "either":
                return f"{draw} and keep the learning rate, or lower the learning rate."
            case "both":
                return f"Change both. {lower}. {draw}."
            case "divergence":
                return "Lower the learning rate, or clip the gradients, until the loss is finite."
            case "undetermined":
                if self._undrawn():
                    return (
                        "Pass a batch, trial.init(model, batch), or draw these weights anew in "
                        "your own code; the notes name them."
                    )
                return "See `status` and `error` in the table of trials."
        look = "ook at the inputs: `reludiag report` on a recording shows more."
        prevented = self._arms[RATE].prevented if RATE in self._arms else None
        if prevented is not None and prevented >= PARTLY:
            return f"Try a larger change, such as --lr-scale 0.01, and l{look}"
        if self._born_dead() and INIT not in self._arms:
            return f"Try --init kaiming, for many are dead at step 0, and l{look}"
        return f"L{look}"

    def notes(self, trials: pd.DataFrame) -> list[str]:
        """What weakens the answer."""
        answer, notes = self._answer, []
        if answer.agreeing < answer.seeds:
            notes.append(
                f"{answer.agreeing} of {answer.seeds} seeds alone give this answer: more seeds "
                "would make it surer."
            )
        elif answer.seeds == 1:
            notes.append("This is one seed only: another seed may give another answer.")
        for arm in self._arms.values():
            lost = [
                f"{count} {what}"
                for count, what in ((arm.diverged, "diverged"), (arm.crashed, "crashed"))
                if count
            ]
            if lost:
                runs = "run" if arm.runs == 1 else "runs"
                consequence = "left out" if arm.counted else "what it prevents is unknown"
                notes.append(
                    f"Of {arm.runs} {runs} of {arm.name}, {' and '.join(lost)}: {consequence}."
                )
        born = self._arms[FACTUAL].born
        if answer.kind in ("learning_rate", "initialization", "neither") and born is not None:
            notes.append(f"Dead at step 0, before any learning: {_share(born)} of the units.")
        notes += recording_notes(trials[trials["status"] == "complete"])
        errors = trials["error"][trials["error"] != ""]
        if len(errors):
            notes.append(f"First error: {errors.iloc[0]}")
        return notes

    def _masked(self) -> str:
        if self._answer.dominant == "learning_rate":
            return (
                "Both must be fixed: the learning rate kills more units, and hides the "
                "initialization"
            )
        if self._answer.dominant == "initialization":
            return (
                "Both must be fixed: the initialization kills more units, and hides the "
                "learning rate"
            )
        return "Both must be fixed: with one change alone, the other cause still kills units"

    def _unknown_sentence(self) -> str:
        """What is unknown because runs crashed or diverged."""
        if not self._dead(FACTUAL):
            return "No run finished, so there is no answer."
        texts = {RATE: self._change_lr, INIT: self._change_init, BOTH: "both changes"}
        lost = [texts[name] for name, arm in self._arms.items() if arm.prevented is None]
        if self._undrawn():
            return (
                f"It is unknown what {self._change_init} would prevent, because the weights of "
                f"dead units were left as they are: {self._shares()}."
            )
        return (
            f"It is unknown what {' or '.join(lost)} would prevent, because no such run "
            f"finished: {self._shares()}."
        )

    def _undrawn(self) -> bool:
        """Whether the scheme left the weights of dead units as they were."""
        return any((arm.undrawn or 0) > HEALTHY for arm in self._arms.values())

    def _shares(self) -> str:
        parts = [text for text in (self._part(RATE), self._part(INIT), self._part(BOTH)) if text]
        return ", ".join([f"{self._dead(FACTUAL)} of the units are dead", *parts])

    def _killed(self) -> str:
        return "the units not born dead" if self._born_dead() else "them"

    def _born_dead(self) -> bool:
        born = self._arms[FACTUAL].born
        return born is not None and born > HEALTHY

    def _too_high(self) -> bool:
        prevented = self._arms[RATE].prevented
        return prevented is not None and prevented < PREVENTED

    def _part(self, name: str) -> str:
        texts = {RATE: self._change_lr, INIT: self._change_init, BOTH: "both"}
        return f"{self._dead(name)} with {texts[name]}" if self._dead(name) else ""

    def _dead(self, name: str) -> str:
        arm = self._arms.get(name)
        return "" if arm is None or arm.dead is None else _share(arm.dead)


def _share(value: float) -> str:
    """In percent, never rounded to 0 or 100."""
    if 0 < value < 0.001:
        return "< 0.1 %"
    if 0.999 < value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"

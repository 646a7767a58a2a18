"""ReplayConclusion: the answer of a replay as sentences."""

from collections.abc import Mapping, Sequence

import pandas as pd

from reludiag.causes.all_kinds import kind_named
from reludiag.experiments.analysis.counterfactual import (
    BOTH,
    FACTUAL,
    HEALTHY,
    INIT,
    INPUT,
    PARTLY,
    PREVENTED,
    RATE,
    TRAVEL,
    Answer,
    Arm,
    kind_of,
    single_changes,
)
from reludiag.experiments.analysis.metric_changes import metric_changes
from reludiag.experiments.trial_table import recording_notes

_ALIKE = {
    "learning_rate": {"divergence", "upstream_collapse", "no_steps"},
    "initialization": {"upstream_collapse", "batchnorm_statistics"},
    "input": {"input_shift"},
    "weight_decay": {"regularization"},
}
"""Answer -> kinds of cause in a report that it does not contradict."""


class ReplayConclusion:
    """The sentence, the advice, and the notes that weaken them."""

    def __init__(
        self,
        trials: pd.DataFrame,
        arms: Sequence[Arm],
        answer: Answer,
        rate: float | None,
        lr_scale: float | None,
        init: str | None,
        suspects: Sequence[str] = (),
    ) -> None:
        """`suspects` are the kinds of cause that the reports of the unchanged runs name."""
        self._trials, self._answer = trials, answer
        self._arms = {arm.name: arm for arm in arms}
        self._singles = single_changes(self._arms)
        self._metrics = {name: metric_changes(trials, name) for name in self._arms}
        self._rate = "" if rate is None else f" {rate:.4g}"
        self._lowered = f"{rate * lr_scale:.4g}" if rate and lr_scale else f"x {lr_scale}"
        self._verb = "lowered" if lr_scale is None or lr_scale < 1 else "raised"
        self._more = "" if not lr_scale else f"{1 / lr_scale:.3g} times the steps"
        self._init = init
        self._unvaried = self._not_varied(suspects)

    def sentence(self) -> str:
        """What killed the units, with the shares as evidence, and what that did to the metrics."""
        said = self._of_deaths()
        kind = self._answer.kind
        if kind in ("none", "divergence", "undetermined"):
            return said
        names = self._enough() or ([BOTH] if kind == "both" else self._best_alone())
        for name in names:
            told, prevented = self._in_metrics(name), self._arms[name].prevented
            if told and prevented is not None:
                alone = len(names) == 1 and kind != "neither"
                which = "This change" if alone else self._change(name)
                which = "These changes together" if name == BOTH else which
                verb = "prevent" if name == BOTH else "prevents"
                said += f" {which} {verb} {_share(prevented)} of the deaths, and {told}."
        return said

    def advice(self) -> str:
        """What to do next."""
        kind = self._answer.kind
        if kind == "none":
            better = self._better()
            if better:
                return f"{_upper(self._to_do(better))}, for {self._in_metrics(better)}."
            return "Change nothing."
        if kind == "divergence":
            return "Lower the learning rate, or clip the gradients, until the loss is finite."
        if kind == "undetermined":
            if self._undrawn():
                return (
                    "Pass a batch, trial.init(model, batch), or draw these weights anew in your "
                    "own code; the notes name them."
                )
            return "See `status` and `error` in the table of trials."
        if kind == "both":
            every = ", and ".join(self._to_do(name) for name in self._singles)
            which = "Change both" if len(self._singles) == 2 else "Change all of them"
            return self._unless_worse([BOTH], f"{which}: {every}.")
        if kind == "neither":
            return self._look_elsewhere()
        enough = self._enough()
        if kind == "learning_rate" and self._too_high():
            return self._unless_worse([RATE], f"Use a learning rate below {self._lowered}.")
        if kind == "learning_rate" and self._born_dead() and INIT not in self._arms:
            return self._unless_worse(
                [RATE],
                f"Use a learning rate of {self._lowered}, and try --init kaiming: that may save "
                "some of the units born dead.",
            )
        # Where one change also makes the metric better, another that only spares it is no equal.
        learning = [name for name in enough if self._is_better(name)]
        good = learning or [name for name in enough if not self._is_worse(name)] or enough
        every = ", or ".join(self._to_do(name) for name in good)
        return self._unless_worse(good, f"{_upper(every)}.")

    def notes(self) -> list[str]:
        """What weakens the answer."""
        answer, notes = self._answer, []
        if answer.agreeing < answer.seeds:
            notes.append(
                f"{answer.agreeing} of {answer.seeds} seeds alone give this answer: more seeds "
                "would make it surer."
            )
        elif answer.seeds == 1:
            notes.append("This is one seed only: another seed may give another answer.")
        unlearned = self._metrics.get(RATE) and not self._is_better(RATE)
        if RATE in self._enough() and unlearned and TRAVEL not in self._arms:
            notes.append(
                "In as many steps a lower rate also learns less. --equal-travel gives it more "
                "steps, where train asks for their number by trial.steps(n)."
            )
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
        if answer.kind not in ("none", "divergence", "undetermined") and born is not None:
            notes.append(f"Dead at step 0, before any learning: {_share(born)} of the units.")
        notes += recording_notes(self._trials[self._trials["status"] == "complete"])
        errors = self._trials["error"][self._trials["error"] != ""]
        if len(errors):
            notes.append(f"First error: {errors.iloc[0]}")
        return notes

    # The sentence

    def _of_deaths(self) -> str:
        dead, kind = self._dead(FACTUAL), self._answer.kind
        if kind == "none":
            return self._nothing_dead(dead)
        if kind == "divergence":
            return self._diverged()
        if kind == "undetermined":
            return self._unknown_sentence()
        if kind == "neither":
            if self._only_hurries():
                return (
                    f"The learning rate{self._rate} only hurries the deaths: {dead} of the units "
                    f"are dead, {self._dead(RATE)} with {self._text(RATE)}, and "
                    f"{self._dead(TRAVEL)} with {self._more} at that rate."
                )
            several = len(self._singles) > 1
            which = "This change does not explain"
            if several:
                some = "Neither change" if len(self._singles) == 2 else "None of the changes"
                which = f"{some} explains"
            return f"{which} the deaths: {self._shares()}."
        if kind == "both":
            return f"{self._masked()}: {self._shares()}."
        enough = self._enough()
        if kind == "either":
            subjects = [self._subject(name) for name in enough]
            which = "either" if len(enough) == 2 else "one of them"
            shares = self._shares([*enough, *self._others(enough)])
            return (
                f"{_upper(_joined(subjects))} together killed the units, and changing {which} is "
                f"enough: {shares}."
            )
        name = enough[0]
        text, share = self._text(name), self._dead(name)
        still = "".join(
            f"{'; with' if index == 0 else ', with'} {self._text(other)} it is "
            f"{'still ' if index == 0 else ''}{self._dead(other)}"
            for index, other in enumerate(self._others(enough))
        )
        if name == RATE and self._dead(TRAVEL):
            still += f"; with {self._more} at the lower rate it is {self._dead(TRAVEL)}"
        if self._unvaried:
            titles = _joined([kind_named(each).title for each in self._unvaried])
            return (
                f"{self._change(name)} prevents the deaths: {dead} of the units are dead, {share} "
                f"with it{still}. But the report of the unchanged run names {titles}, and this was "
                "not varied: the replay does not tell which of them killed the units."
            )
        subject = _upper(self._subject(name)) + (self._rate if name == RATE else "")
        too_high = ", which is still too high" if name == RATE and self._too_high() else ""
        return (
            f"{subject} killed {self._killed(name)}: {dead} of the units are dead, {share} with "
            f"{text}{too_high}{still}."
        )

    def _nothing_dead(self, dead: str) -> str:
        better = self._better()
        if not better:
            return f"There is nothing to explain: only {dead} of the units are dead."
        return (
            f"No deaths are to be explained: only {dead} of the units are dead. But with "
            f"{self._text(better)} {self._in_metrics(better)}."
        )

    def _diverged(self) -> str:
        finite = [
            self._in_full(name)
            for name, arm in self._arms.items()
            if name != FACTUAL and arm.counted
        ]
        but = f"; with {' or with '.join(finite)} it does not" if finite else ""
        return (
            f"The run diverges{but}: its units are not finite, so they are neither dead nor alive."
        )

    def _masked(self) -> str:
        two = len(self._singles) == 2
        which = "Both must be fixed" if two else "All of them must be fixed"
        if self._answer.dominant is None:
            return (
                f"{which}: with one change alone, the other cause{'' if two else 's'} still "
                f"kill{'s' if two else ''} units"
            )
        first = next(name for name in self._singles if kind_of(name) == self._answer.dominant)
        others = [self._subject(name) for name in self._singles if name != first]
        return f"{which}: {self._subject(first)} kills more units, and hides {_joined(others)}"

    def _unknown_sentence(self) -> str:
        """What is unknown because runs crashed or diverged."""
        if not self._dead(FACTUAL):
            return "No run finished, so there is no answer."
        lost = [
            "both changes" if name == BOTH and len(self._singles) == 2 else self._text(name)
            for name, arm in self._arms.items()
            if arm.prevented is None
        ]
        if self._undrawn():
            return (
                f"It is unknown what {self._text(INIT)} would prevent, because the weights of "
                f"dead units were left as they are: {self._shares()}."
            )
        return (
            f"It is unknown what {' or '.join(lost)} would prevent, because no such run "
            f"finished: {self._shares()}."
        )

    def _shares(self, names: Sequence[str] = ()) -> str:
        names = names or [*self._singles, BOTH, TRAVEL]
        parts = [
            f"{self._dead(name)} with {self._text(name)}" for name in names if self._dead(name)
        ]
        if len(parts) > 2 and parts[-1].endswith((" both", " all of them")):
            parts[-1] = f"and {parts[-1]}"
        return ", ".join([f"{self._dead(FACTUAL)} of the units are dead", *parts])

    # The advice

    def _look_elsewhere(self) -> str:
        look = "ook at the inputs: `reludiag report` on a recording shows more."
        if self._only_hurries():
            return f"L{look}"
        prevented = self._arms[RATE].prevented if RATE in self._arms else None
        if prevented is not None and prevented >= PARTLY:
            return f"Try a larger change, such as --lr-scale 0.01, and l{look}"
        if self._born_dead() and INIT not in self._arms:
            return f"Try --init kaiming, for many are dead at step 0, and l{look}"
        return f"L{look}"

    def _unless_worse(self, names: Sequence[str], advice: str) -> str:
        """The advice; if all of these changes make a metric worse, that and what to try."""
        if not names or not all(self._is_worse(name) for name in names):
            return advice
        worse = next(change for change in self._metrics[names[0]] if change.verdict == "worse")
        rate = " Try a rate in between, or more steps." if names[0] in (RATE, BOTH) else ""
        return f"{advice[:-1]} only if you accept that {worse}.{rate}"

    def _to_do(self, name: str) -> str:
        """What a reader does to make this change."""
        if name == RATE:
            return f"use a learning rate of {self._lowered}"
        if name == INIT:
            return f"initialize the model by {self._init}"
        if name == INPUT:
            return "subtract the mean of each feature from the input"
        if name == BOTH:
            return " and ".join(self._to_do(single) for single in self._singles)
        if name == TRAVEL:
            return f"{self._to_do(RATE)} for {self._more}"
        setting, _, value = name.partition("=")
        return f"set {setting} to {value}"

    # Parts of both

    def _enough(self) -> list[str]:
        """The arms whose change alone is the answer."""
        kind = self._answer.kind
        if kind == "either":
            shares = {name: self._arms[name].prevented or 0.0 for name in self._singles}
            return [name for name, share in shares.items() if share >= PREVENTED]
        return [name for name in self._singles if kind_of(name) == kind][:1]

    def _best_alone(self) -> list[str]:
        """The change that prevents a part of the deaths, if any does."""
        shares = {name: self._arms[name].prevented or 0.0 for name in self._singles}
        best = max(shares, key=lambda name: shares[name], default=None)
        return [best] if best is not None and shares[best] >= PARTLY else []

    def _others(self, names: Sequence[str]) -> list[str]:
        return [name for name in self._singles if name not in names and self._dead(name)]

    def _better(self) -> str:
        """The arm with which a metric gets better, and none worse; empty if there is none."""
        names = [*self._singles, BOTH, TRAVEL]
        return next((name for name in names if self._is_better(name)), "")

    def _in_metrics(self, name: str) -> str:
        """What a change does to the metrics that change, the worse ones first."""
        changed = [each for each in self._metrics.get(name, ()) if each.verdict != "same"]
        changed.sort(key=lambda each: each.verdict != "worse")
        return " and ".join(str(each) for each in changed[:2])

    def _is_better(self, name: str) -> bool:
        verdicts = {change.verdict for change in self._metrics.get(name, ())}
        return "better" in verdicts and "worse" not in verdicts

    def _is_worse(self, name: str) -> bool:
        return any(change.verdict == "worse" for change in self._metrics.get(name, ()))

    def _not_varied(self, suspects: Sequence[str]) -> list[str]:
        """The suspected causes that a replay of one change left as they are."""
        if len(self._singles) != 1:
            return []
        varied = kind_of(self._singles[0])
        alike = {varied, *_ALIKE.get(varied, ())}
        return [kind for kind in dict.fromkeys(suspects) if kind not in alike]

    def _only_hurries(self) -> bool:
        """Whether a lower rate prevents deaths, but not with as many more steps."""
        lower, travel = self._arms.get(RATE), self._arms.get(TRAVEL)
        if lower is None or travel is None or lower.prevented is None or travel.prevented is None:
            return False
        return lower.prevented >= PREVENTED and travel.prevented < PREVENTED

    def _undrawn(self) -> bool:
        """Whether the scheme left the weights of dead units as they were."""
        return any((arm.undrawn or 0) > HEALTHY for arm in self._arms.values())

    def _killed(self, name: str) -> str:
        return "the units not born dead" if name == RATE and self._born_dead() else "them"

    def _born_dead(self) -> bool:
        born = self._arms[FACTUAL].born
        return born is not None and born > HEALTHY

    def _too_high(self) -> bool:
        prevented = self._arms[RATE].prevented
        return prevented is not None and prevented < PREVENTED

    def _subject(self, name: str) -> str:
        named = {RATE: "the learning rate", INIT: "the initialization", INPUT: "the input"}
        return named.get(name) or f"the setting {name.partition('=')[0]}"

    def _text(self, name: str) -> str:
        """A change, after "with"."""
        texts = {
            RATE: f"the learning rate {self._verb} to {self._lowered}",
            INIT: f"{self._init} initialization",
            INPUT: "the input centred",
            BOTH: "both" if len(self._singles) == 2 else "all of them",
            TRAVEL: f"that rate and {self._more}",
        }
        return texts.get(name) or " = ".join(name.split("=", 1))

    def _change(self, name: str) -> str:
        """A change, at the beginning of a sentence."""
        if name == INPUT:
            return "Centring the input"
        if name in (RATE, INIT, BOTH, TRAVEL):
            return _upper(self._text(name))
        setting, _, value = name.partition("=")
        return f"Setting {setting} to {value}"

    def _in_full(self, name: str) -> str:
        if name == BOTH:
            return " and ".join(self._text(single) for single in self._singles)
        return self._text(name)

    def _dead(self, name: str) -> str:
        arm = self._arms.get(name)
        return "" if arm is None or arm.dead is None else _share(arm.dead)


def suspects_of(kinds: Mapping[str, int]) -> list[str]:
    """The kinds of cause that the reports of unchanged runs name, the most frequent first."""
    claims = {kind: n for kind, n in kinds.items() if kind_named(kind).claim == "cause"}
    return sorted(claims, key=lambda kind: -claims[kind])


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _joined(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _share(value: float) -> str:
    """In percent, never rounded to 0 or 100."""
    if 0 < value < 0.001:
        return "< 0.1 %"
    if 0.999 < value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"

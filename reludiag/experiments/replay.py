"""Replay: reruns a training with one thing changed, to find out why its units died."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pandas as pd

from reludiag.causes.cause import Cause
from reludiag.causes.variation import FALLBACK_SCALE, REDRAWN, Variation, variation_of
from reludiag.diagnosis.from_recording import load
from reludiag.errors import ReludiagError, UsageError, UserCodeError
from reludiag.experiments.analysis.counterfactual import (
    BOTH,
    FACTUAL,
    INIT,
    INPUT,
    RATE,
    TRAVEL,
    Answer,
    Arm,
    answer,
    arms_of,
)
from reludiag.experiments.analysis.explanation import ReplayConclusion, suspects_of
from reludiag.experiments.queue.pool import Progress, check_not_a_worker
from reludiag.experiments.queue.queue import Cell, Result
from reludiag.experiments.queue.worker import Train
from reludiag.experiments.sweep import run_cells, seed_list
from reludiag.experiments.trial_changes import OWN_OPTIONS
from reludiag.initialization.schemes import DEFAULT, scheme_named

LR_SCALE, INIT_SCHEME = FALLBACK_SCALE, REDRAWN
"""What is changed if nothing is given, and the report of the unchanged run suspects nothing."""


@dataclass(frozen=True)
class Replay:
    """The results of the factual and the counterfactual runs."""

    train: str
    lr: float | None
    """The learning rate of the factual runs, as train proposes it."""
    lr_scale: float | None
    """The counterfactual learning rate is the factual one times this; None if it was not changed.
    """
    init: str | None
    """The counterfactual initialization; None if it was not changed."""
    answer: Answer
    arms: tuple[Arm, ...]
    sentence: str
    advice: str
    notes: tuple[str, ...]
    """What the reader must know to judge the answer."""
    suspects: tuple[str, ...]
    """Kinds of cause that the reports of the unchanged runs name."""
    trials: pd.DataFrame
    """`TRIAL_COLUMNS` and metrics as `sweep` has them, and `arm`."""

    def arm(self, name: str) -> Arm | None:
        """The runs of `factual`, `lr`, `init`, `input`, `name=value` of a setting, `both` (all of
        them together), or `lr, more steps`; None if it was not run.
        """
        return next((arm for arm in self.arms if arm.name == name), None)

    def to_json(self, path: str | Path | IO[str]) -> None:
        """Write one JSON document with a `schema_version`; `-` is stdout."""
        from reludiag.reports.output import write
        from reludiag.reports.replay_report import replay_document

        write(path, replay_document(self))

    def __str__(self) -> str:
        """The terminal report as plain text, 80 columns wide."""
        from reludiag.reports.replay_report import replay_text

        return replay_text(self)


def replay(
    train: Train | str,
    *,
    lr_scale: float | None = None,
    init: str | None = None,
    settings: Mapping[str, Any] | None = None,
    center_input: bool = False,
    equal_travel: bool = False,
    seeds: int | Sequence[int] = 3,
    path: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Run `train(trial)` unchanged, with one thing changed at a time, and with all changed, each
    with the same seeds; find what killed its units.

    `lr_scale` scales its learning rate, and `init` draws its weights by this scheme. `settings`
    replaces values in the groups of its optimizers, such as {"weight_decay": 0}, or those that it
    asks for by `trial.value(name, default)`. `center_input` subtracts the mean of the probe from
    the model's input. `equal_travel` also tries the changed rate with as many more steps, which
    train asks for by `trial.steps(default)`. If nothing is given, the training runs once, and what
    its own report suspects is changed; `LR_SCALE` and `INIT_SCHEME` if it suspects nothing.

    `path` is a folder for the trials and recordings, from which an unfinished replay continues;
    with None nothing is kept. The other arguments are as in `sweep`.

    Raises UsageError if nothing is to be changed, or what train does not have; UserCodeError as
    soon as it is clear that every run would crash; and what `sweep` raises.
    """
    check_not_a_worker("replay")
    wanted = Variation(lr_scale, init, dict(settings or {}), center_input, equal_travel)
    variation = _checked(wanted)
    seed_numbers = seed_list(seeds)
    known: dict[str, Any] = {"lr_scale": lr_scale, "init": init, "seeds": seed_numbers}
    if settings:
        known["settings"] = dict(settings)
    known |= {
        name: True
        for name, value in (("center_input", center_input), ("equal_travel", equal_travel))
        if value
    }
    with tempfile.TemporaryDirectory(prefix="reludiag-replay-") as temporary:
        folder = Path(temporary if path is None else path)

        def run(cells: Sequence[Cell]) -> pd.DataFrame:
            return run_cells(train, cells, known, folder, workers, None, progress, _check)

        if wanted.is_empty:
            first = run([Cell(0, seed_numbers[0])])
            variation = _suspected(first, equal_travel)
        changes = arms_to_run(variation)
        plan = [(seed, name) for seed in seed_numbers for name in changes]
        trials = run(
            [Cell(number, seed, **changes[name]) for number, (seed, name) in enumerate(plan)]
        )
        trials.insert(1, "arm", pd.Series([name for _, name in plan], trials.index, dtype="str"))
        suspects = suspects_of(Counter(cause.kind for cause in _causes(trials)))
    if path is None:
        trials["recording"] = ""
    return replay_of(trials, _name(train), variation.lr_scale, variation.init, suspects)


def replay_of(
    trials: pd.DataFrame,
    train: str,
    lr_scale: float | None,
    init: str | None,
    suspects: Sequence[str] = (),
) -> Replay:
    """The Replay of a table of trials that has a column `arm`."""
    conclusion, arms = answer(trials), arms_of(trials)
    rates = trials[trials["arm"] == FACTUAL]["lr"].dropna()
    rate = float(rates.iloc[0]) if len(rates) else None
    words = ReplayConclusion(trials, arms, conclusion, rate, lr_scale, init, suspects)
    return Replay(
        train=train,
        lr=rate,
        lr_scale=lr_scale,
        init=init,
        answer=conclusion,
        arms=arms,
        sentence=words.sentence(),
        advice=words.advice(),
        notes=tuple(words.notes()),
        suspects=tuple(suspects),
        trials=trials,
    )


def _checked(wanted: Variation) -> Variation:
    """Without what changes nothing. Raises UsageError for what cannot be changed, or if nothing is
    left of what was given.
    """
    lr_scale = None if wanted.lr_scale == 1 else wanted.lr_scale
    init = None if wanted.init == DEFAULT else wanted.init
    variation = replace(wanted, lr_scale=lr_scale, init=init)
    if variation.is_empty and not wanted.is_empty:
        raise UsageError(
            "nothing would be changed; expected lr_scale (--lr-scale) other than 1, init (--init) "
            "other than default, settings (--set) or center_input (--center-input)"
        )
    if lr_scale is not None and not 0 < lr_scale < float("inf"):
        raise UsageError(f"lr_scale={lr_scale} was given; expected a positive number, such as 0.1")
    if variation.equal_travel and lr_scale is None and not variation.is_empty:
        raise UsageError(
            "equal_travel (--equal-travel) was given without a changed learning rate; expected "
            "lr_scale (--lr-scale) as well, such as 0.1"
        )
    scheme_named(init or DEFAULT)
    for name in variation.settings:
        if name in OWN_OPTIONS:
            raise UsageError(
                f"{name} was to be set (--set {name}=...); it is changed by {OWN_OPTIONS[name]}"
            )
    return variation


def arms_to_run(variation: Variation) -> dict[str, dict[str, Any]]:
    """Name of each arm -> the fields of its cells."""
    singles: dict[str, dict[str, Any]] = {}
    if variation.lr_scale is not None:
        singles[RATE] = {"lr_scale": variation.lr_scale}
    if variation.init is not None:
        singles[INIT] = {"init": variation.init}
    for name, value in variation.settings.items():
        singles[f"{name}={json.dumps(value)}"] = {"settings": {name: value}}
    if variation.center_input:
        singles[INPUT] = {"center_input": True}
    arms: dict[str, dict[str, Any]] = {FACTUAL: {}, **singles}
    if len(singles) > 1:
        together = {name: value for fields in singles.values() for name, value in fields.items()}
        if variation.settings:
            together["settings"] = dict(variation.settings)
        arms[BOTH] = together
    if variation.equal_travel and variation.lr_scale is not None:
        arms[TRAVEL] = {"lr_scale": variation.lr_scale, "steps_scale": 1 / variation.lr_scale}
    return arms


def _suspected(trials: pd.DataFrame, equal_travel: bool) -> Variation:
    """What the report of the first unchanged run suspects."""
    causes = _causes(trials)
    variation = variation_of(causes[0].changes) if causes else Variation()
    if variation.is_empty:
        variation = Variation(LR_SCALE, INIT_SCHEME)
    return replace(variation, equal_travel=equal_travel)


def _causes(trials: pd.DataFrame) -> list[Cause]:
    """The cause of each unchanged run whose recording is here."""
    unchanged = trials["arm"] == FACTUAL if "arm" in trials else trials["trial"] == 0
    causes: list[Cause] = []
    for recording in trials[unchanged & (trials["recording"] != "")]["recording"]:
        try:
            causes += load(recording).causes[:1]
        except ReludiagError:  # made on another machine
            continue
    return causes


def _check(results: Sequence[tuple[Cell, Result]]) -> None:
    """Raise UserCodeError if runs of two arms crashed alike, the unchanged one among them, and none
    came further: so would all.
    """
    crashed = [(cell, result) for cell, result in results if result.status == "crashed"]
    unchanged = [result for cell, result in crashed if _is_unchanged(cell)]
    if len(crashed) < len(results) or not unchanged:
        return
    error = unchanged[0].error
    if any(result.error == error and not _is_unchanged(cell) for cell, result in crashed):
        raise UserCodeError(
            f"train(trial) crashed unchanged and changed: {error}. Every run would, so the replay "
            "has ended",
            unchanged[0].traceback,
        )


def _is_unchanged(cell: Cell) -> bool:
    return cell == Cell(cell.trial, cell.seed)


def _name(train: Train | str) -> str:
    return train if isinstance(train, str) else train.__qualname__

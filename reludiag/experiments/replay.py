"""Replay: reruns a training with one thing changed, to find out why its units died."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pandas as pd

from reludiag.errors import UsageError
from reludiag.experiments.analysis.counterfactual import (
    BOTH,
    FACTUAL,
    INIT,
    RATE,
    Answer,
    Arm,
    answer,
    arms_of,
)
from reludiag.experiments.analysis.explanation import ReplayConclusion
from reludiag.experiments.queue.pool import Progress, check_not_a_worker
from reludiag.experiments.queue.queue import Cell
from reludiag.experiments.queue.worker import Train
from reludiag.experiments.sweep import run_cells, seed_list
from reludiag.initialization.schemes import DEFAULT, scheme_named

LR_SCALE, INIT_SCHEME = 0.1, "kaiming"
"""The default changes."""


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
    trials: pd.DataFrame
    """`TRIAL_COLUMNS` and metrics as `sweep` has them, and `arm`."""

    def arm(self, name: str) -> Arm | None:
        """The runs of `factual`, `lr`, `init` or `both`; None if it was not run."""
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
    seeds: int | Sequence[int] = 3,
    path: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Run `train(trial)` unchanged, with its learning rate scaled, with its weights drawn by the
    scheme `init`, and with both, each with the same seeds; find what killed its units.

    None leaves a setting unchanged; if both are None, they are `LR_SCALE` and `INIT_SCHEME`. `path`
    is a folder for the trials and recordings, from which an unfinished replay continues; with None
    nothing is kept. The other arguments are as in `sweep`.

    Raises UsageError if nothing is to be changed, and what `sweep` raises.
    """
    check_not_a_worker("replay")
    if lr_scale is None and init is None:
        lr_scale, init = LR_SCALE, INIT_SCHEME
    lr_scale = None if lr_scale == 1 else lr_scale
    init = None if init == DEFAULT else init
    if lr_scale is None and init is None:
        raise UsageError(
            "nothing would be changed; expected lr_scale (--lr-scale) other than 1, or init "
            "(--init) other than default, or both"
        )
    if lr_scale is not None and not 0 < lr_scale < float("inf"):
        raise UsageError(f"lr_scale={lr_scale} was given; expected a positive number, such as 0.1")
    scheme_named(init or DEFAULT)
    ways = {
        FACTUAL: (1.0, DEFAULT),
        RATE: (lr_scale, DEFAULT),
        INIT: (1.0, init),
        BOTH: (lr_scale, init),
    }
    names = [name for name, way in ways.items() if None not in way]
    seed_numbers = seed_list(seeds)
    plan = [(seed, name) for seed in seed_numbers for name in names]
    cells = [
        Cell(number, seed, lr_scale=ways[name][0] or 1.0, init=ways[name][1] or DEFAULT)
        for number, (seed, name) in enumerate(plan)
    ]
    settings = {"lr_scale": lr_scale, "init": init, "seeds": seed_numbers}
    with tempfile.TemporaryDirectory(prefix="reludiag-replay-") as temporary:
        folder = Path(temporary if path is None else path)
        trials = run_cells(train, cells, settings, folder, workers, None, progress)
    if path is None:
        trials["recording"] = ""
    trials.insert(1, "arm", pd.Series([name for _, name in plan], index=trials.index, dtype="str"))
    return replay_of(trials, _name(train), lr_scale, init)


def replay_of(trials: pd.DataFrame, train: str, lr_scale: float | None, init: str | None) -> Replay:
    """The Replay of a table of trials that has a column `arm`."""
    conclusion, arms = answer(trials), arms_of(trials)
    rates = trials[trials["arm"] == FACTUAL]["lr"].dropna()
    rate = float(rates.iloc[0]) if len(rates) else None
    words = ReplayConclusion({arm.name: arm for arm in arms}, conclusion, rate, lr_scale, init)
    return Replay(
        train=train,
        lr=rate,
        lr_scale=lr_scale,
        init=init,
        answer=conclusion,
        arms=arms,
        sentence=words.sentence(),
        advice=words.advice(),
        notes=tuple(words.notes(trials)),
        trials=trials,
    )


def _name(train: Train | str) -> str:
    return train if isinstance(train, str) else train.__qualname__

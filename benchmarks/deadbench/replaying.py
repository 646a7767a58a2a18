"""What `reludiag replay` answers for a training: its experiment, in this process."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import reludiag
from benchmarks.deadbench.loop import train
from benchmarks.deadbench.training import Settings, Training
from reludiag.causes.variation import Variation
from reludiag.experiments.analysis.counterfactual import answer
from reludiag.experiments.queue.queue import Cell
from reludiag.experiments.queue.worker import run_cell
from reludiag.experiments.replay import INIT_SCHEME, LR_SCALE, arms_to_run
from reludiag.experiments.trial_table import trials_table

EVERY = 50
"""Steps between snapshots: the answer needs the first and the last alone."""
PENALTY = "penalty"
"""The name by which a training asks whether its loss has a penalty."""
RIGHT = {
    "learning_rate": {"learning_rate", "either"},
    "initialization": {"initialization", "either"},
    "input": {"input", "either"},
    "regularization": {"weight_decay", PENALTY, "either"},
    "divergence": {"divergence", "learning_rate", "either"},
    "none": {"none"},
}
"""The answers that are right for a proved cause; `neither` is for any other."""


def varied(settings: Settings) -> Variation:
    """As `--lr-scale 0.1 --init kaiming --center-input`, and `--set NAME=0` for what there is."""
    inside = {name: 0.0 for name in ("weight_decay", "momentum") if getattr(settings, name)}
    own = {} if settings.penalty is None else {PENALTY: False}
    return Variation(LR_SCALE, INIT_SCHEME, {**inside, **own}, center_input=True)


def replayed(training: Training, seeds: int) -> str:
    """The answer from all seeds together: one of `counterfactual.ANSWERS`, or `refused`."""
    settings = training.settings

    def run(trial: reludiag.Trial) -> dict[str, float]:
        def watch(
            model: nn.Module, optimizer: torch.optim.Optimizer, probe: Tensor
        ) -> reludiag.Monitor:
            return trial.monitor(model, optimizer, probe=probe, every=EVERY)

        has_penalty = trial.value(PENALTY, settings.penalty is not None)
        changed = settings.but(
            lr=trial.lr(settings.lr), penalty=settings.penalty if has_penalty else None
        )
        outcome = train(changed, trial.seed, watch, prepare=trial.init)
        return {"loss": outcome.loss} if math.isfinite(outcome.loss) else {}

    arms = arms_to_run(varied(settings))
    plan = [(seed, arm) for seed in range(seeds) for arm in arms]
    cells = [Cell(number, seed, **arms[arm]) for number, (seed, arm) in enumerate(plan)]
    try:
        with TemporaryDirectory(prefix="deadbench-") as folder:
            trials = trials_table([(cell, run_cell(run, cell, Path(folder))) for cell in cells])
    except reludiag.ReludiagError:  # such as weights that cannot be drawn again
        return "refused"
    trials.insert(1, "arm", [arm for _, arm in plan])
    return answer(trials).kind


def is_right(said: str, proved: frozenset[str]) -> bool:
    """Whether it is the answer that a replay can give to one of these causes."""
    right = {each for cause in proved for each in RIGHT.get(cause, {"neither"})}
    return said in right

"""What `reludiag replay` answers for a training: its experiment, in this process."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import reludiag
from benchmarks.deadbench.loop import train
from benchmarks.deadbench.training import Training
from reludiag.experiments.analysis.counterfactual import BOTH, FACTUAL, INIT, RATE, answer
from reludiag.experiments.queue.queue import Cell
from reludiag.experiments.queue.worker import run_cell
from reludiag.experiments.replay import INIT_SCHEME, LR_SCALE
from reludiag.experiments.trial_table import trials_table
from reludiag.initialization.schemes import DEFAULT

EVERY = 50
"""Steps between snapshots: the answer needs the first and the last alone."""
ARMS = {
    FACTUAL: (1.0, DEFAULT),
    RATE: (LR_SCALE, DEFAULT),
    INIT: (1.0, INIT_SCHEME),
    BOTH: (LR_SCALE, INIT_SCHEME),
}
RIGHT = {
    "learning_rate": {"learning_rate", "either"},
    "initialization": {"initialization", "either"},
    "divergence": {"divergence", "learning_rate", "either"},
    "none": {"none"},
}
"""The answers that are right for a proved cause; `neither` is for any other."""


def replayed(training: Training, seeds: int) -> str:
    """The answer from all seeds together: one of `counterfactual.ANSWERS`, or `refused`."""
    settings = training.settings

    def run(trial: reludiag.Trial) -> dict[str, float]:
        def watch(
            model: nn.Module, optimizer: torch.optim.Optimizer, probe: Tensor
        ) -> reludiag.Monitor:
            return trial.monitor(model, optimizer, probe=probe, every=EVERY)

        changed = settings.but(lr=trial.lr(settings.lr))
        outcome = train(changed, trial.seed, watch, prepare=trial.init)
        return {"loss": outcome.loss} if math.isfinite(outcome.loss) else {}

    plan = [(seed, arm) for seed in range(seeds) for arm in ARMS]
    cells = [
        Cell(number, seed, lr_scale=ARMS[arm][0], init=ARMS[arm][1])
        for number, (seed, arm) in enumerate(plan)
    ]
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

"""Trial: the argument of a user's `train(trial)`, through which an experiment varies it.

def train(trial):
model = trial.init(build())
optimizer = torch.optim.Adam(model.parameters(), lr=trial.lr(1e-3))
with trial.monitor(model, optimizer, probe=inputs):
...
return {"accuracy": accuracy}
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from reludiag.errors import UsageError
from reludiag.initialization.schemes import DEFAULT, reinitialize, scheme_named
from reludiag.measure.frozen_pass import eager_model
from reludiag.monitoring.monitor import Monitor
from reludiag.sites.weight_axes import producer_name

Model = TypeVar("Model", bound=nn.Module)


class Trial:
    """One run of an experiment. `Trial()`, created by hand, changes nothing in a training.

    `lr` replaces the learning rate that train proposes, `lr_scale` multiplies it, `init` is the
    name of an initialization scheme ("default": as built), and `recording` the path of the run's
    recording (None: memory).

    Raises UsageError for an invalid learning rate or scheme.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        lr: float | None = None,
        lr_scale: float = 1.0,
        init: str = DEFAULT,
        recording: str | Path | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("lr_scale", lr_scale)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name}={value} was given; expected a positive number")
        scheme_named(init)
        self.seed = seed
        self._lr, self._scale, self._scheme = lr, lr_scale, init
        self._recording = None if recording is None else Path(recording)
        self._rates: list[float] = []
        self._initialized = False
        self._drawn: list[nn.Parameter] = []
        """The parameters of all layers that were drawn."""
        self._left: list[str] = []
        self._monitor: Monitor | None = None

    def lr(self, default: float) -> float:
        """The learning rate to use instead of `default`."""
        rate = (default if self._lr is None else self._lr) * self._scale
        self._rates.append(rate)
        return rate

    def init(self, model: Model, batch: Any = None) -> Model:
        """Draw the weights of the model again by the trial's scheme, in place; returns the same
        model.

        `batch` is as in `reinitialize`: pass one where a note says that weights were left.
        """
        change = reinitialize(model, self._scheme, self.seed, batch)
        modules = dict(model.named_modules(remove_duplicate=False))
        self._drawn += [
            parameter
            for name, parameter in model.named_parameters()
            if producer_name(name, modules) in change.drawn
        ]
        self._left += [words] if (words := change.left_in_words()) else []
        self._initialized = True
        return model

    def monitor(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        probe: Any = None,
        **settings: Any,
    ) -> Monitor:
        """A Monitor that writes the run's recording; use it around the training loop.

        `settings` are those of `Monitor`, except the path, which the trial sets.
        Raises UsageError when called twice: a trial is one run.
        """
        if self._monitor is not None:
            raise UsageError(
                "trial.monitor was called twice; expected one Monitor per trial. Pass several "
                "optimizers as a list"
            )
        if self._recording is not None:  # in an experiment, deaths are expected
            settings.setdefault("warn_over", None)
        facts = {"seed": self.seed, "init": self._scheme, "lr": self.learning_rate}
        if self._scheme != DEFAULT:
            facts |= {"drawn": self._drawn_in(model), "left": ", ".join(self._left)}
        self._monitor = Monitor(
            model,
            optimizer,
            path=self._recording,
            overwrite=True,
            probe=probe,
            facts={"trial": facts},
            **settings,
        )
        return self._monitor

    def _drawn_in(self, model: nn.Module) -> list[str]:
        """The layers of this model that were drawn: it may hold the one that was initialized."""
        model = eager_model(model)
        modules = dict(model.named_modules(remove_duplicate=False))
        drawn = {id(parameter) for parameter in self._drawn}
        return sorted(
            {
                producer_name(name, modules)
                for name, parameter in model.named_parameters()
                if id(parameter) in drawn
            }
        )

    @property
    def learning_rate(self) -> float | None:
        """The result of `lr`; the largest if it was called several times, None if never."""
        return max(self._rates, default=None)

    @property
    def recorded(self) -> bool:
        """Whether the run's recording has any snapshot."""
        return self._monitor is not None and bool(self._monitor.snapshots)

    def check_used(self) -> None:
        """Raise UsageError if train did not use what this trial varies."""
        missing = []
        if not self._rates and (self._lr is not None or self._scale != 1):
            missing.append("trial.lr(default) for its learning rate")
        if not self._initialized and self._scheme != DEFAULT:
            missing.append("trial.init(model) for its weights")
        if not self.recorded:
            missing.append("`with trial.monitor(model, optimizer):` around its loop")
        if missing:
            raise UsageError(
                f"train(trial) never called {', nor '.join(missing)}: this run would be the same "
                "as every other. Call it, and start again"
            )

    def seed_everything(self) -> None:
        """Seed the global streams of Python, NumPy and PyTorch."""
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)

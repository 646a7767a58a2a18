"""Trial: the argument of a user's `train(trial)`, through which an experiment varies it.

def train(trial):
model = trial.init(build())
optimizer = torch.optim.Adam(model.parameters(), lr=trial.lr(1e-3))
with trial.monitor(model, optimizer, probe=inputs):
...
return {"accuracy": accuracy}
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from reludiag.errors import UsageError
from reludiag.experiments.trial_changes import (
    as_type_of,
    center_input,
    change_groups,
    check_known,
)
from reludiag.initialization.schemes import DEFAULT, reinitialize, scheme_named
from reludiag.measure.frozen_pass import eager_model
from reludiag.monitoring.monitor import Monitor
from reludiag.sites.weight_axes import producer_name

Model = TypeVar("Model", bound=nn.Module)


class Trial:
    """One run of an experiment. `Trial()`, created by hand, changes nothing in a training.

    `lr` replaces the learning rate that train proposes, `lr_scale` multiplies it, `steps_scale` the
    number of steps, and `init` is the name of an initialization scheme ("default": as built).
    `settings` replaces what is in the groups of the optimizers, and values that train asks for by
    `value`; with `center_input` the mean of the probe is subtracted from the model's input.
    `recording` is the path of the run's recording (None: memory).

    Raises UsageError for an invalid learning rate, number of steps or scheme.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        lr: float | None = None,
        lr_scale: float = 1.0,
        init: str = DEFAULT,
        settings: Mapping[str, Any] | None = None,
        center_input: bool = False,
        steps_scale: float = 1.0,
        recording: str | Path | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("lr_scale", lr_scale), ("steps_scale", steps_scale)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name}={value} was given; expected a positive number")
        scheme_named(init)
        self.seed = seed
        self._lr, self._scale, self._scheme = lr, lr_scale, init
        self._settings, self._center_input = dict(settings or {}), center_input
        self._steps_scale = steps_scale
        self._recording = None if recording is None else Path(recording)
        self._rates: list[float] = []
        self._asked: set[str] = set()
        """Names of the values that train asked for."""
        self._optimizers: list[Optimizer] = []
        self._steps_used = False
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

    def value(self, name: str, default: Any) -> Any:
        """The value to use for a setting of train's own, such as `trial.value("l1", 5.0)`.

        Raises UsageError if the value to use is not like the default.
        """
        self._asked.add(name)
        if name not in self._settings:
            return default
        return as_type_of(default, self._settings[name], name)

    def steps(self, default: int) -> int:
        """The number of steps, or epochs, to take instead of `default`."""
        self._steps_used = True
        return max(1, round(default * self._steps_scale))

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

        It also changes what the trial varies in the groups of the optimizer and in the input.
        `settings` are those of `Monitor`, except the path, which the trial sets.
        Raises UsageError when called twice: a trial is one run; and if what is to be varied is
        neither in the groups, nor a value that train asks for.
        """
        if self._monitor is not None:
            raise UsageError(
                "trial.monitor was called twice; expected one Monitor per trial. Pass several "
                "optimizers as a list"
            )
        if self._recording is not None:  # in an experiment, deaths are expected
            settings.setdefault("warn_over", None)
        if optimizer is not None:
            self._optimizers = [optimizer] if isinstance(optimizer, Optimizer) else [*optimizer]
        own = {name: value for name, value in self._settings.items() if name not in self._asked}
        change_groups(self._optimizers, own)
        if self._center_input:
            center_input(eager_model(model), probe)
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
        if self._steps_scale != 1 and not self._steps_used:
            missing.append("trial.steps(default) for its number of steps")
        if missing:
            raise UsageError(
                f"train(trial) never called {', nor '.join(missing)}: this run would be the same "
                "as every other. Call it, and start again"
            )
        for name in self._settings:
            check_known(name, self._optimizers, self._asked)

    def seed_everything(self) -> None:
        """Seed the global streams of Python, NumPy and PyTorch."""
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)

"""What a training is: settings, each of which can be changed alone, and the ones that are wrong.

A training of a known cause is its settings and, by cause, what they would be without that one
thing (`undo`). Nothing is believed: a cause counts only if its `undo` removes most deaths, with
the same seed, in the run at hand (see `proof.py`).

A file of the folder `trainings` with these lines is a training:

    from benchmarks.deadbench.training import Settings, Training

    TRAININGS = (
        Training("too fast", Settings(optimizer="adam", lr=0.1), {"learning_rate": {"lr": 1e-3}}),
    )
"""

import importlib.util
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from benchmarks.deadbench.tasks import DIGITS, Task, mlp

CAUSES = (
    "learning_rate",
    "initialization",
    "input",
    "regularization",
    "outlier",
    "inherited",
    "edited",
    "structure",
    "scale_of_targets",
    "batchnorm_statistics",
    "upstream_collapse",
    "divergence",
    "no_steps",
    "none",
    "undetermined",
)
"""The answers."""
NAMEABLE = frozenset(CAUSES) - {"none", "undetermined"}
"""Those that something can be undone for."""
FOLDER = Path(__file__).with_name("trainings")

Init = Callable[[nn.Module], None]


def constant(step: int) -> float:
    return 1.0


def same(x: Tensor) -> Tensor:
    return x


def as_drawn(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y


def no_edit(step: int, model: nn.Module) -> None:
    """Leave the weights to the optimizer."""


@dataclass(frozen=True)
class Group:
    """A parameter group: those whose names match, and that no earlier group has."""

    names: str = ""
    """A regular expression that is searched for."""
    rate: float = 1.0
    """Factor of the learning rate."""
    decays: bool = True


@dataclass(frozen=True)
class Settings:
    """All that decides a training beside its seed. Steps are counted from 0."""

    task: Task = DIGITS
    network: Callable[[], nn.Module] = field(default=lambda: mlp(64, (64, 64, 64), 10))
    leak: float = 0.0
    """Slope below 0 of every ReLU: above 0 it is a LeakyReLU."""
    init: tuple[Init, ...] = ()
    """What is done to the weights, in this order, before training and after PyTorch's own draw."""
    start: "Settings | None" = None
    """An earlier training that this one goes on from, by its checkpoint."""
    optimizer: str = "sgd"
    """`sgd`, `adam`, `adamw` or `rmsprop`."""
    lr: float = 0.1
    schedule: Callable[[int], float] = constant
    """Step -> factor of the learning rate."""
    groups: tuple[Group, ...] = (Group(),)
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = math.inf
    """Largest norm of the gradient."""
    steps: int = 200
    batch: int = 64
    skipped: Callable[[int], bool] = field(default=lambda step: False)
    """Whether the optimizer leaves out a step."""
    inputs: tuple[Callable[[Tensor], Tensor], ...] = ()
    """What is done to all samples, in this order."""
    targets: Callable[[Tensor], Tensor] = same
    corrupt: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] = as_drawn
    """What becomes of the batch of a step."""
    loss_scale: Callable[[int], float] = constant
    """Step -> factor of the loss."""
    penalty: Callable[[list[Tensor]], Tensor] | None = None
    """Of the outputs of all rectifiers, added to the loss."""
    edit: Callable[[int, nn.Module], None] = no_edit
    """What is done to the weights after a step, outside the optimizer."""

    def but(self, **changes: Any) -> Self:
        """These settings with some changed."""
        return replace(self, **changes)


Change = Callable[[Settings], Settings]


@dataclass(frozen=True)
class Training:
    """Settings at which units die, or a healthy training."""

    name: str
    settings: Settings
    undo: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Cause -> the settings as they should have been. The first one is the cause; any other is
    right too, where its own counterfactual proves it. Empty: healthy."""
    site: str = ""
    """The rectifier whose deaths are asked about, by the name of its module; empty: the run."""

    @property
    def cause(self) -> str:
        return next(iter(self.undo), "none")

    def fixed(self, cause: str) -> Settings:
        """The settings without this cause."""
        return self.settings.but(**self.undo[cause])


def trainings(folder: Path = FOLDER) -> list[Training]:
    """Those of all files of the folder, by file name.

    Raises ValueError if two have one name, or if a cause is not in `NAMEABLE`.
    """
    every = [training for module in _modules(folder) for training in module.TRAININGS]
    names = [training.name for training in every]
    if double := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two trainings are called {sorted(double)}; expected different names")
    for training in every:
        if unknown := {*training.undo} - NAMEABLE:
            raise ValueError(
                f"training {training.name!r} has the cause {sorted(unknown)}; expected one of "
                f"{', '.join(sorted(NAMEABLE))}"
            )
    return every


def _modules(folder: Path) -> Iterable[Any]:
    """The modules of a folder of this package, or of any other folder."""
    for info in sorted(pkgutil.iter_modules([str(folder)]), key=lambda info: info.name):
        if folder == FOLDER:
            yield importlib.import_module(f"benchmarks.deadbench.trainings.{info.name}")
        else:
            path = folder / f"{info.name}.py"
            spec = importlib.util.spec_from_file_location(f"deadbench_{info.name}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            yield module

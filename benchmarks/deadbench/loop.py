"""The one loop that all trainings run in, and an own count of the units that are lost.

The count shares no code with reludiag. A unit is lost if no value of it is above 0, at any
position of any sample of the probe in eval mode, or if any is not finite. A unit of a LeakyReLU
is counted in the same way: it still learns, but on this data it is never on.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.deadbench.tasks import generator, leaky, relative_error
from benchmarks.deadbench.training import Group, Settings

PROBE = 512
"""Samples on which units are judged."""
RECTIFIERS = (nn.ReLU, nn.LeakyReLU, nn.GELU)
Watch = Callable[[nn.Module, torch.optim.Optimizer, Tensor], AbstractContextManager[Any]]
"""Of a model, its optimizer and the probe: what is active while it trains."""
OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    lost: Mapping[str, float]
    """Share of the units of each rectifier that are lost, by the name of its module; "" is all."""
    nonfinite: float
    """Share of all units that are not finite."""
    loss: float
    """Of the task alone, on all data in eval mode; of a regression over the variance of its
    targets. Infinity if it is not finite."""
    model: nn.Module

    def at(self, site: str = "") -> float:
        """The share lost there; 0 of a rectifier that this model has not."""
        return self.lost.get(site, 0.0)


def train(
    settings: Settings,
    seed: int,
    watch: Watch | None = None,
    prepare: Callable[[nn.Module], nn.Module] | None = None,
) -> Outcome:
    """Train a model; the seed decides its weights and the order of the samples.

    `prepare` is called with the untrained model, and returns the one that is trained.
    """
    x, y = samples(settings)
    model = untrained(settings, seed)
    model = prepare(model) if prepare else model
    optimizer, order = optimizer_of(settings, model), generator(seed)
    with watch(model, optimizer, x[:PROBE]) if watch else nullcontext():
        for step in range(settings.steps):
            _step(settings, step, model, optimizer, _batch(settings, step, x, y, order))
    lost, nonfinite = lost_units(model, x[:PROBE])
    return Outcome(lost, nonfinite, task_loss(settings, model, x, y), model)


def samples(settings: Settings) -> tuple[Tensor, Tensor]:
    """Inputs and targets, as the training sees them."""
    x, y = settings.task.data()
    return reduce(lambda x, change: change(x), settings.inputs, x), settings.targets(y)


def untrained(settings: Settings, seed: int) -> nn.Module:
    """The model with the weights with which the training begins."""
    if settings.start is not None:
        model = train(settings.start, seed).model
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = settings.network()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed + 1_000_003)
        for change in settings.init:
            change(model)
    return leaky(model, settings.leak) if settings.leak else model


def optimizer_of(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    groups = []
    for group, parameters in grouped(settings.groups, model):
        decay = settings.weight_decay if group.decays else 0.0
        groups.append({"params": parameters, "lr": settings.lr, "weight_decay": decay})
    extra = {} if settings.optimizer.startswith("adam") else {"momentum": settings.momentum}
    return OPTIMIZERS[settings.optimizer](groups, lr=settings.lr, **extra)


def grouped(groups: tuple[Group, ...], model: nn.Module) -> list[tuple[Group, list[Tensor]]]:
    """The trained parameters of each group."""
    left, found = dict(model.named_parameters()), []
    for group in groups:
        mine = [name for name in left if re.search(group.names, name)]
        found.append((group, [left.pop(name) for name in mine]))
    assert not left, f"in no group: {[*left]}"
    return found


def _batch(
    settings: Settings, step: int, x: Tensor, y: Tensor, order: torch.Generator
) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(0, len(x), (settings.batch,), generator=order)
    return settings.corrupt(step, x[chosen], y[chosen])


def _step(
    settings: Settings,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
) -> None:
    for param_group, group in zip(optimizer.param_groups, settings.groups, strict=True):
        param_group["lr"] = settings.lr * group.rate * settings.schedule(step)
    x, y = batch
    optimizer.zero_grad()
    with _outputs(model) if settings.penalty else nullcontext({}) as outputs:
        loss = settings.task.loss(model(x), y) * settings.loss_scale(step)
        if settings.penalty:
            loss = loss + settings.penalty([*outputs.values()])
    loss.backward()
    if math.isfinite(settings.clip):
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    if not settings.skipped(step):
        optimizer.step()
    with torch.no_grad():
        settings.edit(step, model)


@contextlib.contextmanager
def _outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The output of each rectifier in the last pass of this block, by the name of its module."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        outputs[name] = output

    handles = [
        module.register_forward_hook(partial(keep, name))
        for name, module in model.named_modules()
        if isinstance(module, RECTIFIERS)
    ]
    yield outputs
    for handle in handles:
        handle.remove()


def lost_units(model: nn.Module, x: Tensor) -> tuple[dict[str, float], float]:
    """Share of the units of each rectifier that are lost, and that of all that are not finite."""
    with in_eval_mode(model), _outputs(model) as outputs:
        model(x)
    lost, nonfinite = {}, []
    for name, output in outputs.items():
        # Units are channels of images and the last axis of anything else.
        units = output.movedim(1 if output.ndim == 4 else -1, -1).flatten(0, -2)
        nonfinite.append(~units.isfinite().all(0))
        lost[name] = nonfinite[-1] | (units.amax(0) <= 0)
    shares = {name: float(of.float().mean()) for name, of in lost.items()}
    shares[""] = float(torch.cat([*lost.values()]).float().mean())
    return shares, float(torch.cat(nonfinite).float().mean())


def task_loss(settings: Settings, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The loss of the task on these samples in eval mode."""
    measure = relative_error if y.is_floating_point() else settings.task.loss
    with in_eval_mode(model):
        loss = float(measure(model(x), y))
    return loss if math.isfinite(loss) else math.inf


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Without gradients; every module in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        yield
    for module, mode in modes:
        module.training = mode

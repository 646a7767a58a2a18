"""What the four sample models share: the seeds and the command line."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Attach = Callable[[nn.Module, Optimizer], contextlib.AbstractContextManager[Any]]
"""Returns a context for the training loop, such as a Monitor."""


def unwatched(model: nn.Module, optimizer: Optimizer) -> contextlib.AbstractContextManager[None]:
    """A context for the training loop that does nothing."""
    return contextlib.nullcontext()


def attached(trial: Any, probe: Tensor) -> Attach:
    """Attach the Monitor of a trial, with a snapshot every ten steps."""
    return lambda model, optimizer: trial.monitor(model, optimizer, probe=probe, every=10)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Use a separate random stream inside, unless `seed` is None."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def main(
    build: Callable[..., nn.Module],
    fit: Callable[..., dict[str, float]],
    probe: Callable[[], Tensor],
    healthy: dict[str, Any],
    dying: dict[str, Any],
    models: dict[str, Callable[..., nn.Module]] | None = None,
) -> None:
    """Train from the command line; write a checkpoint and a recording if requested."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--dying", action="store_true", help="use the learning rate that kills units"
    )
    parser.add_argument("--lr", type=float, help="set the learning rate")
    parser.add_argument("--steps", type=int, help="number of optimizer steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=10, help="steps between snapshots")
    parser.add_argument("--checkpoint", type=Path, help="file for the weights")
    parser.add_argument("--recording", type=Path, help="file for the recording of the run")
    if models:
        parser.add_argument("--model", choices=models, default=next(iter(models)))
    options = parser.parse_args()

    settings = dict(dying if options.dying else healthy)
    for name in ("lr", "steps"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    model = (models[options.model] if models else build)(seed=options.seed)
    metrics = fit(
        model, seed=options.seed, attach=_monitor(options, probe) or unwatched, **settings
    )
    print(", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    if options.checkpoint:
        torch.save(model.state_dict(), options.checkpoint)


def _monitor(options: argparse.Namespace, probe: Callable[[], Tensor]) -> Attach | None:
    if not options.recording:
        return None
    import reludiag

    return lambda model, optimizer: reludiag.Monitor(
        model,
        optimizer,
        path=options.recording,
        every=options.every,
        probe=probe(),
        overwrite=True,
    )

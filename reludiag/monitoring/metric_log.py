"""MetricLog: what the user measures during a run, in windows of `every` steps.

A value in a tensor stays on its device until the next snapshot: to log it does not wait. Of each
window and name there are only the last value, the sum and the number of values, so that a run of
any length has bounded memory.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reludiag.errors import UsageError
from reludiag.recording import Metric
from reludiag.sites.readable import kind_of, readable
from reludiag.sites.torch_internals import DisableTorchFunction, without_dispatch_modes

LONGEST_NAME = 200


@dataclass
class _Total:
    """Values of one name on one device; on the host, the device is None."""

    last: Any
    """A float, or a tensor of one float. `sum` likewise."""
    sum: Any
    count: int = 1


@dataclass
class _Window:
    """Values of one name in one window."""

    step: int
    totals: dict[torch.device | None, _Total]
    latest: torch.device | None
    """Where the last value is."""


class MetricLog:
    """Sums up values by window and name."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._windows: dict[tuple[int, str], _Window] = {}
        """By the step at which a window ends, and name; those since the last `take`."""

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values that were logged after `step` steps. Raises UsageError for what is no number;
        nothing is added then.
        """
        numbers = {_checked_name(name): _number(name, value) for name, value in values.items()}
        end = -(-step // self._every) * self._every
        for name, number in numbers.items():
            device = number.device if isinstance(number, Tensor) else None
            window = self._windows.setdefault((end, name), _Window(step, {}, device))
            window.step, window.latest = step, device
            total = window.totals.get(device)
            if total is None:
                window.totals[device] = _first(number)
            elif isinstance(number, Tensor):
                with _unseen():
                    total.last.copy_(number)
                    total.sum.add_(total.last)
                total.count += 1
            else:
                total.last, total.sum, total.count = number, total.sum + number, total.count + 1

    def take(self, step: int) -> list[Metric]:
        """The values since the last call, by window; this waits for their devices.

        The window that holds `step` may grow, and comes again then.
        """
        metrics = []
        for (end, name), window in self._windows.items():
            totals = window.totals.values()
            count = sum(each.count for each in totals)
            total = sum(float(each.sum) for each in totals)
            last = float(window.totals[window.latest].last)
            metrics.append(Metric(end, name, window.step, last, total / count, count))
        self._windows = {key: w for key, w in self._windows.items() if key[0] >= step}
        return metrics


def named_values(metrics: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """What was logged, by name. Raises UsageError for `metrics` that are no mapping."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise UsageError(
            f"log({type(metrics).__name__}) was given; expected names with numbers, such as "
            "log(loss=loss) or log({'val/loss': loss})"
        )
    return {**(metrics or {}), **named}


def check_mark(name: Any) -> None:
    """Raises UsageError for what is no name of a mark."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise UsageError(
            f"mark({str(name)[:40]!r}) was given; expected a text of 1 to {LONGEST_NAME} "
            "characters, such as 'task 3'"
        )


def is_number(value: Any) -> bool:
    """Whether a value can be logged: of what a framework passes on, some cannot."""
    try:
        _number("", value)
    except UsageError:
        return False
    return True


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise UsageError(
            f"a metric with the name {str(name)[:40]!r} was logged; expected a text of 1 to "
            f"{LONGEST_NAME} characters"
        )
    return name


def _number(name: str, value: Any) -> float | Tensor:
    """The value as a float, or as a tensor with one real number."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UsageError(
                f"the metric {name!r} is a tensor of shape {tuple(value.shape)}; expected one "
                f"number, such as {name}.mean()"
            )
        plain = readable(value)
        if plain is None or plain.is_complex() or plain.is_quantized:
            what = kind_of(value) if plain is None else f"tensor of {plain.dtype}"
            raise UsageError(f"the metric {name!r} is a {what}; expected one real number")
        return plain.detach().reshape(())
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    wrong = UsageError(
        f"the metric {name!r} is of type {type(value).__name__}; expected a number, or a tensor "
        "with one element"
    )
    if isinstance(value, str | bytes | complex | np.complexfloating):
        raise wrong
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong from error


def _first(number: float | Tensor) -> _Total:
    if not isinstance(number, Tensor):
        return _Total(number, number)
    with _unseen():
        # Copies, since the tensor may change later. Apple's GPUs have no double precision.
        dtype = torch.float32 if number.device.type == "mps" else torch.float64
        last = torch.empty((), dtype=dtype, device=number.device).copy_(number)
        return _Total(last, last.clone())


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """Operators here are not followed, by reludiag or by a mode of the user's, nor by autograd."""
    with (
        DisableTorchFunction(),
        without_dispatch_modes(),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        yield

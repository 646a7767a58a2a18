"""Deaths: examines, at a snapshot on a probe, each unit that died since the last one.

It answers two questions about the update in the window, from the weights theta0 at its beginning to
theta1 at its end (parameters and floating-point buffers):

- What changed the mean pre-activation? The identity of `decomposition` answers it, from one frozen
  pass with theta0 and one with theta1. The computed mean must agree with the measured one, in both
  passes and for every unit of the site; otherwise there is no answer.
- How much of the update would the unit have survived? This is the largest fraction f, on a grid
  refined by bisection, at which the unit still fires on the probe with theta0 + f (theta1 -
  theta0). For a single step of plain SGD it is exactly the effect of a learning rate f times as
  large; for a window of steps, or another optimizer, it is an estimate.

The model's tensors are never written: passes run with other tensors in their place. It costs the
memory of one copy of the weights for the whole run and of another during passes, no time in windows
without a death, and at most `PASSES` frozen passes over the probe in a window with deaths, as long
as the `Budget` has time for them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reludiag.capture.compiled import uncompiled
from reludiag.capture.model_state import preserve_state
from reludiag.capture.watched import Watch
from reludiag.evidence.budget import Budget
from reludiag.evidence.decomposition import Folded, drift
from reludiag.evidence.probe_passes import ProbePasses
from reludiag.recording.observations import Death, Drift
from reludiag.sites.axes import UnitAxes
from reludiag.sites.site import Site

Mask = np.ndarray[Any, np.dtype[np.bool_]]

GRID = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128)
"""Fractions of an update that are tried for all deaths of a window: powers of 1/2, because critical
learning rates can be orders of magnitude below the one that was used.
"""
BISECTIONS = 9
"""Passes that refine the grid, each in the widest bracket with the most deaths."""
PASSES = 2 + len(GRID) + BISECTIONS
"""Frozen passes over the probe in a window with deaths."""
CLOSE = 0.02
"""A bracket this narrow, relative to its upper end, is not refined."""


@dataclass(frozen=True)
class UnitState:
    """Which units of one site were dead at a snapshot, and for which units this is known."""

    site: Site
    dead: Mask
    has_state: Mask


class DeathWatch:
    """Follows the units of a model from snapshot to snapshot, and examines the ones that died."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        unit_axes: UnitAxes | None,
        merge_calls: bool,
        budget: Budget,
        watch: Watch | None = None,
    ) -> None:
        self._model, self._budget = model, budget
        self._passes = ProbePasses(model, batches, unit_axes, merge_calls, watch)
        self._states: dict[str, UnitState] = {}
        self._step = 0
        self._weights: dict[str, Tensor] = {}

    def observe(self, step: int, states: Sequence[UnitState]) -> list[Death]:
        """The units that died since the last snapshot, with the evidence on each if there is time.

        It leaves the model unchanged, to the last bit.
        """
        died = {
            state.site.key: (state.site, units)
            for state in states
            if len(units := self._died(state))
        }
        deaths: list[Death] = []
        if died and self._budget.allows():
            with self._budget.spending():
                deaths = self._examine(step, died)
        elif died:
            deaths = [
                Death(key, unit, step, self._step, examined=False)
                for key, (_, units) in died.items()
                for unit in units.tolist()
            ]
        self._states, self._step = {state.site.key: state for state in states}, step
        self._keep()
        return deaths

    def _died(self, state: UnitState) -> np.ndarray[Any, Any]:
        previous = self._states.get(state.site.key)
        if previous is None or previous.dead.shape != state.dead.shape:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(state.dead & state.has_state & ~previous.dead & previous.has_state)

    def _keep(self) -> None:
        """Copy the weights, into the same memory if it fits."""
        now = _floating(self._model)
        for name, tensor in now.items():
            copy = self._weights.get(name)
            if copy is None or copy.shape != tensor.shape or copy.device != tensor.device:
                self._weights[name] = tensor.clone()
            else:
                copy.copy_(tensor)
        for name in self._weights.keys() - now.keys():
            del self._weights[name]

    def _examine(
        self, step: int, died: Mapping[str, tuple[Site, np.ndarray[Any, Any]]]
    ) -> list[Death]:
        model = self._model
        with preserve_state(model), torch.no_grad(), uncompiled():
            model.train(False)
            end = _floating(model)
            if end.keys() != self._weights.keys():  # the model was rebuilt in between
                start = end
            else:
                start = {n: w.to(end[n].device, end[n].dtype) for n, w in self._weights.items()}
            sites = {key: site for key, (site, _) in died.items()}
            # First with the model's own weights: the pass that is followed has to know them.
            now = self._passes.full(end, sites)
            then = self._passes.full(start, sites)

            def fires(fraction: float) -> Mapping[str, Mask]:
                between = {n: torch.lerp(w, end[n], fraction) for n, w in start.items()}
                return self._passes.fired(between, sites)

            units = {
                key: units[then.fired[key][units] & ~now.fired[key][units]]
                for key, (_, units) in died.items()
                if key in then.fired and key in now.fired
            }
            fractions = critical_fractions(fires, {k: u for k, u in units.items() if len(u)})
        deaths = []
        for key, (_, numbers) in died.items():
            drifts = _drifts(then.of(key), now.of(key))
            for unit in numbers.tolist():
                fraction = fractions.get((key, unit), float("nan"))
                drift = None if drifts is None else drifts(unit)
                deaths.append(Death(key, unit, step, self._step, fraction, drift))
        return deaths


def critical_fractions(
    fires: Callable[[float], Mapping[str, Mask]], units: Mapping[str, np.ndarray[Any, Any]]
) -> dict[tuple[str, int], float]:
    """For each unit of each site, the largest tried fraction of the update that it survives.

    `fires(fraction)` says which units fire at a fraction; these units fire at 0 and not at 1.
    """
    deaths = [(key, int(unit)) for key, numbers in units.items() for unit in numbers]
    if not deaths:
        return {}
    low, high = np.zeros(len(deaths)), np.ones(len(deaths))

    def try_at(fraction: float) -> None:
        inside = (low < fraction) & (fraction < high)
        if not inside.any():
            return
        fired = fires(fraction)
        survived = np.array([bool(fired[key][unit]) for key, unit in deaths])
        low[inside & survived] = high[inside & ~survived] = fraction

    for fraction in GRID:  # from above: if a unit dies and fires again, the last fraction counts
        try_at(fraction)
    for _ in range(BISECTIONS):
        wide = high - low > CLOSE * high
        if not wide.any():
            break
        brackets, units_in = np.unique(np.stack([low, high])[:, wide], axis=1, return_counts=True)
        need = units_in * (brackets[1] - brackets[0]) / brackets[1]
        try_at(float(brackets[:, int(np.argmax(need))].mean()))
    return dict(zip(deaths, low.tolist(), strict=True))


def _drifts(first: Folded | None, second: Folded | None) -> Callable[[int], Drift] | None:
    """The reason for the change of a unit's mean pre-activation."""
    if first is None or second is None:
        return None
    start, end = first.mean().cpu().numpy(), second.mean().cpu().numpy()
    parts = drift(first, second)
    return lambda unit: Drift(
        float(start[unit]), float(end[unit]), *(float(part[unit]) for part in parts)
    )


def _floating(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers by name, each once: the model's own memory."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}

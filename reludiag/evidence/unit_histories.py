"""Unit histories: what moved each unit, summed from the beginning of the run to its death.

In the measured steps, and in no others, it takes the terms of the update (`update_terms`) of each
layer that feeds a rectifier, and what of the gradient came around the model's output
(`loss_paths`). Each measured step stands for the steps until the next one. What triggered a death
and what caused it are two things: a decay that shrank a layer for hundreds of steps may be a small
part of the step that killed.

The drift is that of the mean pre-activation on the training batch of the step, with the rest of
the network as it was: dw.x + db, where x is the mean input; behind a BatchNorm the change of its
bias, because there the mean of the batch is the bias. The shrinkage is the relative change of the
size of the weights (behind a BatchNorm, of its weight) by decay and by penalties that read the
weights, as a rate per step that is summed: after a sum of 1 they would have 37 % of their size if
nothing else had moved them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from reludiag.evidence.loss_paths import LossPaths
from reludiag.evidence.measured_layer import MeasuredLayer, measured_layer, row_norms
from reludiag.evidence.step_inputs import StepInputs
from reludiag.evidence.update_terms import Terms, group_of, has_momentum, split
from reludiag.recording.observations import History

RESIDUAL = 1e-3
"""Terms that differ by more than this from the measured update, relative to the sum of their sizes,
are not those of what the optimizer did."""
Floats = np.ndarray[Any, np.dtype[np.float64]]


class UnitHistories:
    """Follows the layers of a model from measured step to measured step."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._model, self._optimizers = model, optimizers
        self._layers: dict[str, MeasuredLayer] = {}
        self._inputs = StepInputs()
        self.paths = LossPaths(is_open=False)
        self._dead: dict[str, Any] = {}
        self._decays: dict[str, float] = {}
        self._momenta: dict[str, float] = {}

    @property
    def facts(self) -> dict[str, Any]:
        """Weight decay and momentum by parameter group, where there is any, as JSON."""
        facts = {"weight_decay": self._decays, "momentum": self._momenta}
        return {name: dict(values) for name, values in facts.items() if values}

    # What is seen in a measured step

    def begin_step(self) -> None:
        """A measured step begins."""
        self._inputs, self.paths = StepInputs(), LossPaths()

    def take_input(self, module: nn.Module, x: Tensor) -> None:
        """Add an input of a layer."""
        self._inputs.take(module, x)

    def take_output(self, outputs: Sequence[Tensor]) -> None:
        """A forward pass of the model has ended with these outputs."""
        watched = {
            id(parameter): layer.rows
            for layer in self._layers.values()
            for parameter in (layer.weight, layer.scale)
            if parameter is not None
        }
        self.paths.follow(outputs, watched)

    # The optimizer

    def keep(self) -> None:
        """Copy the measured weights before the optimizer changes them."""
        for layer in self._layers.values():
            layer.before = {}
            for name in ("weight", "bias", "scale", "shift"):
                parameter = getattr(layer, name)
                owner = None if parameter is None else group_of([*self._optimizers], parameter)
                if owner is None or len(parameter) != layer.width:
                    continue
                copy = parameter.detach()[layer.rows].clone()
                layer.before[name] = parameter, copy, has_momentum(owner[2], parameter)

    def measure(self, step: int) -> None:
        """The optimizer has taken `step`."""
        self.paths.is_open = False
        if self.paths.error is not None:
            raise self.paths.error
        for index, optimizer in enumerate(self._optimizers):
            for number, group in enumerate(optimizer.param_groups):
                if decay := float(group.get("weight_decay") or 0):
                    self._decays[f"{index}/{number}"] = decay
                if momentum := float(group.get("momentum") or 0):
                    self._momenta[f"{index}/{number}"] = momentum
        for layer in self._layers.values():
            self._measure(layer, step)
            layer.before = {}
        self._inputs, self.paths = StepInputs(), LossPaths(is_open=False)

    def _measure(self, layer: MeasuredLayer, step: int) -> None:
        gap = step - layer.step
        if layer.step:
            layer.life += gap * layer.drift
            layer.shrinkage += gap * layer.rate
        layer.step = step
        layer.drift, layer.rate = np.full_like(layer.drift, np.nan), np.zeros_like(layer.rate)
        terms = {name: self._split(layer, name, step) for name in layer.before}
        size = "scale" if layer.scale is not None else "weight"
        if terms.get(size) is not None:
            layer.rate = self._shrinkage(layer, size, terms[size])
        if (of_weight := terms.get("weight")) is not None:
            moved = (of_weight.fresh + of_weight.carried).flatten(1).norm(dim=1)
            ratios = moved.double().cpu().numpy() / np.maximum(layer.start_weight, 1e-300)
            layer.largest = np.fmax(layer.largest, ratios)
        self._add_pushes(layer)
        drift = self._drift(layer, terms)
        if drift is not None:
            layer.drift = drift
            layer.last = np.where(drift[0] != 0, drift, layer.last)

    def _split(self, layer: MeasuredLayer, name: str, step: int) -> Terms | None:
        parameter, before, had_momentum = layer.before[name]
        owner = group_of([*self._optimizers], parameter)
        if owner is None:
            return None
        _, number, optimizer = owner
        group = optimizer.param_groups[number]
        terms = split(optimizer, group, parameter, before, had_momentum, step - 1, layer.rows)
        if terms is None:
            return None
        change = parameter.detach()[layer.rows] - before
        sizes = terms.fresh.abs() + terms.carried.abs() + terms.decay.abs()
        error = float((terms.sum() - change).norm())
        rounding = 1e-6 * float(before.norm())
        close = error <= RESIDUAL * float(sizes.norm()) + rounding
        return terms if close else None

    def _shrinkage(self, layer: MeasuredLayer, name: str, terms: Terms | None) -> Floats:
        assert terms is not None
        parameter, before, _ = layer.before[name]
        w = before.reshape(len(before), -1).double()
        square = w.square().sum(1).clamp(min=1e-300)

        def relative(change: Tensor) -> Floats:
            along = -(change.reshape(len(before), -1).double() * w).sum(1) / square
            values: Floats = along.cpu().numpy()
            return values

        rates = [relative(terms.lasting_decay()), np.zeros(len(before))]
        penalty, total = (
            each.get(id(parameter)) for each in (self.paths.penalties, self.paths.totals)
        )
        if penalty is not None and total is not None and parameter.grad is not None:
            # The optimizer was given the gradient after clipping and unscaling.
            gradient = parameter.grad.detach()[layer.rows]
            scale = float((gradient * total).sum()) / max(float(total.square().sum()), 1e-300)
            rates[1] = relative(terms.factor * penalty * scale * terms.amplified)
        return np.stack(rates)

    def _drift(self, layer: MeasuredLayer, terms: dict[str, Terms | None]) -> Floats | None:
        def of(name: str, x: Tensor | None = None) -> Floats | None:
            update = terms.get(name)
            if update is None:
                return None
            parts = [update.fresh, update.carried, update.decay]
            if x is not None:
                parts = [(p.reshape(len(p), -1).double() * x).sum(1) for p in parts]
            return np.stack([part.double().cpu().numpy() for part in parts])

        if layer.has_norm:
            return of("shift")
        x = self._inputs.mean(layer.weight, layer.rows)
        if x is None:
            return None
        weights = of("weight", x)
        if weights is None or layer.bias is None:
            return weights
        bias = of("bias")
        return None if bias is None else weights + bias

    def _add_pushes(self, layer: MeasuredLayer) -> None:
        for push in self.paths.pushes.get(id(layer.weight), ()):
            if len(push.around) == layer.width:
                through, around, spread = (
                    each.cpu().numpy() for each in (push.through_output, push.around, push.spread)
                )
                layer.through += through
                layer.through_size += np.abs(through)
                layer.around += around
                layer.spread = np.maximum(layer.spread, spread)
                layer.pushes += 1

    # Snapshots

    def observe(self, step: int, states: Sequence[Any]) -> list[History]:
        """The histories of the units that died since the last snapshot."""
        histories = []
        for state in states:
            key, previous = state.site.key, self._dead.get(state.site.key)
            alive = ~state.dead & state.has_state
            layer = self._layers.get(key)
            if layer is not None and previous is not None and len(previous) == len(state.dead):
                died = np.flatnonzero(state.dead & state.has_state & previous)
                histories += self._histories(layer, died, step)
            self._dead[key] = alive
            if layer is None and (new := measured_layer(self._model, state.site)) is not None:
                self._layers[key] = new
        return histories

    def _histories(self, layer: MeasuredLayer, units: Any, step: int) -> list[History]:
        rows = {unit: i for i, unit in enumerate(range(*layer.rows.indices(layer.width)))}
        sizes = row_norms(layer.weight if layer.scale is None else layer.scale, layer.rows)
        histories = []
        for unit in units.tolist():
            index = rows.get(unit)
            life, last, shrinkage = [math.nan] * 3, [math.nan] * 3, [math.nan] * 2
            size = largest = math.nan
            if index is not None:
                life, last = layer.life[:, index].tolist(), layer.last[:, index].tolist()
                shrinkage = layer.shrinkage[:, index].tolist()
                largest = float(layer.largest[index])
                size = sizes[index] / layer.start[index] if layer.start[index] else math.nan
            pushes = [math.nan] * 4
            if layer.pushes:
                sums = (layer.through, layer.through_size, layer.around, layer.spread)
                pushes = [float(each[unit]) for each in sums]
            numbers = (*life, *last, *shrinkage, float(size), largest, *pushes)
            histories.append(History(layer.site.key, unit, step, *numbers))
        return histories

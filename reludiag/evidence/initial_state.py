"""Initial state of a run: how its layers were initialized, their inputs, and how many units are
born dead by chance.

Everything is measured on a copy of the model, before the first step.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from reludiag.capture.rectifying_layers import is_rectifying_layer
from reludiag.errors import ReludiagError
from reludiag.evidence.deaths import UnitState
from reludiag.initialization.layer_init import describe_layer
from reludiag.initialization.layer_inputs import measure_inputs
from reludiag.initialization.schemes import TRANSPOSED, WEIGHTED, reinitialize
from reludiag.measure.frozen_pass import Scanner
from reludiag.measure.unit_counts import SiteCounts
from reludiag.measure.verdicts import is_dead
from reludiag.recording.observations import Baseline, InitialLayer, InputStatistics, Observations
from reludiag.sites.torch_internals import forward_hooks_of

BASELINE = "kaiming_normal"
"""The scheme of the baseline, with biases of 0: the right one for a ReLU."""
DRAWS = 3
"""Number of draws, each with one frozen pass; only made if units are born dead."""
_SEED = 1_903_067  # unlike the seeds of users: the model may have been drawn by the same function


def observe_initial_state(
    model: nn.Module,
    states: Sequence[UnitState],
    batches: Sequence[Any],
    unit_axes: Mapping[str, int] | None = None,
) -> Observations:
    """Describe the layers that feed the sites in `states`, and run `batches` through a copy.

    Parts that need a copy or a draw that fails are left out.
    """
    mortal = [state for state in states if state.site.rectifier.can_die]
    producers = {state.site.producer for state in mortal}
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, WEIGHTED) and not is_lazy(module.weight)
    }
    starts = tuple(_start(path, layer) for path, layer in layers.items() if path in producers)
    twin = _copied(model) if batches else None
    if twin is None:
        return Observations(starts)
    copied = dict(twin.named_modules())
    measured = measure_inputs(twin, batches, {path: copied[path] for path in layers})
    inputs = tuple(
        InputStatistics(
            path,
            layer_input.samples,
            layer_input.is_first,
            layer_input.gamma,
            layer_input.cosine,
            layer_input.scale,
        )
        for path, layer_input in measured.items()
    )
    born = any(bool((state.dead & state.has_state).any()) for state in mortal)
    baselines = _baselines(twin, batches, unit_axes) if born else ()
    return Observations(starts, inputs, baselines)


def _start(path: str, layer: Any) -> InitialLayer:
    weight, bias = (
        None if tensor is None else tensor.detach().cpu().double().numpy()
        for tensor in (layer.weight, layer.bias)
    )
    assert weight is not None
    return InitialLayer(
        path, asdict(describe_layer(path, weight, bias, isinstance(layer, TRANSPOSED)))
    )


def _copied(model: nn.Module) -> nn.Module | None:
    """A copy that calls no hooks of the user, who may count passes in them.

    Pre-forward hooks stay, because weight norms and pruning compute the weights there.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception:  # a module may hold a lock, a file, a tensor of a graph
        return None
    for module in twin.modules():
        forward_hooks_of(module).clear()
    return twin


def _baselines(
    twin: nn.Module, batches: Sequence[Any], unit_axes: Mapping[str, int] | None
) -> tuple[Baseline, ...]:
    scanner = Scanner(twin, unit_axes)
    shares: dict[str, list[float]] = {}
    # Their weights are not drawn again, so their units would be dead again.
    kept = {path for path, module in twin.named_modules() if is_rectifying_layer(module)}
    try:
        for draw in range(DRAWS):
            reinitialize(twin, BASELINE, _SEED + draw)
            for counts in scanner.run(batches).sites:
                site = counts.site
                if site.units and site.rectifier.can_die and site.producer not in kept:
                    shares.setdefault(counts.site.key, []).append(_dead_share(counts))
    except ReludiagError:
        return ()
    return tuple(Baseline(key, sum(each) / len(each), len(each)) for key, each in shares.items())


def _dead_share(counts: SiteCounts) -> float:
    return float(is_dead(counts.counts, counts.site.rectifier).mean())

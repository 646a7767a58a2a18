"""Initial state of a run: how its layers were initialized, their inputs, and how many units are
born dead by chance.

Everything is measured on a copy of the model, before the first step.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn

from reludiag.capture.model_state import copied
from reludiag.capture.rectifying_layers import is_rectifying_layer
from reludiag.capture.watched import Watch
from reludiag.errors import ReludiagError
from reludiag.evidence.deaths import UnitState
from reludiag.initialization.layer_init import described_layer
from reludiag.initialization.layer_inputs import measure_inputs
from reludiag.initialization.layers import LayerWeights, Structure, layers_of, structure_from
from reludiag.initialization.masks import remove_masks
from reludiag.initialization.norms import norm_problem, reset_norms
from reludiag.initialization.schemes import redraw, scheme_named
from reludiag.measure.batch_statistics import on_batch_statistics
from reludiag.measure.frozen_pass import Scanner
from reludiag.measure.unit_counts import SiteCounts
from reludiag.measure.verdicts import is_dead
from reludiag.recording.observations import Baseline, InitialLayer, InputStatistics, Observations
from reludiag.sites.axes import UnitAxes
from reludiag.sites.torch_internals import forward_hooks_of, forward_pre_hooks_of

BASELINE = "kaiming_normal"
"""The scheme of the baseline, with biases of 0, no masks, and normalization layers at their start:
the right one for a ReLU.
"""
DRAWS = 3
"""Number of draws, each with one frozen pass; only made if units are born dead."""
_SEED = 1_903_067  # unlike the seeds of users: the model may have been drawn by the same function


def observe_initial_state(
    model: nn.Module,
    states: Sequence[UnitState],
    batches: Sequence[Any],
    unit_axes: UnitAxes | None = None,
    merge_calls: bool = True,
    watch: Watch | None = None,
    on_batch: bool = False,
) -> Observations:
    """Describe the layers that feed the sites in `states`, and run `batches` through a copy.

    Parts that need a copy or a draw that fails are left out. With `on_batch` BatchNorm uses the
    statistics of the batch in the draws, too: then `states` say who is dead on these.
    """
    mortal = [state for state in states if state.site.rectifier.can_die]
    producers = {producer for state in mortal for producer in state.site.producers}
    products = tuple(product for state in states for product in state.site.products)
    structure = Structure(products, frozenset(), frozenset())
    twin = _copied(model)
    # A copy, because a weight that is computed must not be computed by others than the training.
    layers = layers_of(model if twin is None else twin, structure)
    # A sum has no norm of its own: one of its branches may start at 0, as in residual networks.
    norms = {s.site.producers[0]: s.site.norm for s in mortal if len(s.site.producers) == 1}
    starts = tuple(
        _start(model if twin is None else twin, layer, norms.get(path))
        for path, layer in layers.items()
        if path in producers and (twin is not None or layer.is_stored)
    )
    if twin is None or not batches:
        return Observations(starts)
    measured = measure_inputs(twin, batches, layers)
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
    baselines: tuple[Baseline, ...] = ()
    if born:
        remove_masks(twin)
        with on_batch_statistics(twin) if on_batch else nullcontext():
            baselines = _baselines(twin, batches, unit_axes, merge_calls, watch)
    return Observations(starts, inputs, baselines)


def _start(model: nn.Module, layer: LayerWeights, norm: str | None) -> InitialLayer:
    """A layer, and what is wrong with the BatchNorm between it and its site."""
    described = described_layer(model, layer)
    problem = None if norm is None else norm_problem(norm, model.get_submodule(norm))
    if problem is not None:
        described = replace(described, problems=(*described.problems, problem))
    return InitialLayer(layer.path, asdict(described))


def _copied(model: nn.Module) -> nn.Module | None:
    """A copy that calls no hooks of the user, who may count passes in them."""
    try:
        twin = copied(model)
    except Exception:  # a module may hold a lock, a file, a tensor of a graph
        return None
    for module in twin.modules():
        forward_hooks_of(module).clear()
        pre_hooks = forward_pre_hooks_of(module)
        for number in [n for n, hook in pre_hooks.items() if not _is_needed(hook, module)]:
            del pre_hooks[number]
    return twin


def _is_needed(pre_hook: Any, module: nn.Module) -> bool:
    """Whether the module cannot run without it: PyTorch's own, as of a weight norm or of a lazy
    layer, and others where a weight is computed, as in a pruning of the user's own.
    """
    is_torch = str(getattr(pre_hook, "__module__", "")).partition(".")[0] == "torch"
    return is_torch or any(isinstance(value, Tensor) for value in vars(module).values())


def _baselines(
    twin: nn.Module,
    batches: Sequence[Any],
    unit_axes: UnitAxes | None,
    merge_calls: bool,
    watch: Watch | None,
) -> tuple[Baseline, ...]:
    """Of the sites all of whose weights can be drawn anew."""
    scanner = Scanner(twin, unit_axes, merge_calls=merge_calls, watch=watch)
    shares: dict[str, list[float]] = {}
    # Their weights are not drawn again, so their units would be dead again.
    kept = {path for path, module in twin.named_modules() if is_rectifying_layer(module)}
    scheme = scheme_named(BASELINE)
    assert scheme is not None
    try:
        sites = [counts.site for counts in scanner.run(batches[:1]).sites]
        structure = structure_from(scanner, [p for site in sites for p in site.products])
        for draw in range(DRAWS):
            drawn = set(redraw(twin, scheme, _SEED + draw, structure).drawn)
            reset_norms(twin)
            for counts in scanner.run(batches).sites:
                site = counts.site
                if not (site.units and site.rectifier.can_die) or site.producer in kept:
                    continue
                if site.layers and drawn >= site.layers:
                    shares.setdefault(site.key, []).append(_dead_share(counts))
    except ReludiagError:
        return ()
    return tuple(Baseline(key, sum(each) / len(each), len(each)) for key, each in shares.items())


def _dead_share(counts: SiteCounts) -> float:
    return float(is_dead(counts.counts, counts.site.rectifier).mean())

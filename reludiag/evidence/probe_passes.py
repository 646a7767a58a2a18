"""Probe passes: the probe run through a model with other weights in place of its own.

The model's tensors are never written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from reludiag.capture.calls import Call
from reludiag.capture.capture import Capture
from reludiag.capture.watched import Watch
from reludiag.evidence.decomposition import Folded, InputSums, Layer, Weights
from reludiag.loading.arguments import BatchReader
from reludiag.sites.axes import UnitAxes
from reludiag.sites.product_rules import SeenProduct
from reludiag.sites.provenance import ProvenanceMode
from reludiag.sites.site import Site
from reludiag.sites.torch_internals import buffers_of, parameters_of, without_dispatch_modes

Mask = np.ndarray[Any, np.dtype[np.bool_]]

TOLERANCE = 1e-4
"""Largest relative difference between the computed and the measured mean: in single precision a sum
of a thousand products is off by at most 1e-5.
"""


@dataclass
class ProbePass:
    """The results of one full pass over the probe, by key of the site."""

    layers: Mapping[str, Layer]
    weights: Weights
    fired: dict[str, Mask] = field(default_factory=dict)
    mean: dict[str, Tensor] = field(default_factory=dict)
    """Mean pre-activation, `[unit]`."""
    size: dict[str, Tensor] = field(default_factory=dict)
    """Mean of its magnitude."""
    eps: dict[str, float] = field(default_factory=dict)
    """The machine epsilon of its dtype."""
    inputs: dict[str, InputSums] = field(default_factory=dict)

    def of(self, key: str) -> Folded | None:
        """The site as dot products; None if they disagree with the measurement."""
        layer, measured = self.layers.get(key), self.mean.get(key)
        if layer is None or measured is None:
            return None
        folded = layer.fold(self.weights, self.inputs[key])
        if folded is None or len(folded.bias) != len(measured):
            return None
        size = folded.magnitude() + self.size[key]
        error = (folded.mean() - measured).abs()
        # NaN is never within the tolerance.
        close = error <= max(TOLERANCE, 8 * self.eps[key]) * size
        return folded if bool(close.all()) else None


class ProbePasses:
    """Runs the probe through a model with other weights."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        unit_axes: UnitAxes | None,
        merge_calls: bool,
        watch: Watch | None,
    ) -> None:
        self._model, self._batches = model, batches
        self._capture = Capture(
            model,
            self._receive,
            self._wants_pre_activation,
            unit_axes=unit_axes,
            merge_calls=merge_calls,
            watch=watch,
        )
        self._sites: Mapping[str, Site] = {}
        self._is_full = False
        self._fired: dict[str, Tensor] = {}
        self._sums: dict[str, tuple[Tensor, Tensor, int, float]] = {}

    def fired(self, weights: Weights, sites: Mapping[str, Site]) -> dict[str, Mask]:
        """Which units of these sites fire."""
        self._run(weights, sites, {}, full=False)
        return {key: fired.cpu().numpy() for key, fired in self._fired.items()}

    def full(self, weights: Weights, sites: Mapping[str, Site]) -> ProbePass:
        """The same, with the data to decompose their layers."""
        results = {key: Layer.of(self._model, site) for key, site in sites.items()}
        layers = {key: layer for key, layer in results.items() if layer is not None}
        by_weight = {layer.product.weight: InputSums() for layer in layers.values()}
        self._run(weights, sites, by_weight, full=True)
        inputs = {key: by_weight[layer.product.weight] for key, layer in layers.items()}
        result = ProbePass(layers, weights, inputs=inputs)
        for key, fired in self._fired.items():
            result.fired[key] = fired.cpu().numpy()
        for key, (total, size, count, eps) in self._sums.items():
            result.mean[key], result.size[key] = total / count, size / count
            result.eps[key] = eps
        return result

    def _run(
        self,
        weights: Weights,
        sites: Mapping[str, Site],
        inputs: Mapping[str, InputSums],
        full: bool,
    ) -> None:
        self._sites, self._is_full = sites, full
        self._fired, self._sums = {}, {}
        reader = BatchReader(self._model)
        reader.settle(self._batches[0])
        call = partial(_call_with, self._model, dict(weights), inputs)
        with self._capture.attached():
            for batch in self._batches:
                for sums in inputs.values():
                    sums.begin()
                args, kwargs = reader.arguments(batch)
                self._capture.run(call, args, kwargs)

    def _wants_pre_activation(self, training: bool, site: int | None) -> bool:
        return self._is_full

    def _receive(self, call: Call) -> None:
        site = self._capture.sites[call.site]
        target = self._sites.get(site.key)
        with without_dispatch_modes():
            if target is not None:
                self._add_fired(site, call)
            if target is not None and not target.selects_from:
                self._add_pre_activation(site.key, call)
            for key, selection in self._sites.items():
                if selection.selects_from == site.name:  # whose layer is this site's
                    self._add_pre_activation(key, call)

    def _add_fired(self, site: Site, call: Call) -> None:
        x = call.view.of(call.output if call.signal is None else call.signal)
        fired = (x != 0 if site.rectifier.signed else x > 0).any(dim=0)
        fired = fired.flatten(1).any(dim=1) if fired.ndim > 1 else fired
        pre_activation = self._fired.get(site.key)
        self._fired[site.key] = fired if pre_activation is None else fired | pre_activation

    def _add_pre_activation(self, key: str, call: Call) -> None:
        z = call.pre_activation() if self._is_full else None
        if z is None:
            return
        z = call.view.of(z)
        eps = torch.finfo(z.dtype).eps if z.is_floating_point() else 1.0
        places = [dim for dim in range(z.ndim) if dim != 1]
        z = z.double()
        total, size, count = z.sum(places), z.abs().sum(places), z.numel() // z.shape[1]
        if key in self._sums:
            earlier = self._sums[key]
            total, size, count = total + earlier[0], size + earlier[1], count + earlier[2]
        self._sums[key] = total, size, count, eps


def _call_with(
    model: nn.Module,
    weights: dict[str, Tensor],
    inputs: Mapping[str, InputSums],
    *args: Any,
    **kwargs: Any,
) -> None:
    """Call the model with these weights; `inputs` take the products with weights of these names."""
    places = _everywhere(model, weights)
    if not inputs:
        functional_call(model, places, args, kwargs, tie_weights=False)
        return

    def take(seen: SeenProduct) -> None:
        sums = inputs.get(seen.product.weight)
        if sums is not None:
            sums.take(seen)

    with ProvenanceMode(model, lambda *call: None, on_product=take, state=weights):
        functional_call(model, places, args, kwargs, tie_weights=False)


def _everywhere(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """These weights by name, for each module that has one, and each module once.

    A tensor may be in several modules, and a module may have several names. Left to tie weights
    itself, `functional_call` puts a module with two names back as it had it under the first.
    """
    tensors = {
        id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    return {
        f"{path}.{name}" if path else name: weights[tensors[id(tensor)]]
        for path, module in model.named_modules()
        for name, tensor in (*parameters_of(module).items(), *buffers_of(module).items())
        if tensor is not None and tensors.get(id(tensor)) in weights
    }

"""The facts that the lints of a network's structure look at, from a frozen pass."""

import copy
from typing import Any

from torch import nn

from reludiag.loading.arguments import BatchReader
from reludiag.loading.batch_contents import samples_in
from reludiag.measure.frozen_pass import Measurement
from reludiag.measure.gradients import gradient_facts
from reludiag.measure.structure import GradientFacts, SiteFacts, StructureFacts
from reludiag.measure.unit_counts import SiteCounts
from reludiag.measure.verdicts import is_dead


def structure_facts(
    measured: Measurement, gradients: GradientFacts | None = None
) -> StructureFacts:
    """Of a pass that looked at the structure."""
    sites = [
        SiteFacts(each.site, each.counts.samples, _dead_units(each)) for each in measured.sites
    ]
    return StructureFacts(sites, measured.inputs, gradients)


def batch_gradients(model: nn.Module, batch: Any, measured: Measurement) -> GradientFacts | None:
    """The gradients of `model` on a batch of those that were measured; as `gradient_facts`."""
    args, kwargs = BatchReader(model, measured.dtype).arguments(batch)
    dead = [
        each.site
        for each in measured.sites
        if each.site.units and _dead_units(each) == each.site.units
    ]
    samples = samples_in([*args, *kwargs.values()]) or 1
    return gradient_facts(model, args, kwargs, samples, dead)


def copied_gradients(model: nn.Module, batch: Any, measured: Measurement) -> GradientFacts | None:
    """The same of a copy: a forward may keep what it made in the model. None if it has no copy."""
    try:
        twin = copy.deepcopy(model)
    except Exception:  # a module may hold a lock, a file, a tensor of a graph
        return None
    return batch_gradients(twin, batch, measured)


def _dead_units(each: SiteCounts) -> int:
    return int(is_dead(each.counts, each.site.rectifier).sum())

"""list_sites(): the rectifier calls of a model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from reludiag.capture.capture import Capture
from reludiag.capture.watched import Watch
from reludiag.loading.data import batches_of
from reludiag.measure.frozen_pass import Scanner, eager_model, limited
from reludiag.measure.structure import StructureNote, structure_notes
from reludiag.measure.structure_facts import copied_gradients, structure_facts
from reludiag.measure.unjudged import Unjudged
from reludiag.sites.axes import UnitAxes
from reludiag.sites.functional import functional_calls
from reludiag.sites.site import Rectifier, Site


@dataclass(frozen=True)
class SiteList:
    """The rectifier calls of a model."""

    sites: list[Site]
    unjudged: tuple[Unjudged, ...]
    """What a scan would not judge."""
    ran: bool
    """Whether a forward pass was made; without one, each module and function is listed once."""
    notes: tuple[str, ...] = ()
    """On calls that are not sites."""
    structure: tuple[StructureNote, ...] = ()
    """What in the build of the network keeps units from training."""


def list_sites(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    dtype: torch.dtype | None = None,
    unit_axes: UnitAxes | None = None,
    merge_calls: bool = True,
    watch: Watch | None = None,
) -> SiteList:
    """The sites of a model, from one batch if there is one, else from its source code.

    `unit_axes`, `merge_calls` and `watch` are as in `scan`.
    Raises DataError if the model refuses the batch.
    """
    if batches is not None:
        batch = list(limited(batches_of(batches), 1))
        scanner = Scanner(
            model, unit_axes, finds_consumers=True, merge_calls=merge_calls, watch=watch
        )
        measured = scanner.run(batch, dtype=dtype, reads_inputs=True)
        gradients = copied_gradients(scanner.model, batch[0], measured)
        return SiteList(
            [each.site for each in measured.sites],
            measured.unjudged,
            ran=True,
            notes=measured.notes,
            structure=structure_notes(structure_facts(measured, gradients)),
        )
    model = eager_model(model)
    sites = Capture(model, lambda call: None, watch=watch).uncalled()
    for path, operator in functional_calls(model, certain=True):
        name = f"{path or type(model).__name__}:{operator}"
        rectifier = Rectifier(operator, can_die=True)
        sites.append(Site(name, name, path, operator, rectifier, "", None, None, None))
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}
    return SiteList(sorted(sites, key=lambda site: order[site.module]), (), ran=False)

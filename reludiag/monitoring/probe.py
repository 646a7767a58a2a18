"""Probe: from what the user gives to the batches that are run at each snapshot."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reludiag.capture.named_models import NamedModels
from reludiag.errors import UsageError
from reludiag.loading.batch_contents import is_one_batch, tensors_of
from reludiag.loading.model_inputs import read_inputs
from reludiag.loading.specs import call_user_code
from reludiag.sites.readable import readable

_HASHED = 1 << 20  # numbers of each tensor of a probe


def probe_batches(model: nn.Module, probe: Any) -> list[Any]:
    """The probe of a model, or of several with names, as a list of batches, the same for each
    snapshot.

    Raises UsageError for what is no batch, and none of several.
    """
    probe = _called(probe)
    if not isinstance(model, NamedModels):
        return _batches(probe)
    if _is_by_name(model, probe):
        by_name = {name: _batches(_called(each)) for name, each in probe.items()}
    else:
        by_name = dict.fromkeys(model.models, _batches(probe))
    return list(read_inputs(model.models, by_name))


def probe_hash(batches: Sequence[Any] | None) -> int | None:
    """A number that differs if the probe does; None if it cannot be told."""
    total = 0
    try:
        for tensor in tensors_of(list(batches or ())):
            values = readable(tensor)
            if values is None:
                return None
            total = zlib.crc32(str(tuple(values.shape)).encode(), total)
            part = values.detach().flatten()[:_HASHED].cpu().contiguous()
            total = zlib.crc32(np.asarray(part.view(torch.uint8)).tobytes(), total)
    except Exception:
        return None
    return total if total else None


def _is_by_name(models: NamedModels, probe: Any) -> bool:
    """Whether a probe has one for each model; raises UsageError if it has one for some of them.

    A mapping without any of their names is a batch for all.
    """
    if not isinstance(probe, Mapping) or models.models.keys().isdisjoint(probe):
        return False
    if probe.keys() != models.models.keys():
        raise UsageError(
            f"probe={{{', '.join(map(repr, probe))}}} was given; expected one probe for all "
            f"models, or one for each: {', '.join(models.models)}"
        )
    return True


def _called(probe: Any) -> Any:
    if callable(probe) and not isinstance(probe, Tensor | Iterable):
        return call_user_code(probe, "the probe", {})
    return probe


def _batches(probe: Any) -> list[Any]:
    """The batches of one probe."""
    if isinstance(probe, Tensor | np.ndarray | tuple) or is_one_batch(probe):
        return [probe]
    if isinstance(probe, Iterable) and not isinstance(probe, str | bytes):
        batches = list(probe)
        if batches:
            return batches
    raise UsageError(
        f"probe={type(probe).__name__} was given; expected a batch (tensor, tuple, dict, ...), an "
        "iterable of at least one batch, or a function that returns either"
    )

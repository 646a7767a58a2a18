"""Unwatched: whether a Monitor watched no training at all, and what most likely kept it from it.

Numbers of such a run are of untrained weights, or of another model than the one that was trained:
"no unit is dead" would say nothing.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reludiag.measure.unjudged import Unjudged, unjudged
from reludiag.sites.readable import readable
from reludiag.sites.torch_internals import version_of


class WeightCheck:
    """Whether the weights of a model have changed since `begin`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._start: dict[str, tuple[int, Tensor | None]] = {}

    def begin(self) -> None:
        """Remember the weights, by one number each; nothing here waits for a GPU."""
        self._start = {name: (version_of(p), _norm(p)) for name, p in self._named()}

    def changed(self) -> bool:
        """Whether they have; also true where it cannot be told."""
        now = dict(self._named())
        if now.keys() != self._start.keys():
            return True
        # Versions first: an optimizer that writes to `.data` alone leaves them as they were.
        if any(version_of(now[name]) != version for name, (version, _) in self._start.items()):
            return True
        for name, (_, norm) in self._start.items():
            end = _norm(now[name])
            if norm is None or end is None:
                return True
            begun, ended = norm.item(), end.item()
            if begun != ended and not (math.isnan(begun) and math.isnan(ended)):
                return True
        return False

    def nonfinite_gradients(self) -> list[str]:
        """The parameters whose gradient that is there now has a NaN or an infinity."""
        norms = {name: _norm(p.grad) for name, p in self._named() if p.grad is not None}
        return [name for name, norm in norms.items() if norm is not None and not norm.isfinite()]

    def _named(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self._model.named_parameters()


class SnapshotCheck:
    """Whether a model is no longer what the last snapshot shows."""

    CHANGED = 0.1
    """Of a buffer, relative: one more pass also moves running statistics a little."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._versions: dict[str, int] = {}
        self._buffers: dict[str, Tensor | None] = {}

    def note(self) -> None:
        """Now there is a snapshot; nothing here waits for a GPU."""
        self._versions = {name: version_of(p) for name, p in self._model.named_parameters()}
        self._buffers = {name: _norm(b) for name, b in self._model.named_buffers()}

    def differs(self) -> bool:
        """Whether weights were written to since then, or a buffer is another one."""
        if any(
            version_of(p) != self._versions.get(name) for name, p in self._model.named_parameters()
        ):
            return True
        for name, buffer in self._model.named_buffers():
            before, now = self._buffers.get(name), _norm(buffer)
            if before is not None and now is not None:
                was = float(before)
                if abs(float(now) - was) > self.CHANGED * was:
                    return True
        return False


def _norm(tensor: Tensor) -> Tensor | None:
    """Its Euclidean norm; None if it cannot be read, or not in this process alone."""
    if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
        return None
    values = readable(tensor)
    if values is None or values.element_size() < 2:  # torch cannot take the norm of 8-bit floats
        return None
    # The smallest change must be seen; Apple's GPUs have no double precision.
    precise = torch.float32 if values.device.type == "mps" else torch.float64
    norm: Tensor = torch.linalg.vector_norm(values.detach(), dtype=precise)
    return norm


def nothing_watched(
    steps: int, has_optimizer: bool, weights: WeightCheck, unseen: str | None, raised: bool
) -> Unjudged | None:
    """Why nothing was watched of a run of so many steps; None if something was.

    `unseen` is the reason if no forward pass was seen that could be watched. If the run `raised`,
    the weights are not looked at: the device may be what failed.
    """
    if raised and not steps:
        return unjudged("", "ended_early")
    if steps:
        if unseen is not None:
            return unjudged("", unseen)
        return None if raised or weights.changed() else unjudged("", "no_weight_changed")
    if not has_optimizer:
        return unjudged("", "no_step")
    if weights.changed():
        return unjudged("", "other_optimizer")
    return unjudged("", "steps_skipped" if weights.nonfinite_gradients() else "optimizer_idle")

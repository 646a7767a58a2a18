"""Autocast: under which casts the training runs its forward passes, so that a probe runs likewise.

An overflow in half precision is then seen on the probe as the training sees it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from reludiag.capture.compiled import is_compiled
from reludiag.capture.hooks import Hook, entrances
from reludiag.capture.named_models import roots_of
from reludiag.sites.guard import Guard

FUSED = (nn.TransformerEncoderLayer, nn.MultiheadAttention)

State = dict[str, torch.dtype | None]
"""Type of device -> what autocast casts to there; None if it is off."""


class TrainingAutocast:
    """The state of autocast in the training's forward passes, read in one pass after each `arm`.

    A pass without gradients does not belong to the training. In compiled code no hook runs, so the
    hook is then on the compiled module itself.
    """

    def __init__(self, model: nn.Module, guard: Guard) -> None:
        """`model` is the module that the training calls, compiled or not."""
        self._model, self._guard = model, guard
        places = roots_of(model) if is_compiled(model) else entrances(model)
        # A hook on a fused layer turns off its fused path: the last bits of its output change.
        self._modules = [m for m in places if not isinstance(m, FUSED)]
        self._undo = guard.undo_list()
        self.state: State | None = None
        """As of the last pass that was read; None if there was none."""

    def arm(self) -> None:
        """Read the state in the next forward pass."""
        self.disarm()
        for module in self._modules:
            hook = Hook(self._read, self._guard, module, None)
            self._undo.append(module.register_forward_pre_hook(hook).remove)

    def disarm(self) -> None:
        """Remove what `arm` put on the model."""
        while self._undo:
            self._undo.pop()()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The same state; where none was read yet, the current one.

        Without the cache of casts, which changes no value: a training with autocast around its
        whole loop must not get casts of its weights that were made without gradients.
        """
        state = _current(self._model) if self.state is None else self.state
        with contextlib.ExitStack() as stack:
            for device, dtype in state.items():
                enabled = dtype is not None
                stack.enter_context(
                    torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)
                )
            yield

    def is_on(self) -> bool:
        """Whether autocast is on now, for a device of the model."""
        return any(dtype is not None for dtype in _current(self._model).values())

    @property
    def dtypes(self) -> dict[str, str]:
        """Type of device -> name of the dtype that autocast casts to, where it is on."""
        state = self.state or {}
        return {t: str(d).removeprefix("torch.") for t, d in state.items() if d is not None}

    def _read(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            self.state = _current(self._model)
            self.disarm()


def _current(model: nn.Module) -> State:
    return {
        device: torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for device in sorted({parameter.device.type for parameter in model.parameters()})
        if torch.amp.is_autocast_available(device)
    }

"""Training input: mean and spread of what a model is trained on, in a batch of each window."""

from typing import Any

import torch
from torch import Tensor, nn

from reludiag.capture.hooks import Hook
from reludiag.loading.batch_contents import tensors_of
from reludiag.recording.observations import TrainingInput
from reludiag.sites.guard import Guard
from reludiag.sites.readable import readable
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    is_recomputed,
    is_transformed,
    without_dispatch_modes,
)

_MOST_VALUES = 2**18  # of a batch, to be read


class InputWatch:
    """Looks at the first training pass of each step that it expects."""

    def __init__(self, model: nn.Module, guard: Guard) -> None:
        self._model, self._guard, self._undo = model, guard, guard.undo_list()
        self._sums: Tensor | None = None
        """Mean and standard deviation, `[2]`, on the device: reading it would wait for a GPU."""

    def expect(self) -> None:
        """Look at the coming step."""
        if not self._undo:
            hook = Hook(self._look, self._guard, self._model, None)
            self._undo.append(self._model.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def detach(self) -> None:
        """Look at nothing more."""
        while self._undo:
            self._undo.pop()()

    def take(self, step: int) -> tuple[TrainingInput, ...]:
        """What was seen since the last call."""
        sums, self._sums = self._sums, None
        if sums is None:
            return ()
        mean, std = sums.tolist()
        return (TrainingInput(step, mean, std),)

    def _look(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._sums is not None or not module.training or is_recomputed() or is_transformed():
            return
        with DisableTorchFunction(), without_dispatch_modes(), torch.no_grad():
            for tensor in tensors_of([args, kwargs]):
                plain = readable(tensor)
                if plain is not None and plain.is_floating_point() and plain.numel() > 1:
                    values = plain.detach().flatten()
                    values = values[:: 1 + values.numel() // _MOST_VALUES].float()
                    std, mean = torch.std_mean(values, correction=0)
                    self._sums = torch.stack([mean, std])
                    return

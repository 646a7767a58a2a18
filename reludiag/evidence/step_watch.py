"""Step watch: what happens to the weights at every step, in the update and outside it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.compiler import is_compiling
from torch.optim import Optimizer

from reludiag.evidence.edits import EditMeter
from reludiag.evidence.jumps import JumpMeter
from reludiag.evidence.step_samples import StepSamples
from reludiag.recording.observations import Edit, Jump


class StepWatch:
    """Reads the weights around each step of each optimizer. The last one completes a step."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
        # Of a parameter in two optimizers, each would take the other's steps for edits.
        several = {parameter for parameter, count in Counter(held).items() if count > 1}
        self._samples = [StepSamples(model, optimizer, several) for optimizer in optimizers]
        self._jumps = [JumpMeter(samples.is_matrix) for samples in self._samples]
        self._edits = [EditMeter(samples.names) for samples in self._samples]
        self._step = 0

    def begin(self, step: int) -> None:
        """The weights are now as after this step."""
        self._step = step
        for samples in self._samples:
            samples.begin()

    def before(self, index: int) -> None:
        """Optimizer `index` is about to step."""
        self._samples[index].before()

    def after(self, index: int) -> None:
        """It has stepped."""
        self._samples[index].after(self._step + 1)
        self._step += index == len(self._samples) - 1

    def take(self) -> tuple[tuple[Jump, ...], tuple[Edit, ...]]:
        """The jumps and edits since the last call. It waits for the device."""
        jumps, edits = [], []
        for samples, jump, edit in zip(self._samples, self._jumps, self._edits, strict=True):
            norms = samples.take()
            jumps += [largest] if (largest := jump.measure(norms)) else []
            edits += [changed] if (changed := edit.measure(norms)) else []
        return tuple(jumps), tuple(edits)


class AroundStep:
    """A hook of an optimizer, before or after its steps; a copy of the optimizer has it not."""

    __slots__ = ("_failed", "_index", "_read")

    def __init__(
        self, read: Callable[[int], None], index: int, failed: Callable[[Exception], object]
    ) -> None:
        """After an error, which goes to `failed`, it does nothing."""
        self._read: Callable[[int], None] | None = read
        self._index, self._failed = index, failed

    def __call__(self, *_: Any) -> None:
        """Called by PyTorch."""
        if self._read is not None and not is_compiling():
            try:
                self._read(self._index)
            except Exception as error:
                self._read = None
                self._failed(error)

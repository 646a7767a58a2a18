"""One call of a rectifier: which it is in its pass, and how its tensors are read."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.hooks import Hook, is_recomputed, is_transformed, rows_of
from reludiag.rectifiers import Rectifier
from reludiag.sites import Identity, Layout, arrange


class Call:
    """One call of a rectifier. Its tensors are the model's own memory: read them at once."""

    __slots__ = ("_before", "_output", "_peaks", "_reading", "rows", "site", "training")

    def __init__(
        self,
        site: int,
        training: bool,
        output: Tensor,
        before: Tensor | None,
        reading: "Reading",
        peaks: Tensor | None = None,
    ) -> None:
        self.site = site
        """Index in `Capture.sites`."""
        self.training = training
        """The training flag of the module that called."""
        self.rows = reading.rows
        """Number of samples; 1 where they cannot be told apart."""
        self._output, self._before, self._reading, self._peaks = output, before, reading, peaks

    @property
    def dtype(self) -> torch.dtype:
        """Of the output."""
        return self._output.dtype

    @property
    def device(self) -> torch.device:
        """Of the output."""
        return self._output.device

    def output(self) -> Tensor | None:
        """The output as `[sample, unit, position]`, without the last if there is one position.

        None if it does not fit its site.
        """
        return self._reading.of(self._output)

    def before(self) -> Tensor | None:
        """The pre-activation likewise, or its maxima `[unit]` where it is overwritten by now.

        None where it was overwritten before it was asked for.
        """
        if self._peaks is not None:
            return self._peaks
        if self._before is None or self._before.shape != self._output.shape:
            return None
        return self._reading.of(self._before)


class Reading:
    """How to read outputs of one shape: found once, then a single operator."""

    __slots__ = ("layout", "rows", "samples", "shape", "size", "strides", "views")

    def __init__(self, layout: Layout, shape: torch.Size, samples: int | None) -> None:
        self.layout, self.shape, self.samples = layout, shape, samples
        self.rows = layout.rows(tuple(shape), samples)
        self.size: torch.Size | None = None
        self.strides: tuple[int, ...] = ()
        self.views: tuple[int, ...] = ()

    def rows_of(self, samples: int | None) -> int:
        """Number of samples in a call of a pass with so many."""
        return self.rows if self.layout.sample is None or samples is None else samples

    def of(self, tensor: Tensor) -> Tensor | None:
        """`tensor`, of this shape, as `Call.output` gives it."""
        tensor = tensor.detach()
        strides = tensor.stride()
        if self.size is not None and strides == self.strides:
            if self.size == self.shape and strides == self.views:
                return tensor
            return tensor.as_strided(self.size, self.views)
        arranged = arrange(tensor, self.layout, self.samples)
        if arranged is not None and arranged.shape[2] == 1:
            arranged = arranged[..., 0]
        if self.size is None and arranged is not None and same_memory(arranged, tensor):
            self.size, self.strides, self.views = arranged.shape, strides, arranged.stride()
        return arranged


class Turn:
    """A call's place in the sequence of calls that a forward makes, and what was found of it."""

    __slots__ = ("number", "operator", "ordinal", "owner", "place", "producer", "reading")

    def __init__(
        self, owner: nn.Module, operator: str, producer: nn.Module | None, number: int, ordinal: int
    ) -> None:
        self.owner, self.operator, self.producer = owner, operator, producer
        self.number = number
        """How many calls of the owner came before in this forward."""
        self.ordinal = ordinal
        """How many of these were fed by the same."""
        self.place: Place | None = None
        self.reading: Reading | None = None


@dataclass
class Place:
    """A site while it is being found."""

    index: int
    path: str
    identity: Identity
    rectifier: Rectifier
    layout: Layout
    label: str
    producer: str | None
    norm: str | None
    numbers: set[int] = field(default_factory=set)
    """Which call of its owner it was, in each of the forwards that it was seen in."""


class Rest:
    """Counts the forwards of a model whose passes all make the same calls."""

    def __init__(
        self,
        model: nn.Module,
        turns: Sequence[tuple[Turn, bool]],
        was_traced: Callable[[], None],
    ) -> None:
        """`turns` are those calls, with the training flags of their owners."""
        self._turns = turns
        self._forwards: list[tuple[bool, int | None]] = []
        self._handle = model.register_forward_hook(
            Hook(self._count, model, "input", was_traced), with_kwargs=True
        )

    def _count(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if is_recomputed() or is_transformed():
            return
        # In training this code is cold each time: what it does not do saves microseconds.
        first = args[0] if args else None
        samples = (
            first.size(0)
            if type(first) is Tensor and first.dim()
            else rows_of([*args, *kwargs.values()])
        )
        self._forwards.append((module.training, samples))

    def end(self) -> list[tuple[int, bool, int, int]]:
        """(site, in training, calls, samples) of what was called since."""
        self._handle.remove()
        return [
            (
                turn.place.index,
                training and in_training,
                count,
                count * turn.reading.rows_of(samples),
            )
            for (training, samples), count in Counter(self._forwards).items()
            for turn, in_training in self._turns
            if turn.place is not None and turn.reading is not None
        ]


def same_memory(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.numel() > 0)

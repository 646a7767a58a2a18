"""One call of a rectifier: which it is in its pass, and how its tensors are read."""

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.capture.hooks import Hook, backward_task, innermost_transform, rows_of
from reludiag.sites.layout import Layout, arrange
from reludiag.sites.rectifiers import Rectifier
from reludiag.sites.site import Identity


class Call:
    """One call of a rectifier. Its tensors are the model's own memory: read them at once."""

    __slots__ = ("_before", "output", "reading", "site", "training")

    def __init__(
        self, site: int, training: bool, output: Tensor, before: Any, reading: "Reading"
    ) -> None:
        self.site = site
        """Index in `Capture.sites`."""
        self.training = training
        """The training flag of the module that called."""
        self.output = output
        self.reading = reading
        """How the output is seen as `[sample, unit, position]`, and its pre-activation as well."""
        self._before = before

    def before(self) -> Tensor | None:
        """The pre-activation, None where it is overwritten or none of the output's shape."""
        before, output = self._before, self.output
        if (
            before is output
            or not isinstance(before, Tensor)
            or before.shape != output.shape
            or before.data_ptr() == output.data_ptr()
        ):
            return None
        return before.resolve_neg()  # the imaginary part of a conjugate is negative in name only


class Reading:
    """How tensors of one shape are seen as `[sample, unit, position]`: found once."""

    __slots__ = ("_layout", "_size", "_strides", "_views", "fits", "plan", "positions", "rows",
                 "samples", "shape")  # fmt: skip

    def __init__(self, layout: Layout, example: Tensor, samples: int | None) -> None:
        """`samples` is the number of samples in the pass, None if it is not known."""
        self._layout, self.shape, self.samples = layout, example.shape, samples
        self.plan = b""
        """The same for compiled code, as native/kernels.cpp says; empty where that takes a copy."""
        self._size: torch.Size | None = None
        self._strides: tuple[int, ...] = ()
        self._views: tuple[int, ...] = ()
        arranged = self._arrange(example.detach())
        self.fits = arranged is not None
        """Whether it can be seen so at all."""
        self.rows = 0 if arranged is None else arranged.shape[0]
        """Number of samples; 1 where they cannot be told apart."""
        self.positions = 1 if arranged is None or arranged.ndim == 2 else arranged.shape[2]

    def rows_of(self, samples: int | None) -> int:
        """Number of samples in a call of a pass with so many."""
        return self.rows if self._layout.sample is None or samples is None else samples

    def of(self, tensor: Tensor) -> Tensor:
        """`tensor`, of this shape, as `[sample, unit, position]`; `[sample, unit]` if one position.

        A view, where memory is laid out so that it can be.
        """
        tensor = tensor.detach()
        if self._size is not None and tensor.stride() == self._strides:
            return tensor.as_strided(self._size, self._views)
        arranged = self._arrange(tensor)
        assert arranged is not None
        return arranged

    def _arrange(self, tensor: Tensor) -> Tensor | None:
        arranged = arrange(tensor, self._layout, self.samples)
        if arranged is None:
            return None
        if arranged.shape[2] == 1:
            arranged = arranged[..., 0]
        if tensor.numel() and arranged.data_ptr() == tensor.data_ptr():
            self._size, self._strides, self._views = (
                arranged.shape,
                tensor.stride(),
                arranged.stride(),
            )
            one = () if arranged.ndim == 3 else (1,)
            seen = *self._size, *one, *self._views, *one
            self.plan = array("q", [tensor.ndim, *self.shape, *self._strides, *seen]).tobytes()
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
        self._forwards: list[tuple[bool, torch.Size | int | None]] = []
        """Of each, whether it was in training, and the shape or the length of its input."""
        self._handle = model.register_forward_hook(
            Hook(self._count, model, "input", was_traced), with_kwargs=True
        )

    def _count(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        # In training this code is cold each time: what it does not do saves microseconds.
        if backward_task() != -1 or innermost_transform() is not None:
            return
        first = args[0] if args else None
        shape: torch.Size | int | None = first.shape if type(first) is Tensor else None
        if not shape:
            shape = rows_of([*args, *kwargs.values()])
        self._forwards.append((module.training, shape))

    def end(self) -> tuple[list[tuple[int, bool, int, int]], int]:
        """(site, in training, calls, samples) of what was called since; passes in evaluation."""
        self._handle.remove()
        forwards: Counter[int | None] = Counter()
        evaluations = 0
        for (training, shape), count in Counter(self._forwards).items():
            if training:
                forwards[shape[0] if isinstance(shape, tuple) else shape] += count
            else:
                evaluations += count
        calls = [
            (turn.place.index, in_training, count, count * turn.reading.rows_of(samples))
            for samples, count in forwards.items()
            for turn, in_training in self._turns
            if turn.place is not None and turn.reading is not None
        ]
        return calls, evaluations

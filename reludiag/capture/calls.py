"""One call of a rectifier: which it is in its pass, and how its tensors are viewed."""

from array import array
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.sites.axes import Coordinate
from reludiag.sites.consumers import Consumer
from reludiag.sites.layout import Layout, arrange
from reludiag.sites.products import Product
from reludiag.sites.readable import readable
from reludiag.sites.site import Identity, Rectifier


class Call:
    """One call of a rectifier. Its tensors are the model's own memory: read them at once."""

    __slots__ = ("_pre_activation", "output", "samples", "signal", "site", "training", "view")

    def __init__(
        self,
        site: int,
        training: bool,
        output: Tensor,
        pre_activation: Any,
        view: "UnitView",
        samples: "CallSamples | None" = None,
        signal: Tensor | None = None,
    ) -> None:
        self.site = site
        """Index in `Capture.sites`."""
        self.training = training
        """The training flag of the calling module."""
        self.output = output
        self.view = view
        """How to view the output and the pre-activation as `[sample, unit, position]`."""
        self.samples = samples
        """None where the rows of the view are samples, and no other call of the site has them."""
        self.signal = signal
        """Of a rectifier with a rule of its own, like its output: positive where a unit fired, 0
        where it did not, NaN where the output is not finite. None where the output itself says so.
        """
        self._pre_activation = pre_activation

    def pre_activation(self) -> Tensor | None:
        """None where it is overwritten, or is not a tensor of the output's shape."""
        x, output = self._pre_activation, self.output
        if isinstance(x, Tensor) and type(x) is not Tensor:
            x = readable(x)
        if (
            x is output
            or not isinstance(x, Tensor)
            or x.shape != output.shape
            or x.data_ptr() == output.data_ptr()
        ):
            return None
        return x.resolve_neg()  # the imaginary part of a conjugate is negative in name only


@dataclass(frozen=True)
class CallSamples:
    """Which samples of its pass a call is of."""

    count: int
    """Number of samples, or groups, in the pass."""
    rows: Tensor | None = None
    """The sample of each row of the view, `[row]`; None where the rows are the samples in order."""
    positions: Tensor | None = None
    """The sample of each position of the view, `[position]`, where its one row is of several."""
    has_empty: bool = False
    """Whether some of these positions are of no sample: empty slots of a buffer."""
    again: bool = False
    """Whether the call was handed over before, without this."""
    is_first: bool = True
    """Whether it is the first call of its site in the pass."""


class UnitView:
    """How tensors of one shape are viewed as `[sample, unit, position]`, worked out once.

    Only `_arrange` changes one, and only the strides that it remembers: any thread may use it.
    """

    __slots__ = ("_layout", "_size", "_strides", "_view_strides", "fits", "plan", "positions",
                 "rows", "samples", "shape")  # fmt: skip

    def __init__(self, layout: Layout, example: Tensor, samples: int | None) -> None:
        """`samples` is the number of samples in the pass, None if unknown."""
        self._layout, self.shape, self.samples = layout, example.shape, samples
        self.plan = b""
        """The same for compiled code, as described in native/kernels.cpp; empty if a copy is
        needed.
        """
        self._size: torch.Size | None = None
        self._strides: tuple[int, ...] = ()
        self._view_strides: tuple[int, ...] = ()
        arranged = self._arrange(example.detach())
        self.fits = arranged is not None
        """Whether such a tensor can be viewed so at all."""
        self.rows = 0 if arranged is None else arranged.shape[0]
        """Number of samples; 1 if they cannot be distinguished."""
        self.positions = 1 if arranged is None or arranged.ndim == 2 else arranged.shape[2]

    @property
    def sample(self) -> Coordinate | None:
        """Where the samples are in a tensor of this shape."""
        return self._layout.sample_in(tuple(self.shape), self.samples)

    def without_samples(self, example: Tensor) -> "UnitView":
        """The same with all positions in one row."""
        return UnitView(replace(self._layout, sample=None), example, self.samples)

    def call_samples(self, ids: Tensor, count: int) -> CallSamples:
        """The samples of a call, by ids that broadcast to it; its positions are in one row.

        The whole call is one sample if the ids depend on the unit.
        """
        arranged = arrange(ids.expand(self.shape), self._layout, self.samples)
        assert arranged is not None
        positions = arranged[0, 0]
        if bool((arranged == positions).all()):
            return CallSamples(count, None, positions, bool((positions < 0).any()))
        return CallSamples(count)

    def rows_of(self, samples: int | None) -> int:
        """Number of samples in a call, in a pass with `samples` of them."""
        is_told = self._layout.sample is not None and self.rows == self.samples
        return samples if is_told and samples is not None else self.rows

    def of(self, tensor: Tensor) -> Tensor:
        """`tensor`, of this shape, as `[sample, unit, position]`; `[sample, unit]` if one position.

        A view if the memory layout allows it.
        """
        tensor = tensor.detach()
        if self._size is not None and tensor.stride() == self._strides:
            return tensor.as_strided(self._size, self._view_strides)
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
            self._size, self._strides, self._view_strides = (
                arranged.shape,
                tensor.stride(),
                arranged.stride(),
            )
            one = () if arranged.ndim == 3 else (1,)
            as_viewed = *self._size, *one, *self._view_strides, *one
            numbers = [tensor.ndim, *self.shape, *self._strides, *as_viewed]
            self.plan = array("q", numbers).tobytes()
        return arranged


class ExpectedCall:
    """One call in the sequence that a forward makes: the next forward is expected to make it too.

    `site` and `view` are set by `CallReader` alone: when the call is first made, and when it is
    made with another shape. All else stays.
    """

    __slots__ = ("is_left_out", "number", "operator", "ordinal", "owner", "producer", "site",
                 "view")  # fmt: skip

    def __init__(
        self, owner: nn.Module, operator: str, producer: nn.Module | None, number: int, ordinal: int
    ) -> None:
        self.owner, self.operator, self.producer = owner, operator, producer
        self.number = number
        """How many calls of the owner came earlier in this forward."""
        self.ordinal = ordinal
        """How many of these were fed by the same producer."""
        self.site: KnownSite | None = None
        self.view: UnitView | None = None
        self.is_left_out = False
        """Whether it is known not to be a site: set with the others."""

    @property
    def is_first(self) -> bool:
        """Whether it is the first call of its site in a forward."""
        return self.site is None or self.ordinal == self.site.identity.ordinal


@dataclass
class KnownSite:
    """What `SiteRegistry` knows of one site, which alone adds to it."""

    index: int
    path: str
    identity: Identity
    rectifier: Rectifier
    layout: Layout
    label: str
    producer: str | None
    norm: str | None
    products: tuple[Product, ...]
    is_exact: bool
    consumers: tuple[Consumer, ...] | None = None
    """As in `Site`, as the two before it."""
    weights: tuple[Any, ...] = ()
    """What made the tensor that its first call read; a later call that says the same is its own.
    """
    repeats: bool = False
    """Whether it was called more than once in a forward."""
    numbers: set[int] = field(default_factory=set)
    """Which call of its owner its first call was, in each of the forwards that made it."""

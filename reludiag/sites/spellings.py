"""Rectifiers that are spelled with several operators: `x * (x > theta)`, `where(x > 0, x, 0)`, ...

`Parts` sees the operators one by one. It remembers the zeros, masks and top values that a rectifier
can be made of, and says which operator makes one of them.
"""

import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reludiag.sites.rectifiers import Arguments, is_zero
from reludiag.sites.site import Rectifier
from reludiag.sites.spelled_arguments import READS
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    holds_reals,
    storage_of,
    version_of,
)

_ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})
_ONES = frozenset({"ones", "ones_like", "new_ones"})
_FILLED = frozenset({"full", "full_like", "new_full"})
_COMPARISONS = {"gt": True, "ge": True, "lt": False, "le": False}
"""Whether the mask marks where the first of the two is above the second."""
_CASTS = frozenset({"bool", "float", "double", "half", "bfloat16", "to", "type_as", "type"})
_MAXIMA = frozenset({"maximum", "max", "fmax"})
_NEGATIONS = frozenset({"bitwise_not", "logical_not", "invert"})
_VIEWS = frozenset(
    {
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze"),
        *("unsqueeze", "contiguous", "clone"),
    }
)
"""They leave the elements in their order."""
AFTER_TOP = _VIEWS | READS | {"gather"}
"""Those that matter only once a `topk` was seen."""
OPERATORS = (
    _ZEROS
    | _ONES
    | _FILLED
    | _COMPARISONS.keys()
    | _CASTS
    | _MAXIMA
    | _NEGATIONS
    | {"where", "mul", "masked_fill", "setitem", "topk", "scatter"}
)

_SIGNED_JUMP = Rectifier(
    "jumprelu", can_die=True, signed=True, zero_gradient="x <= theta", is_composed=True
)
_JUMP = replace(_SIGNED_JUMP, signed=False, passes_input=True)
_TOP = Rectifier(
    "topk",
    can_die=True,
    signed=True,
    zero_gradient="x is not among the k largest",
    is_composed=True,
)
"""What it selects may be 0 or negative: a selected zero has not fired."""
_MASK = Rectifier(
    "mask",
    can_die=True,
    signed=True,
    zero_gradient="x is not selected",
    is_composed=True,
    is_mask=True,
)
"""What a rectifier returned, where other values than these are above a threshold or largest."""


def _above_zero(operator: str) -> Rectifier:
    return Rectifier(operator, can_die=True, passes_input=True, zero_gradient="x <= 0")


class Spelled(NamedTuple):
    """A rectifier that an operator makes."""

    rectifier: Rectifier
    pre_activation: Tensor


class Read(NamedTuple):
    """The largest values, where a weight is read at their indices."""

    rectifier: Rectifier
    pre_activation: Tensor
    """What the largest were taken of, along its last axis."""
    indices: Tensor
    """`[..., rank]`."""
    values: Tensor | None
    """`[..., rank]`: what arrives of them; None for those of `pre_activation`."""


class _Side(NamedTuple):
    """A tensor whose elements a mask marks."""

    tensor: Any
    """Returns it, or None if it is gone: a weak reference."""
    version: int
    is_above: bool
    """Whether it marks where that tensor is above the threshold, or where it is below."""
    rectifier: Rectifier | None
    """What the mask makes of it; None if the threshold is 0."""


class _Top(NamedTuple):
    """One call of `topk`."""

    tensor: Tensor
    """What the largest were taken of. It lives as long as their indices: its axes are theirs."""
    version: int
    dim: int
    """Along which axis."""

    def is_of(self, tensor: Any) -> bool:
        """Whether this tensor is what they were taken of, unchanged."""
        return tensor is self.tensor and version_of(self.tensor) == self.version


class _Part(NamedTuple):
    """A tensor from which a rectifier may be made. One of its fields is set."""

    number: int | None = None
    """All its elements are 0, or 1."""
    sides: tuple[_Side, ...] = ()
    """Of a mask."""
    values_of: _Top | None = None
    indices_of: _Top | None = None


_NOTHING = _Part()


class Parts:
    """Zeros, masks and top values, from which a rectifier can be composed."""

    def __init__(self) -> None:
        # id -> (a weak reference to the tensor, its version, what it is)
        self._parts: dict[int, tuple[Any, int, _Part]] = {}
        # id -> weak references to what a rectifier returned, and to what it rectified
        self._sources: dict[int, tuple[Any, Any]] = {}
        self.has_top = False
        """Whether a `topk` was seen."""

    def clear(self) -> None:
        """Forget all: something was written in place where versions are not counted."""
        self._parts.clear()
        self._sources.clear()

    def forget(self, tensor: Tensor) -> None:
        """Forget what was known of this tensor: it was written to."""
        self._parts.pop(id(tensor), None)

    def note(self, operator: str, args: Arguments, result: Any) -> None:
        """Remember a result from which a rectifier may be composed."""
        if operator == "topk":
            x, dim, largest = args
            if largest and isinstance(x, Tensor) and x.ndim:
                self.has_top = True
                top = _Top(x, version_of(x), dim % x.ndim)
                values, indices = result
                self._keep(values, _Part(values_of=top))
                self._keep(indices, _Part(indices_of=top))
            return
        if operator == "setitem":
            if len(args) == 3:
                self._note_marked(*args)
            return
        if not isinstance(result, Tensor) or not args:
            return
        part = _NOTHING
        if operator in _ZEROS or (operator in _FILLED and is_zero(args[-1])):
            part = _Part(number=0)
        elif operator in _ONES or (operator in _FILLED and _is_one(args[-1])):
            part = _Part(number=1)
        elif operator in _COMPARISONS and len(args) > 1:
            part = _Part(sides=tuple(self._sides(args[0], args[1], _COMPARISONS[operator])))
        elif operator in _CASTS or operator in _VIEWS:
            part = self._part(args[0])
        elif operator in _NEGATIONS:
            sides = self._part(args[0]).sides
            part = _Part(sides=tuple(_Side(x, v, not above, r) for x, v, above, r in sides))
        elif operator == "gather":
            part = self._gathered(*args)
        elif operator == "scatter" and len(args) == 4:
            part = _Part(sides=self._marked(*args, is_in_place=result is args[0]))
            self.forget(result)
        if part != _NOTHING:
            self._keep(result, part)

    def note_rectified(self, x: Tensor, result: Any) -> None:
        """Remember that `result` was made by a rectifier of `x`."""
        # Called at each ReLU of a training step: no version, no callback.
        if result is not x and isinstance(result, Tensor):
            self._sources[id(result)] = weakref.ref(result), weakref.ref(x)

    def _gathered(self, x: Any, dim: Any, index: Any) -> _Part:
        """What is taken from the places of the largest, of these or of what was rectified."""
        top = self._part(index).indices_of
        if top is None or not isinstance(dim, int) or not isinstance(x, Tensor) or not x.ndim:
            return _NOTHING
        if dim % x.ndim != top.dim:
            return _NOTHING
        return _Part(values_of=top if any(map(top.is_of, self._before(x))) else None)

    def _note_marked(self, mask: Any, index: Any, value: Any) -> None:
        """Remember a mask of one axis that was made by `mask[indices] = 1`."""
        known = self._parts.get(id(mask)) if isinstance(mask, Tensor) else None
        self.forget(mask)
        top = self._part(index).indices_of
        if known is None or known[2].number != 0 or top is None or not _is_one(value):
            return
        if version_of(mask) != known[1] + (not mask.is_inference()):
            return
        if mask.ndim == 1 and mask.shape == top.tensor.shape:
            self._keep(mask, _Part(sides=(_top_side(top),)))

    def _keep(self, result: Tensor, part: _Part) -> None:
        key = id(result)
        reference = weakref.ref(result, lambda _: self._parts.pop(key, None))
        self._parts[key] = (reference, version_of(result), part)

    def spelled(self, operator: str, args: Arguments) -> Spelled | None:
        """The rectifier that this call makes; None if it makes none or this is unknown."""
        x: Any = None
        rectifier: Rectifier | None = None
        if operator in _MAXIMA and len(args) == 2:
            for one, other in (args, args[::-1]):
                if isinstance(one, Tensor) and isinstance(other, Tensor) and self.is_zero(other):
                    x, rectifier = one, _above_zero(operator)
        elif operator == "where" and len(args) == 3:
            mask, a, b = args
            for one, other, is_above in ((a, b, True), (b, a, False)):
                if rectifier is None and self.is_zero(other):
                    x, rectifier = one, self._masked(operator, one, mask, is_above)
        elif operator == "mul" and len(args) == 2:
            for one, mask in (args, args[::-1]):
                if rectifier is None:
                    x, rectifier = one, self._masked(operator, one, mask, True)
        elif operator in {"masked_fill", "setitem"} and len(args) == 3:
            x, mask, value = args
            if self.is_zero(value):
                rectifier = self._masked(operator, x, mask, False)
        elif operator == "scatter" and len(args) == 4:
            return self._top(*args)
        if rectifier is None or not holds_reals(x):
            return None
        return Spelled(rectifier, x)

    def is_zero(self, value: Any) -> bool:
        """Whether this is 0, or a tensor of zeros that was seen being made."""
        return self._part(value).number == 0 or is_zero(value)

    def _part(self, value: Any) -> _Part:
        known = self._parts.get(id(value)) if isinstance(value, Tensor) else None
        if known is None or known[0]() is not value or version_of(value) != known[1]:
            return _NOTHING
        return known[2]

    def _before(self, value: Any) -> Iterator[Any]:
        """A tensor, and what it was rectified from."""
        while isinstance(value, Tensor):
            yield value
            result, source = self._sources.get(id(value), (None, None))
            is_unchanged = result is not None and result() is value and version_of(value) == 0
            value = source() if is_unchanged else None

    def _sides(self, a: Any, b: Any, is_above: bool) -> Iterator[_Side]:
        """What the comparison of `a` with `b` marks; one of them may be a number."""
        for x, threshold, above in ((a, b, is_above), (b, a, not is_above)):
            if not isinstance(x, Tensor):
                continue
            rectifier: Rectifier | None = _SIGNED_JUMP
            if self.is_zero(threshold):
                rectifier = None
            elif not isinstance(threshold, Tensor):
                if not isinstance(threshold, int | float) or not math.isfinite(threshold):
                    continue
                # Above a threshold below 0, an output may be negative.
                rectifier = _JUMP if threshold > 0 else _SIGNED_JUMP
            yield _Side(weakref.ref(x), version_of(x), above, rectifier)

    def _masked(self, operator: str, x: Any, mask: Any, is_above: bool) -> Rectifier | None:
        """What `mask` makes of `x`, or of what `x` was rectified from."""
        for side in self._part(mask).sides:
            for source in self._before(x) if side.is_above is is_above else ():
                if _is_same(side.tensor(), source) and version_of(source) == side.version:
                    if side.rectifier is not None:
                        return side.rectifier
                    # relu(x) * (x > 0) is relu(x), which was seen.
                    return _above_zero(operator) if source is x else None
        is_masked = self._is_rectified(x) and bool(self._part(mask).sides)
        return _MASK if is_masked and mask.shape == x.shape else None

    def _is_rectified(self, value: Any) -> bool:
        """Whether a rectifier returned this tensor, and it is unchanged."""
        result, _ = self._sources.get(id(value), (None, None))
        return result is not None and result() is value and version_of(value) == 0

    def _marked(
        self, zeros: Any, dim: Any, index: Any, src: Any, is_in_place: bool
    ) -> tuple[_Side, ...]:
        """The sides of the mask that has ones at the indices of the largest."""
        top = self._part(index).indices_of
        is_one = _is_one(src) or self._part(src).number == 1
        if top is None or not is_one or not _fits(top, zeros, dim):
            return ()
        known = self._parts.get(id(zeros))
        writes = is_in_place and not zeros.is_inference()
        if known is None or known[2].number != 0 or version_of(zeros) != known[1] + writes:
            return ()
        return (_top_side(top),)

    def _top(self, zeros: Any, dim: Any, index: Any, src: Any) -> Spelled | None:
        """The largest values at their places among zeros, or what a rectifier made of them."""
        top = self._part(index).indices_of
        if top is None or self._part(zeros).number != 0 or not _fits(top, zeros, dim):
            return None
        if self._is_value_of(top, src):
            return Spelled(_TOP, top.tensor)
        return None

    def _is_value_of(self, top: _Top, value: Any) -> bool:
        """Whether this is the largest values, or what a rectifier made of them."""
        return any(self._part(each).values_of is top for each in self._before(value))

    def read(self, args: Arguments) -> Read | None:
        """What arrives at a weight, of which one of `READS` takes rows by the indices of the
        largest; None if it does not, or this is unknown.

        Their values are known if the call gets them, or if a rectifier made what was ranked.
        """
        if len(args) != 4:
            return None
        weight, axis, index, values = args
        top = self._part(index).indices_of
        if top is None or not isinstance(weight, Tensor) or weight.ndim < 2:
            return None
        if not isinstance(axis, int) or not -weight.ndim <= axis < weight.ndim:
            return None
        units = top.tensor.shape[top.dim]
        if top.dim != top.tensor.ndim - 1 or weight.shape[axis] != units:
            return None
        if top.version != version_of(top.tensor) or not holds_reals(weight):
            return None
        if values is None:
            return Read(_TOP, top.tensor, index, None) if self._is_rectified(top.tensor) else None
        if self._is_value_of(top, values) and values.shape == index.shape:
            return Read(_TOP, top.tensor, index, values)
        return None


def in_their_places(x: Tensor, index: Tensor, values: Tensor | None) -> Tensor:
    """The values at these indices of the last axis of `x`, among zeros, in the shape of `x`.

    `index` and `values` are `[..., rank]`; by default the values are those of `x`.
    """
    with torch.no_grad():
        rows = x.detach().reshape(-1, x.shape[-1])
        index = index.detach().reshape(len(rows), -1)
        values = rows.gather(-1, index) if values is None else values.detach().reshape(index.shape)
        return torch.zeros_like(rows).scatter(-1, index, values.to(rows.dtype)).reshape(x.shape)


def _top_side(top: _Top) -> _Side:
    return _Side(lambda: top.tensor, top.version, True, _TOP)


def _is_same(a: Tensor | None, b: Tensor) -> bool:
    """Whether these are the same elements in the same order: one may be a view of the other."""
    if a is b or a is None:
        return a is b
    with DisableTorchFunction():  # a subclass must not notice
        return (
            a.numel() == b.numel()
            and a.dtype == b.dtype
            and a.is_contiguous()
            and b.is_contiguous()
            and storage_of(a) == storage_of(b)
            and a.storage_offset() == b.storage_offset()
        )


def _fits(top: _Top, zeros: Any, dim: Any) -> bool:
    """Whether the largest can be put back at their places in this tensor, along this axis."""
    return (
        isinstance(zeros, Tensor)
        and zeros.shape == top.tensor.shape
        and isinstance(dim, int)
        and dim % zeros.ndim == top.dim
    )


def _is_one(value: Any) -> bool:
    """Whether this is the number 1, or True."""
    return isinstance(value, int | float) and value == 1

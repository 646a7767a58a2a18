"""Where each tensor's unit axis, sample axis and producer come from, followed through one forward.

A dispatch mode watches every operator of one forward pass. A parameter's product (convolution,
matrix product, embedding, normalisation) has a unit axis by definition; views, permutations,
pooling and element-wise operators carry it on by the rules below. What no rule covers loses it:
an axis is found, never guessed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Coordinate:
    """One coordinate of a tensor's elements: `index // inner % size`, of the index along `axis`.

    A plain axis has inner 1. After `flatten(1)` of `[batch, channel, height, width]` the channel
    is the coordinate `(axis=1, size=channels, inner=height * width)`.
    """

    axis: int
    size: int
    inner: int = 1

    def __str__(self) -> str:
        return str(self.axis) if self.inner == 1 else f"{self.axis}//{self.inner}"


@dataclass(frozen=True)
class Origin:
    """What is known of a tensor: its unit and sample coordinates and who produced it."""

    unit: Coordinate | None = None
    sample: Coordinate | None = None
    producer: str | None = None
    """Path of the module whose weight made it; None where none did."""
    order: int = 0
    """How many products had been made before: the later of two producers wins."""


UNKNOWN = Origin()

OperatorObserver = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
"""Called with the dispatcher's name of each operator (`relu_`) and its arguments."""

# Operators that keep every axis in its place, though sizes may change along positions.
_KEEP_AXES = (
    "max_pool",
    "avg_pool",
    "adaptive_",
    "_adaptive_",
    "fractional_max_pool",
    "upsample",
    "_upsample",
    "constant_pad_nd",
    "reflection_pad",
    "replication_pad",
    "_scaled_dot_product",
    "_softmax",
    "_log_softmax",
)
_RESHAPES = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "squeeze",
        "squeeze_",
        "unsqueeze",
        "unsqueeze_",
        "alias",
        "detach",
        "clone",
        "_to_copy",
        "contiguous",
        "lift_fresh",
    }
)
_BATCH_NORMS = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "batch_norm_elemt",
)
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp"})


def reshaped(coordinate: Coordinate, old: Sequence[int], new: Sequence[int]) -> Coordinate | None:
    """The same coordinate after a reshape, which keeps the order of the elements, or None.

    Both shapes hold the same elements in the same order, so a coordinate of the flat index,
    `flat // stride % size`, stays what it is; it is found again in `new` if one axis holds it.
    """
    stride = coordinate.inner * math.prod(old[coordinate.axis + 1 :])
    for axis, length in enumerate(new):
        after = math.prod(new[axis + 1 :])
        if after == 0 or stride % after:
            continue
        inner = stride // after
        if length % (inner * coordinate.size) == 0 and length > 0:
            return Coordinate(axis, coordinate.size, inner)
    return None


class ProvenanceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows origins through the operators run while it is active; changes none of them.

    `origin_of(tensor)` answers for any tensor made since. Origins are kept by storage, not by
    tensor object: autograd hands out new objects for the same memory.
    """

    def __init__(self, model: nn.Module, on_operator: OperatorObserver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_operator = on_operator
        self._parameters = {
            _storage(parameter): name.rpartition(".")[0]
            for name, parameter in model.named_parameters()
        }
        self._made_of_parameters: dict[int, str] = {}
        self._origins: dict[int, dict[tuple[Any, ...], Origin]] = {}
        self._products = 0

    def mark_inputs(self, tensors: Iterator[Tensor], samples: int) -> None:
        """Declare model inputs of shape `[samples, ...]`."""
        for tensor in tensors:
            if tensor.ndim and tensor.shape[0] == samples:
                self._set(tensor, Origin(sample=Coordinate(0, samples)))

    def origin_of(self, tensor: Tensor) -> Origin:
        """What is known of `tensor`; `UNKNOWN` if nothing is."""
        return self._origins.get(_storage(tensor), {}).get(_layout(tensor), UNKNOWN)

    def _set(self, tensor: Tensor, origin: Origin) -> None:
        self._origins.setdefault(_storage(tensor), {})[_layout(tensor)] = origin

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Under inference_mode composite operators arrive whole; their parts have the rules.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        inputs = [(tensor, self._weight_or_origin(tensor)) for tensor in _tensors(args)]
        # Taken before the call: an in-place operator may change a shape (squeeze_).
        shapes = [tuple(tensor.shape) for tensor, _ in inputs]
        name = func._schema.name.rpartition("::")[2]
        self._on_operator(name, args, kwargs)
        result = func(*args, **kwargs)
        outputs = list(_tensors(result if isinstance(result, tuple | list) else (result,)))
        inside = {_storage(tensor) for tensor, _ in inputs}
        for output in outputs:
            if _storage(output) not in inside:
                # Fresh memory: what was known of an earlier tensor at this address is void.
                self._origins.pop(_storage(output), None)
                self._made_of_parameters.pop(_storage(output), None)
        try:
            self._follow(name, func, args, kwargs, inputs, shapes, outputs)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError):
            # An operator with arguments that no rule foresaw: unknown, and the forward goes on.
            for output in outputs:
                self._set(output, UNKNOWN)
        return result

    def _weight_or_origin(self, tensor: Tensor) -> Origin | str:
        """The path of the module whose parameter this is (or a view or copy of it)."""
        storage = _storage(tensor)
        name = self._parameters.get(storage, self._made_of_parameters.get(storage))
        return self.origin_of(tensor) if name is None else name

    def _follow(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[tuple[Tensor, Origin | str]],
        shapes: list[tuple[int, ...]],
        outputs: list[Tensor],
    ) -> None:
        origins = [origin for _, origin in inputs]
        if inputs and all(isinstance(origin, str) for origin in origins) and name != "embedding":
            # Made from parameters alone (a transpose, a cast, weight norm): still a parameter.
            for output in outputs:
                self._made_of_parameters[_storage(output)] = str(origins[0])
            return
        for index, output in enumerate(outputs):
            origin = self._derive(name, func, args, kwargs, inputs, shapes, output, index)
            self._set(output, origin)

    def _product(self, unit: int, sample: Coordinate | None, weight: object, out: Tensor) -> Origin:
        self._products += 1
        producer = weight if isinstance(weight, str) else None
        return Origin(Coordinate(unit, out.shape[unit]), sample, producer, self._products)

    def _derive(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[tuple[Tensor, Origin | str]],
        shapes: list[tuple[int, ...]],
        out: Tensor,
        index: int,
    ) -> Origin:
        """The origin of one output of one operator."""
        of = {id(tensor): origin for tensor, origin in inputs}

        def origin(tensor: Tensor) -> Origin:
            found = of[id(tensor)]
            return UNKNOWN if isinstance(found, str) else found

        if "convolution" in name or name.startswith("mkldnn_conv"):
            sample = origin(args[0]).sample
            kept = sample if sample and sample.axis == 0 else None
            return self._product(1, kept, of[id(args[1])], out)
        if name in {"mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "linear"}:
            return self._matmul(name, args, of, out)
        if name == "embedding":
            sample = origin(args[1]).sample
            return self._product(out.ndim - 1, sample, of[id(args[0])], out)
        if name.startswith(_BATCH_NORMS):
            return self._batch_norm(origin(args[0]), args[1], of, out) if index == 0 else UNKNOWN

        activations = [
            (found, shape)
            for (_, found), shape in zip(inputs, shapes, strict=True)
            if isinstance(found, Origin)
        ]
        if not activations:
            return UNKNOWN
        first, shape = activations[0]
        if name == "native_layer_norm" and first.unit is None and index == 0:
            return self._product(out.ndim - 1, first.sample, of.get(id(args[2])), out)
        if name in _RESHAPES:
            return _each(first, lambda c: reshaped(c, shape, out.shape))
        if name in {"permute", "transpose", "t", "movedim"}:
            order = _permutation(name, args, len(shape))
            return _each(first, lambda c: replace(c, axis=order.index(c.axis)))
        if name == "expand":
            shift = out.ndim - len(shape)
            return _each(first, lambda c: replace(c, axis=c.axis + shift))
        if name in {"select", "unbind"}:
            dim = _dim(args, kwargs, len(shape))
            return _each(first, lambda c: _without(c, dim))
        if name in {"slice", "split", "split_with_sizes", "chunk", "narrow"}:
            return _each(first, lambda c: _resized(c, shape, out.shape))
        if name == "cat":
            return _concatenated(activations, _dim(args, kwargs, out.ndim), out.shape)
        if name == "stack":
            dim = _dim(args, kwargs, out.ndim)
            latest = max((o for o, _ in activations), key=lambda o: o.order)
            return _each(latest, lambda c: replace(c, axis=c.axis + (c.axis >= dim)))
        if name in _REDUCTIONS and len(args) > 1:
            return _reduced(first, args, kwargs, len(shape), out)
        if name.startswith(_KEEP_AXES):
            return _each(first, lambda c: c if out.shape[c.axis] == shape[c.axis] else None)
        if torch.Tag.pointwise in func.tags or name == "copy_":
            return _broadcast(activations, out.shape)
        if len(activations) == 1 and shape == tuple(out.shape):
            return first  # one tensor in, the same shape out: every axis is where it was
        return UNKNOWN

    def _matmul(
        self, name: str, args: tuple[Any, ...], of: dict[int, Origin | str], out: Tensor
    ) -> Origin:
        left, right = args[1:3] if name in {"addmm", "baddbmm", "_addmm_activation"} else args[:2]
        a, b = of[id(left)], of[id(right)]
        rows, columns = out.ndim - 2, out.ndim - 1
        if isinstance(b, str):
            sample = a.sample if isinstance(a, Origin) else None
            kept = sample if sample and sample.axis != left.ndim - 1 else None
            return self._product(columns, kept, b, out)
        if isinstance(a, str):
            kept = b.sample if b.sample and b.sample.axis != right.ndim - 2 else None
            return self._product(rows, kept, a, out)
        # A product of two activations (attention) mixes the units; the batch axis stays.
        batched = a.sample if a.sample and a.sample.axis < left.ndim - 1 else None
        return Origin(sample=batched)

    def _batch_norm(
        self, before: Origin, weight: Tensor | None, of: dict[int, Origin | str], out: Tensor
    ) -> Origin:
        # It scales and shifts axis 1, which makes that the unit axis whatever came before.
        if before.unit == Coordinate(1, out.shape[1]):
            return before
        name = of.get(id(weight)) if weight is not None else None
        return self._product(1, before.sample, name, out)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _each(origin: Origin, move: Any) -> Origin:
    """`origin` with both coordinates moved; a coordinate for which `move` gives None is lost."""
    return replace(
        origin,
        unit=move(origin.unit) if origin.unit else None,
        sample=move(origin.sample) if origin.sample else None,
    )


def _dim(args: tuple[Any, ...], kwargs: dict[str, Any], ndim: int) -> int:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return int(dim) % ndim


def _permutation(name: str, args: tuple[Any, ...], ndim: int) -> list[int]:
    """For each new axis, the old one."""
    if name == "permute":
        return [dim % ndim for dim in args[1]]
    order = list(range(ndim))
    if ndim >= 2:
        a, b = (args[1], args[2]) if name == "transpose" else (0, 1)
        order[a], order[b] = order[b], order[a]
    return order


def _without(coordinate: Coordinate, dim: int) -> Coordinate | None:
    if coordinate.axis == dim:
        return None
    return replace(coordinate, axis=coordinate.axis - (coordinate.axis > dim))


def _resized(coordinate: Coordinate, old: Sequence[int], new: Sequence[int]) -> Coordinate | None:
    """After a slice along some axis: a whole axis may shrink, a coordinate inside one is lost."""
    if new[coordinate.axis] == old[coordinate.axis]:
        return coordinate
    if coordinate.inner == 1 and coordinate.size == old[coordinate.axis]:
        return replace(coordinate, size=new[coordinate.axis])
    return None


def _concatenated(
    parts: list[tuple[Origin, tuple[int, ...]]], dim: int, shape: Sequence[int]
) -> Origin:
    latest = max((origin for origin, _ in parts), key=lambda origin: origin.order)

    def joined(pick: Any) -> Coordinate | None:
        found = {pick(origin) for origin, _ in parts}
        if any(c is None for c in found):
            return None
        axes = {(c.axis, c.inner) for c in found}
        if len(axes) != 1:
            return None
        axis, inner = axes.pop()
        if axis != dim:
            return found.pop() if len(found) == 1 else None
        whole = all(pick(o).size == s[dim] for o, s in parts)
        return Coordinate(axis, shape[dim]) if inner == 1 and whole else None

    return replace(latest, unit=joined(lambda o: o.unit), sample=joined(lambda o: o.sample))


def _reduced(
    origin: Origin, args: tuple[Any, ...], kwargs: dict[str, Any], ndim: int, out: Tensor
) -> Origin:
    dims = args[1] if isinstance(args[1], list | tuple) else [args[1]]
    gone = {int(dim) % ndim for dim in dims} or set(range(ndim))
    keepdim = out.ndim == ndim

    def move(coordinate: Coordinate) -> Coordinate | None:
        if coordinate.axis in gone:
            return None
        shift = 0 if keepdim else sum(dim < coordinate.axis for dim in gone)
        return replace(coordinate, axis=coordinate.axis - shift)

    return _each(origin, move)


def _broadcast(parts: list[tuple[Origin, tuple[int, ...]]], shape: Sequence[int]) -> Origin:
    """Element-wise: shapes align from the right; an axis that is broadcast carries nothing."""

    def aligned(
        origin: Origin, coordinate: Coordinate | None, old: tuple[int, ...]
    ) -> tuple[int, Coordinate] | None:
        if coordinate is None or old[coordinate.axis] != shape[coordinate.axis - len(old)]:
            return None
        return origin.order, replace(coordinate, axis=coordinate.axis + len(shape) - len(old))

    def agreed(found: list[tuple[int, Coordinate] | None]) -> Coordinate | None:
        known = [c for c in found if c]
        return known[0][1] if len({c for _, c in known}) == 1 else None

    latest = max((origin for origin, _ in parts), key=lambda origin: origin.order)
    return replace(
        latest,
        unit=agreed([aligned(o, o.unit, s) for o, s in parts]),
        sample=agreed([aligned(o, o.sample, s) for o, s in parts]),
    )

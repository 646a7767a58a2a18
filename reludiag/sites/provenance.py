"""Provenance: the unit axis, sample axis and producer of each tensor, followed through one forward
pass.

A dispatch mode watches every operator of one forward pass. A parameter's product (convolution,
matrix product, embedding, normalisation) has a unit axis by definition; views, permutations,
pooling and element-wise operators carry it on by the rules below. An operator without a rule loses
it: an axis is never guessed.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.sites.axes import (
    UNKNOWN,
    Coordinate,
    Origin,
    broadcast,
    concatenated,
    moved,
    reduced,
    reshaped,
    resized,
    without,
)
from reludiag.sites.consumer_tracker import ConsumerTracker
from reludiag.sites.consumers import Consumer
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    TorchDispatchMode,
    operator_name,
    without_dispatch_modes,
)
from reludiag.sites.torch_internals import storage_of as _storage

OperatorObserver = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
"""Called with the dispatcher's name of each operator (`relu_`) and its arguments."""

# Operators that keep every axis in place; sizes of position axes may change.
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
_BIASED = frozenset({"addmm", "baddbmm", "_addmm_activation"})
_PRODUCTS = frozenset({"mm", "bmm", "linear"}) | _BIASED
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp"})


class ProvenanceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows origins through the operators that run while it is active, without changing them.

    `origin_of(tensor)` works for any tensor made since. Origins are stored by memory, not by tensor
    object, because autograd creates new objects for the same memory. `begin_site` says where a
    site's units are; `end` what reads them, if `finds_consumers`, which costs as much again.
    """

    def __init__(
        self, model: nn.Module, on_operator: OperatorObserver, finds_consumers: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_operator = on_operator
        self._parameters = {
            _storage(parameter): name.rpartition(".")[0]
            for name, parameter in model.named_parameters()
        }
        self._made_of_parameters: dict[int, str] = {}
        self._origins: dict[int, dict[tuple[Any, ...], Origin]] = {}
        self._products = 0
        self._paused = False
        self._consumers: ConsumerTracker | None = None
        if finds_consumers:
            self._consumers = ConsumerTracker(model, lambda tensor: self.origin_of(tensor).producer)
        self._entered = 0

    def __enter__(self) -> Any:
        self._entered += 1
        if self._entered == 1 and self._consumers is not None:
            self._consumers.escapes.__enter__()  # type: ignore[no-untyped-call]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._entered -= 1
        if self._entered == 0 and self._consumers is not None:
            self._consumers.escapes.__exit__(*error)  # type: ignore[no-untyped-call]

    def begin_site(self, site: int, output: Tensor, unit: Coordinate) -> None:
        """Follow the units of a site, which are at this coordinate of its output, from here on."""
        if self._consumers is not None:
            with DisableTorchFunction(), without_dispatch_modes():
                self._consumers.begin(site, output, unit)

    def end(self, output: Any) -> dict[int, tuple[Consumer, ...]]:
        """What reads each site's units, after a forward that returned `output`."""
        return {} if self._consumers is None else self._consumers.end(output)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Follow nothing inside: operators of observers are not part of the model."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def mark_inputs(self, tensors: Iterator[Tensor], samples: int) -> None:
        """Declare model inputs of shape `[samples, ...]`."""
        for tensor in tensors:
            if tensor.ndim and tensor.shape[0] == samples:
                self._set(tensor, Origin(sample=Coordinate(0, samples)))

    def origin_of(self, tensor: Tensor) -> Origin:
        """The origin of `tensor`; `UNKNOWN` if there is none."""
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
        if self._paused:
            return func(*args, **kwargs)
        # Under inference_mode composite operators arrive undivided; the rules are for their parts.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        # Before it runs: an in-place operator may change a shape (squeeze_).
        inputs = [
            _Input(tensor, tuple(tensor.shape), self._weight_or_origin(tensor))
            for tensor in tensors_in(args)
        ]
        call = _Call(operator_name(func), func.tags, args, kwargs, inputs)
        self._on_operator(call.name, args, kwargs)
        # Calling it here must not count as a call: a function mode would see what TorchScript
        # calls, and see it in this forward only.
        with DisableTorchFunction():
            tracker = self._consumers
            operation = None if tracker is None else tracker.prepare(func, args, kwargs)
            result = func(*args, **kwargs)
        outputs = list(tensors_in(result if isinstance(result, tuple | list) else (result,)))
        reused = {_storage(argument.tensor) for argument in inputs}
        for output in outputs:
            if _storage(output) not in reused:
                # New memory: forget the origin of an earlier tensor at this address.
                self._origins.pop(_storage(output), None)
                self._made_of_parameters.pop(_storage(output), None)
        if tracker is not None and operation is not None:
            with DisableTorchFunction(), without_dispatch_modes():
                tracker.follow(operation, outputs)
        try:
            self._follow(call, outputs)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError):
            # An operator with unexpected arguments: unknown, and the forward pass continues.
            for output in outputs:
                self._set(output, UNKNOWN)
        return result

    def _weight_or_origin(self, tensor: Tensor) -> Origin | str:
        """The path of the module whose parameter this is (or a view or copy of it)."""
        storage = _storage(tensor)
        name = self._parameters.get(storage, self._made_of_parameters.get(storage))
        return self.origin_of(tensor) if name is None else name

    def _follow(self, call: "_Call", outputs: list[Tensor]) -> None:
        if "fake_quant" in call.name or call.name.endswith("_fq_helper"):
            # Rounds its first input; the others are the scales of a quantization.
            call = replace(call, inputs=call.inputs[:1])
        weights = [argument.origin for argument in call.inputs if isinstance(argument.origin, str)]
        if weights and len(weights) == len(call.inputs):
            # Made only from parameters (a transpose, a cast, weight norm): still a parameter,
            # but it may also be an activation, as learned queries are.
            for output in outputs:
                self._made_of_parameters[_storage(output)] = weights[0]
            call = replace(
                call,
                inputs=[
                    replace(argument, origin=self.origin_of(argument.tensor))
                    if call.name not in _PRODUCTS or argument.tensor is call.factor
                    else argument
                    for argument in call.inputs
                ],
            )
        for index, output in enumerate(outputs):
            self._set(output, self._derive(call, output, index))

    def _product(
        self, unit: int, sample: Coordinate | None, producer: str | None, out: Tensor
    ) -> Origin:
        self._products += 1
        return Origin(Coordinate(unit, out.shape[unit]), sample, producer, order=self._products)

    def _derive(self, call: "_Call", out: Tensor, index: int) -> Origin:
        """The origin of one output of one operator."""
        name, args = call.name, call.args
        if "convolution" in name or name.startswith("mkldnn_conv"):
            sample = call.origin(args[0]).sample
            sample_axis = sample if sample and sample.axis == 0 else None
            return self._product(1, sample_axis, call.weight(args[1]), out)
        if name in _PRODUCTS:
            return self._matmul(call, out)
        if name == "embedding":
            return self._product(
                out.ndim - 1, call.origin(args[1]).sample, call.weight(args[0]), out
            )
        if name.startswith(_BATCH_NORMS):
            return self._batch_norm(call, out) if index == 0 else UNKNOWN

        activations = [
            (argument.origin, argument.shape)
            for argument in call.inputs
            if isinstance(argument.origin, Origin)
        ]
        if not activations:
            return UNKNOWN
        first, shape = activations[0]
        if name == "native_layer_norm" and first.unit is None and index == 0:
            return self._product(out.ndim - 1, first.sample, call.weight(args[2]), out)
        if name in _RESHAPES:
            return moved(first, lambda c: reshaped(c, shape, out.shape))
        if name in {"permute", "transpose", "t", "movedim"}:
            order = _permutation(name, args, len(shape))
            return moved(first, lambda c: replace(c, axis=order.index(c.axis)))
        if name == "expand":
            shift = out.ndim - len(shape)
            return moved(first, lambda c: replace(c, axis=c.axis + shift))
        if name in {"select", "unbind"}:
            dim = _dim(call, len(shape))
            return moved(first, lambda c: without(c, dim))
        if name in {"slice", "split", "split_with_sizes", "chunk", "narrow"}:
            return moved(first, lambda c: resized(c, shape, out.shape))
        if name == "cat":
            return concatenated(activations, _dim(call, out.ndim), out.shape)
        if name == "stack":
            dim = _dim(call, out.ndim)
            latest = max((o for o, _ in activations), key=lambda o: o.order)
            return moved(latest, lambda c: replace(c, axis=c.axis + (c.axis >= dim)))
        if name in _REDUCTIONS and len(args) > 1:
            return reduced(first, args[1], len(shape), out)
        if name.startswith(_KEEP_AXES):
            return moved(first, lambda c: c if out.shape[c.axis] == shape[c.axis] else None)
        if torch.Tag.pointwise in call.tags or name == "copy_":
            return broadcast(activations, out.shape)
        if name == "index_put_":
            return first  # x[mask] = 0: the axes do not change
        if len(activations) == 1 and shape == tuple(out.shape):
            return first  # one input of the same shape: every axis stays in place
        return UNKNOWN

    def _matmul(self, call: "_Call", out: Tensor) -> Origin:
        left, right = call.factor, call.args[2 if call.name in _BIASED else 1]
        rows, columns = out.ndim - 2, out.ndim - 1
        left_sample, right_sample = call.origin(left).sample, call.origin(right).sample
        sample_axis = left_sample if left_sample and left_sample.axis != left.ndim - 1 else None
        if (weight := call.weight(right)) is not None:
            return self._product(columns, sample_axis, weight, out)
        if (weight := call.weight(left)) is not None:
            sample_axis = (
                right_sample if right_sample and right_sample.axis != right.ndim - 2 else None
            )
            return self._product(rows, sample_axis, weight, out)
        # A product of two activations (attention): summed axes are lost, the others stay.
        factors = [
            moved(call.origin(left), lambda c: None if c.axis == left.ndim - 1 else c),
            moved(call.origin(right), lambda c: None if c.axis == right.ndim - 2 else c),
        ]
        units = [factor for factor in factors if factor.unit is not None]
        samples = {factor.sample for factor in factors if factor.sample is not None}
        latest = max(units or factors, key=lambda origin: origin.order)
        return replace(
            latest,
            unit=latest.unit if len(units) == 1 else None,
            sample=samples.pop() if len(samples) == 1 else None,
        )

    def _batch_norm(self, call: "_Call", out: Tensor) -> Origin:
        # It scales and shifts axis 1, which therefore is the unit axis.
        origin, norm = call.origin(call.args[0]), call.weight(call.args[1])
        if origin.unit == Coordinate(1, out.shape[1]):
            return replace(origin, norm=norm)
        return self._product(1, origin.sample, norm, out)


@dataclass(frozen=True)
class _Input:
    """A tensor argument of an operator, before the call."""

    tensor: Tensor
    shape: tuple[int, ...]
    origin: Origin | str
    """For a parameter, or a tensor made from one: the path of its module."""


@dataclass(frozen=True)
class _Call:
    """One call of an operator."""

    name: str
    tags: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[_Input]

    @property
    def factor(self) -> Tensor:
        """The left one of a matrix product."""
        factor: Tensor = self.args[1 if self.name in _BIASED else 0]
        return factor

    def origin(self, tensor: Tensor) -> Origin:
        """The origin of an activation among the inputs."""
        origin = self._origin_of(tensor)
        return origin if isinstance(origin, Origin) else UNKNOWN

    def weight(self, tensor: Tensor | None) -> str | None:
        """The module of this input, if it is a parameter."""
        path = self._origin_of(tensor)
        return path if isinstance(path, str) else None

    def _origin_of(self, tensor: Tensor | None) -> Origin | str | None:
        return next(
            (argument.origin for argument in self.inputs if argument.tensor is tensor), None
        )


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def _dim(call: _Call, ndim: int) -> int:
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
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

"""Provenance: the unit axis, sample axis and producer of each tensor, followed through one forward
pass.

A dispatch mode watches every operator of one forward pass. A parameter's product (convolution,
matrix product, embedding, normalisation) has a unit axis by definition; views, permutations,
pooling and element-wise operators carry it on by the rules below. An operator without a rule loses
it: an axis is never guessed.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.sites.axes import (
    UNKNOWN,
    Axes,
    Coordinate,
    Origin,
    broadcast,
    concatenated,
    moved,
    reduced,
    stacked,
)
from reludiag.sites.consumer_tracker import ConsumerTracker
from reludiag.sites.consumers import Consumer
from reludiag.sites.index_rules import assigned
from reludiag.sites.moves import move_of
from reludiag.sites.readable import has_own_operators
from reludiag.sites.readable import memory_layout as _layout
from reludiag.sites.returned import ReturnTracker
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    TorchDispatchMode,
    operator_arguments,
    operator_name,
    without_dispatch_modes,
)
from reludiag.sites.torch_internals import storage_of as _storage

OperatorObserver = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
"""Called with the dispatcher's name of each operator (`relu_`) and its arguments."""

_BATCH_NORMS = (
    "native_batch_norm",
    "native_batch_norm_legit",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "batch_norm_with_update",
    "batch_norm_no_update",
    "batch_norm_elemt",
)
_BIASED = frozenset({"addmm", "baddbmm", "addmm_activation"})
_PRODUCTS = frozenset({"mm", "bmm", "linear"}) | _BIASED
_PACKED_PRODUCTS = ("linear", "conv1d", "conv2d", "conv3d")
"""Of the quantized operators, whose weights are packed in an object that is no tensor."""
_NORMS = {"native_layer_norm": -1, "fused_rms_norm": -1, "native_group_norm": 1}
"""Which axis they scale."""
_RECURRENT = ("mkldnn_rnn_layer", "lstm", "gru", "rnn_tanh", "rnn_relu")
_REDUCTIONS = frozenset(
    {
        *("mean", "nanmean", "sum", "nansum", "prod", "amax", "amin", "max", "min", "median"),
        *("nanmedian", "mode", "var", "std", "var_mean", "std_mean", "logsumexp", "norm"),
        *("linalg_vector_norm", "argmax", "argmin", "any", "all", "count_nonzero"),
    }
)
_SCATTERS = frozenset({"scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy",
                       "index_reduce"})  # fmt: skip


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
        self._constants = {_storage(buffer) for buffer in model.buffers()}
        """Memory that depends on no input: buffers, and what is made from nothing else."""
        self._origins: dict[int, dict[tuple[Any, ...], Origin]] = {}
        self._products = 0
        self._paused = False
        self._returned = ReturnTracker()
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

    def begin_site(self, site: int, output: Tensor, unit: Axes) -> None:
        """Follow the units of a site, at these coordinates of its output, from here on."""
        self._returned.begin(site, output)
        if self._consumers is not None:
            with DisableTorchFunction(), without_dispatch_modes():
                self._consumers.begin(site, output, unit)

    def end(self, output: Any) -> dict[int, tuple[Consumer, ...]]:
        """What reads each site's units, after a forward that returned `output`.

        Without `finds_consumers` only of sites whose output is returned and not read.
        """
        if self._consumers is None:
            return self._returned.end(output)
        return self._consumers.end(output)

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
            if not tensor.is_nested and tensor.ndim and tensor.shape[0] == samples:
                self._set(tensor, Origin(sample=Coordinate(0, samples)))

    def note_product(self, tensor: Tensor, origin: Origin) -> None:
        """Declare where units and samples are in what a layer made of its own weights.

        For layers whose operators say less than they do themselves. Without a sample axis, it stays
        the one that was followed.
        """
        self._products += 1
        sample = origin.sample or self.origin_of(tensor).sample
        self._set(tensor, replace(origin, sample=sample, order=self._products))

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
        operands = list(tensors_in([*args, *kwargs.values()]))
        if any(tensor.is_nested for tensor in operands):
            return self._run_unfollowed(func, args, kwargs)
        # Under inference_mode composite operators arrive undivided; the rules are for their parts.
        own_operators = any(map(has_own_operators, operands))
        if not own_operators:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        # Before it runs: an in-place operator may change a shape (squeeze_).
        inputs = [
            _Input(
                tensor,
                tuple(tensor.shape),
                self._weight_or_origin(tensor),
                _storage(tensor) in self._constants,
            )
            for tensor in operands
        ]
        call = _Call(func, args, kwargs, inputs)
        self._on_operator(operator_name(func), args, kwargs)
        # Calling it here must not count as a call: a function mode would see what TorchScript
        # calls, and see it in this forward only. A subclass is to find what it always finds.
        with contextlib.nullcontext() if own_operators else DisableTorchFunction():
            tracker = self._consumers
            operation = None if tracker is None else tracker.prepare(func, args, kwargs)
            result = func(*args, **kwargs)
        outputs = list(tensors_in(result if isinstance(result, tuple | list) else (result,)))
        self._forget(outputs, operands)
        if any(output.is_nested for output in outputs):
            self._lose(func, operands)
            return result
        if tracker is None:
            self._returned.follow(call.name, map(_storage, operands), map(_storage, outputs))
        elif operation is not None:
            with DisableTorchFunction(), without_dispatch_modes():
                tracker.follow(operation, outputs)
        try:
            self._follow(call, outputs)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            # An operator with unexpected arguments: unknown, and the forward pass continues.
            for output in outputs:
                self._set(output, UNKNOWN)
        return result

    def _run_unfollowed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator on nested tensors, which have no shape to follow."""
        inputs = list(tensors_in([*args, *kwargs.values()]))
        self._lose(func, inputs)
        result = func(*args, **kwargs)
        outputs = list(tensors_in(result if isinstance(result, tuple | list) else (result,)))
        self._forget(outputs, inputs)
        return result

    def _lose(self, func: Any, inputs: list[Tensor]) -> None:
        if self._consumers is not None:
            with DisableTorchFunction(), without_dispatch_modes():
                self._consumers.lose(operator_name(func), inputs)

    def _forget(self, outputs: list[Tensor], inputs: list[Tensor]) -> None:
        """In new memory, forget the origin of an earlier tensor at this address."""
        reused = {_storage(tensor) for tensor in inputs}
        for output in outputs:
            if _storage(output) not in reused:
                self._origins.pop(_storage(output), None)
                self._made_of_parameters.pop(_storage(output), None)
                self._constants.discard(_storage(output))

    def _weight_or_origin(self, tensor: Tensor) -> Origin | str:
        """The path of the module whose parameter this is (or a view or copy of it)."""
        storage = _storage(tensor)
        name = self._parameters.get(storage, self._made_of_parameters.get(storage))
        return self.origin_of(tensor) if name is None else name

    def _follow(self, call: "_Call", outputs: list[Tensor]) -> None:
        if "fake_quant" in call.name or call.name.endswith("fq_helper"):
            # Rounds its first input; the others are the scales of a quantization.
            call = replace(call, inputs=call.inputs[:1])
        weights = [argument.origin for argument in call.inputs if isinstance(argument.origin, str)]
        made_of_weights = all(
            argument.is_constant or isinstance(argument.origin, str) for argument in call.inputs
        )
        for storage in map(_storage, outputs):
            self._made_of_parameters.pop(storage, None)
            self._constants.discard(storage)
            if made_of_weights and weights:
                # Made only from parameters (a transpose, a cast, weight norm): still a parameter,
                # but it may also be an activation, as learned queries are.
                self._made_of_parameters[storage] = weights[0]
            elif made_of_weights:
                self._constants.add(storage)
        if made_of_weights and weights:
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
            origin = self._derive(call, output, index)
            self._set(output, origin)
            if call.in_place:
                self._spread(output, origin)

    def _spread(self, part: Tensor, origin: Origin) -> None:
        """What was written to a part of a tensor that was allocated before is in the whole."""
        _, shape, strides = _layout(part)
        if len(strides) != len(shape):
            return
        layouts = self._origins[_storage(part)]
        for whole, known in list(layouts.items()):
            if known != UNKNOWN or math.prod(whole[1]) <= math.prod(shape):
                continue

            def move(c: Coordinate, whole: tuple[Any, ...] = whole) -> Axes | None:
                _, lengths, steps = whole
                if steps.count(strides[c.axis]) != 1:
                    return None
                axis = steps.index(strides[c.axis])
                if lengths[axis] == shape[c.axis]:
                    return (replace(c, axis=axis),)
                is_part = c.inner == 1 and c.spans(shape)
                return (Coordinate(axis, lengths[axis]),) if is_part else None

            layouts[whole] = moved(origin, move)

    def _product(
        self, unit: int | Axes, sample: Coordinate | None, producer: str | None, out: Tensor
    ) -> Origin:
        self._products += 1
        axes = (Coordinate(unit, out.shape[unit]),) if isinstance(unit, int) else unit
        return Origin(axes, sample, producer, order=self._products)

    def _derive(self, call: "_Call", out: Tensor, index: int) -> Origin:
        """The origin of one output of one operator."""
        name, args = call.name, call.args
        if "convolution" in name or name.startswith("mkldnn_conv") or name == "deform_conv2d":
            sample = call.origin(args[0]).sample
            sample_axis = sample if sample and sample.axis == 0 else None
            return self._product(1, sample_axis, call.weight(args[1]), out)
        if name in _PRODUCTS and isinstance(args[1], Tensor):
            return self._matmul(call, out)
        if name.startswith(_PACKED_PRODUCTS) and call.is_quantized:
            unit = 1 if name.startswith("conv") else out.ndim - 1
            return self._product(unit, call.origin(args[0]).sample, None, out)
        if name in {"embedding", "embedding_bag", "embedding_bag_forward_only"}:
            sample = call.origin(args[1]).sample
            if name != "embedding" and sample is not None:  # bags of equal size, one after another
                fits = out.shape[0] == sample.size and sample.spans(args[1].shape)
                sample = Coordinate(0, sample.size) if fits else None
            embedded = self._product(out.ndim - 1, sample, call.weight(args[0]), out)
            return embedded if index == 0 else UNKNOWN
        if name.startswith(_BATCH_NORMS):
            return self._batch_norm(call, out) if index == 0 else UNKNOWN
        if name.startswith(_RECURRENT):
            sample = call.origin(args[0]).sample if index == 0 else None
            return self._product(out.ndim - 1, sample, call.any_weight(), out)

        activations = [
            (argument.origin, argument.shape)
            for argument in call.inputs
            if isinstance(argument.origin, Origin)
        ]
        if not activations:
            return UNKNOWN
        first, shape = activations[0]
        if name in _NORMS and first.unit is None and index == 0:
            weight = call.weight(call.arguments["weight"])
            return self._product(_NORMS[name] % out.ndim, first.sample, weight, out)
        if torch.Tag.pointwise in call.function.tags or name == "copy":
            origin = broadcast(activations, out.shape)
            return self._scaled(call, origin, out) if origin.unit is None else origin
        if name == "cat":
            return concatenated(activations, call.arguments["dim"] % out.ndim, out.shape)
        if name == "stack":
            parts = [origin for origin, _ in activations]
            return stacked(parts, out.shape[dim := call.arguments["dim"] % out.ndim], dim)
        if name in _SCATTERS:
            return self._scattered(call, out)
        if name in {"index_put", "index_put_impl"}:
            return self._assigned(call, out)
        if name in _REDUCTIONS and call.arguments.get("dim") is not None:
            return reduced(first, call.arguments["dim"], len(shape), out)
        move = move_of(name, call.arguments, shape, tuple(out.shape))
        if move is not None:
            return moved(first, move)
        if len(activations) == 1 and shape == tuple(out.shape):
            return first  # one input of the same shape: every axis stays in place
        return UNKNOWN

    def _matmul(self, call: "_Call", out: Tensor) -> Origin:
        left, right = call.factor, call.args[2 if call.name in _BIASED else 1]
        left_sample, right_sample = call.origin(left).sample, call.origin(right).sample
        if (weight := call.weight(right)) is not None:
            sample = left_sample if left_sample and left_sample.axis != left.ndim - 1 else None
            return self._product(_units(right, out.ndim - 1, sample, out), sample, weight, out)
        if (weight := call.weight(left)) is not None:
            sample = right_sample if right_sample and right_sample.axis != right.ndim - 2 else None
            return self._product(_units(left, out.ndim - 2, sample, out), sample, weight, out)
        # A product of two activations (attention): summed axes are gone, the others stay.
        factors = [
            (_without(call.origin(left), left.ndim - 1), tuple(out.shape)),
            (_without(call.origin(right), right.ndim - 2), tuple(out.shape)),
        ]
        return broadcast(factors, out.shape)

    def _scaled(self, call: "_Call", origin: Origin, out: Tensor) -> Origin:
        """Features that a vector of parameters scales or shifts are units, as after a LayerNorm."""
        for argument in call.inputs:
            long_axes = [axis for axis, length in enumerate(argument.shape) if length > 1]
            if isinstance(argument.origin, str) and len(long_axes) == 1:
                axis = long_axes[0] + out.ndim - len(argument.shape)
                if axis and argument.shape[long_axes[0]] == out.shape[axis]:
                    return self._product(axis, origin.sample, argument.origin, out)
        return origin

    def _batch_norm(self, call: "_Call", out: Tensor) -> Origin:
        # It scales and shifts axis 1, which therefore is the unit axis.
        origin, norm = call.origin(call.args[0]), call.weight(call.args[1])
        units = [c for c in origin.unit or () if c.axis == 1]
        if origin.unit == (Coordinate(1, out.shape[1]),):
            return replace(origin, norm=norm)
        if units and (len(units) > 1 or not units[0].spans(out.shape)):
            return origin  # instance norm: on axis 1 are the channels of one sample after another
        return self._product(1, origin.sample, norm, out)

    def _scattered(self, call: "_Call", out: Tensor) -> Origin:
        """After `source` was written or added to a tensor, at some indices along an axis."""
        source, dim = call.arguments.get("src", call.arguments.get("source")), call.arguments["dim"]
        if not isinstance(source, Tensor):
            return call.origin(call.args[0])

        def move(c: Coordinate) -> Axes | None:
            stays = c.axis != dim % out.ndim and source.shape[c.axis] == out.shape[c.axis]
            return (c,) if stays else None

        return _either(call.origin(call.args[0]), moved(call.origin(source), move))

    def _assigned(self, call: "_Call", out: Tensor) -> Origin:
        """After `x[indices] = values`."""
        indices, values = call.args[1], call.args[2]
        written = moved(call.origin(values), lambda c: assigned(c, indices, out.ndim, values.ndim))
        return _either(call.origin(call.args[0]), written)


def _without(origin: Origin, axis: int) -> Origin:
    """The origin of a factor of a product that sums over this axis."""
    return moved(origin, lambda c: () if c.axis == axis else (c,))


def _either(first: Origin, second: Origin) -> Origin:
    """The first, and what only the second knows."""
    latest = max(first, second, key=lambda origin: origin.order)
    return replace(latest, unit=first.unit or second.unit, sample=first.sample or second.sample)


def _units(weight: Tensor, axis: int, sample: Coordinate | None, out: Tensor) -> Axes:
    """The units of a product: of each member (expert, head) if each has a weight of its own.

    A weight that all members share has stride 0 along their axis.
    """
    units = Coordinate(axis, out.shape[axis])
    shared = weight.ndim < 3 or out.shape[0] == 1 or weight.stride(0) == 0
    if shared or (sample is not None and sample.axis == 0):
        return (units,)
    return (Coordinate(0, out.shape[0]), units)


@dataclass(frozen=True)
class _Input:
    """A tensor argument of an operator, before the call."""

    tensor: Tensor
    shape: tuple[int, ...]
    origin: Origin | str
    """For a parameter, or a tensor made from one: the path of its module."""
    is_constant: bool
    """Whether it depends on no input of the model."""


@dataclass(frozen=True)
class _Call:
    """One call of an operator."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[_Input]

    @cached_property
    def name(self) -> str:
        """The dispatcher's, without underscores around it: `relu` for `relu_`."""
        return operator_name(self.function).strip("_")

    @property
    def in_place(self) -> bool:
        return operator_name(self.function).endswith("_")

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """By name, with their defaults."""
        return {
            argument.name: self.args[index]
            if index < len(self.args)
            else self.kwargs.get(argument.name, argument.default_value)
            for index, argument in enumerate(operator_arguments(self.function))
        }

    @property
    def is_quantized(self) -> bool:
        """Whether its weight is packed in an object."""
        return "quantized::" in self.function.name()

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

    def any_weight(self) -> str | None:
        """The module of the first parameter among the inputs."""
        return next((a.origin for a in self.inputs if isinstance(a.origin, str)), None)

    def _origin_of(self, tensor: Tensor | None) -> Origin | str | None:
        return next(
            (argument.origin for argument in self.inputs if argument.tensor is tensor), None
        )


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)

"""Provenance: the unit axis, sample axis and producer of each tensor, followed through one forward
pass.

A dispatch mode watches every operator of one forward pass. A parameter's product (convolution,
matrix product, embedding, normalisation) has a unit axis by definition; views, permutations,
pooling and element-wise operators carry it on by the rules below. An operator without a rule loses
it: an axis is never guessed.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reludiag.sites.axes import UNKNOWN, Axes, Coordinate, Origin, moved, size_of
from reludiag.sites.consumer_tracker import ConsumerTracker
from reludiag.sites.consumers import Consumer
from reludiag.sites.followed_call import FollowedCall, FollowedInput
from reludiag.sites.guard import Guard
from reludiag.sites.operation import Operation
from reludiag.sites.operator_call import PRODUCTS, tensors_in
from reludiag.sites.origin_rules import OriginRules
from reludiag.sites.product_rules import ProductObserver, ProductRules
from reludiag.sites.products import Product
from reludiag.sites.readable import has_own_operators
from reludiag.sites.readable import memory_layout as _layout
from reludiag.sites.returned import ReturnTracker
from reludiag.sites.row_ids import RowCall, RowIds, RowInput
from reludiag.sites.selections import SelectionTracker
from reludiag.sites.site import Rectifier
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    TorchDispatchMode,
    is_composite,
    operator_name,
    without_dispatch_modes,
)
from reludiag.sites.torch_internals import storage_of as _storage
from reludiag.sites.weight_axes import PARAMETRIZATIONS, Weight

OperatorObserver = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
"""Called with the dispatcher's name of each operator (`relu_`) and its arguments."""


class _Followed(NamedTuple):
    """An operator that is about to run."""

    call: FollowedCall
    ancestors: int
    row_call: RowCall | None
    read: Operation | None


class ProvenanceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows origins through the operators that run while it is active, without changing them.

    `origin_of(tensor)` works for any tensor made since. Origins are stored by memory, not by tensor
    object, because autograd creates new objects for the same memory. `begin_site` says where a
    site's units are; `end` what reads them, if `finds_consumers`, which costs as much again.
    """

    def __init__(
        self,
        model: nn.Module,
        on_operator: OperatorObserver,
        finds_consumers: bool = False,
        on_product: ProductObserver | None = None,
        state: Mapping[str, Tensor] | None = None,
        guard: Guard | None = None,
    ) -> None:
        """`state` are the parameters and buffers by name that the forward will use, if they are not
        the model's own. An error of reludiag is kept by `guard`; without one it is raised on exit.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._raises = guard is None
        self.guard = guard = guard or Guard()
        self._on_operator = on_operator
        self._rules = OriginRules()
        self._products = ProductRules(model, self.origin_of, on_product)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers()), **(state or {})}
        parameters = {name: state.pop(name) for name, _ in model.named_parameters()}
        self._names = list(parameters)
        self._weights: dict[int, dict[tuple[Any, ...], Weight]] = {}
        """Parameters and what is made of them alone, by memory and layout."""
        self._ancestors: dict[int, int] = {}
        """For each memory, the parameters that it depends on: a bit for each."""
        self._feeding = 0
        for index, (name, parameter) in enumerate(parameters.items()):
            if parameter.layout != torch.strided:
                continue
            self._weights.setdefault(_storage(parameter), {})[_layout(parameter)] = Weight.of(
                name, parameter
            )
            self._ancestors[_storage(parameter)] = 1 << index
        self._own = frozenset(self._weights)
        """The memory of the parameters themselves."""
        self._constants = {_storage(buffer) for buffer in state.values()}
        """Memory that depends on no input: buffers, and what is made from nothing else."""
        self._origins: dict[int, dict[tuple[Any, ...], Origin]] = {}
        self.row_ids: RowIds | None = None
        self._raw: set[int] = set()
        """Memory of the model's inputs, and of what is computed from them alone and by operators
        without weights."""
        self._product_weights: dict[int, tuple[Any, ...]] = {}
        """What `weights_of` says of each product, by its number."""
        self._readings: Counter[tuple[Any, ...]] = Counter()
        self._returned = ReturnTracker()
        self.selections = SelectionTracker(
            lambda memory: bool(self._ancestors.get(memory)), self._are_units_lost
        )
        self._consumers: ConsumerTracker | None = None
        if finds_consumers:
            self._consumers = ConsumerTracker(
                model, lambda tensor: self.origin_of(tensor).producer, guard
            )

    def __enter__(self) -> Any:
        if self._consumers is not None:
            self._consumers.escapes.__enter__()  # type: ignore[no-untyped-call]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if self._consumers is not None:
            self._consumers.escapes.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if self._raises and kind is None:
            self.guard.raise_error()

    def begin_site(
        self, site: int, path: str, rectifier: Rectifier, output: Tensor, unit: Axes
    ) -> None:
        """Follow the units of a site, at these coordinates of its output, from here on.

        `path` is the site's, for the sums that its output may be a part of.
        """
        self.selections.begin(site, rectifier, output, size_of(unit))
        self._returned.begin(site, output)
        self._feeding |= self._ancestors.get(_storage(output), 0)
        self._set(output, replace(self.origin_of(output), rectifier=path))
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

    def follow_rows(self, values: list[Any], samples: int, groups: Tensor | None) -> None:
        """Also follow which sample each row belongs to, from the model's inputs on.

        `groups` are the ids of the input's rows, `[samples]`; by default each row is a sample.
        """
        with DisableTorchFunction():
            self.row_ids = RowIds(samples, groups, self._set_sample)
            self.row_ids.mark_inputs(values)

    def _set_sample(self, tensor: Tensor, sample: Coordinate | None) -> None:
        self._set(tensor, replace(self.origin_of(tensor), sample=sample))

    def mark_inputs(self, tensors: Iterator[Tensor], samples: int) -> None:
        """Declare model inputs of shape `[samples, ...]`."""
        self._rules.samples = samples
        for tensor in tensors:
            if not tensor.is_nested and tensor.ndim and tensor.shape[0] == samples:
                self._set(tensor, Origin(sample=Coordinate(0, samples)))

    def mark_raw(self, tensors: Iterator[Tensor]) -> None:
        """Declare tensors that no layer has made: the inputs of a whole model."""
        for tensor in tensors:
            if not tensor.requires_grad and not self._ancestors.get(_storage(tensor), 0):
                self._raw.add(_storage(tensor))

    def no_units(self, tensor: Tensor) -> str:
        """Why a tensor cannot be a layer's units, in a few words; empty if it may be."""
        origin = self.origin_of(tensor)
        if origin.unit is not None:
            return ""
        if origin.is_ranked:
            return "ranks"
        return "raw" if _storage(tensor) in self._raw else ""

    def note_product(self, tensor: Tensor, origin: Origin) -> None:
        """Declare where units and samples are in what a layer made of its own weights.

        For layers whose operators say less than they do themselves. Without a sample axis, it stays
        the one that was followed.
        """
        self._rules.count += 1
        sample = origin.sample or self.origin_of(tensor).sample
        self._set(tensor, replace(origin, sample=sample, order=self._rules.count))

    def note_rectified(self, x: Any, output: Tensor) -> None:
        """Declare that several operators together rectified `x`: each element stayed in its place.

        Not where they have made a product of their own, which has other units.
        """
        if isinstance(x, Tensor) and x.shape == output.shape:
            origin, made = self.origin_of(x.detach()), self.origin_of(output.detach())
            if origin.unit is not None and made.order <= origin.order:
                self._set(output.detach(), origin)

    @property
    def products(self) -> dict[str, Product]:
        """The first product with each weight, by the weight's name."""
        return self._products.products

    @property
    def feeding(self) -> frozenset[str]:
        """Names of the parameters that the output of a site depends on."""
        return frozenset(
            name for index, name in enumerate(self._names) if self._feeding >> index & 1
        )

    def origin_of(self, tensor: Tensor) -> Origin:
        """The origin of `tensor`; `UNKNOWN` if there is none."""
        return self._origins.get(_storage(tensor), {}).get(_layout(tensor), UNKNOWN)

    def weights_of(self, tensor: Tensor, fed_by: str | None, reader: Any) -> tuple[Any, ...]:
        """What made `tensor`: the same for each turn of a loop, and for nothing else.

        It is the parameters of its last product, and how many times `reader` has read that product
        before: `relu(x)` and `relu(-x)` are two places. Empty if that is not known: a tensor made
        from a parameter, a cast for example, is recognized only if it is of the module `fed_by`.
        """
        origin = self.origin_of(tensor)
        weights = self._product_weights.get(origin.order, ())
        self._readings[reader, origin.order] += 1
        if not weights or any(isinstance(weight, str) and weight != fed_by for weight in weights):
            return ()
        return (*weights, self._readings[reader, origin.order])

    def _are_units_lost(self, before: Tensor, after: Tensor) -> bool:
        """Whether the one has units, and the other, which was made of it, has none."""
        return self.origin_of(before).unit is not None and self.origin_of(after).unit is None

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
        guard = self.guard
        if guard.error is not None:
            return func(*args, **kwargs)
        try:
            operands = list(tensors_in([*args, *kwargs.values()]))
            is_nested = any(tensor.is_nested for tensor in operands)
            own_operators = any(map(has_own_operators, operands))
            # Under inference_mode composite operators arrive undivided; the rules are for their
            # parts.
            is_divided = not (is_nested or own_operators) and is_composite(func)
        except Exception as error:
            guard.error = error
            return func(*args, **kwargs)
        if is_divided:
            TorchDispatchMode.__enter__(self)  # type: ignore[no-untyped-call]
            try:
                return func.decompose(*args, **kwargs)
            finally:
                TorchDispatchMode.__exit__(self, None, None, None)  # type: ignore[no-untyped-call]
        try:
            followed = None
            if is_nested:  # it has no shape to follow
                self._lose(func, operands)
            else:
                followed = self._before(func, args, kwargs, operands, own_operators)
        except Exception as error:
            guard.error = error
        # Calling it here must not count as a call: a function mode would see what TorchScript
        # calls, and see it in this forward only. A subclass is to find what it always finds.
        with contextlib.nullcontext() if is_nested or own_operators else DisableTorchFunction():
            result = func(*args, **kwargs)
        if guard.error is None:
            try:
                self._after(func, operands, followed, result)
            except Exception as error:
                guard.error = error
        return result

    def _before(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: list[Tensor],
        own_operators: bool,
    ) -> _Followed:
        """An operator that is about to run: an in-place one may change a shape (squeeze_)."""
        call = FollowedCall(func, args, kwargs, [self._input_of(tensor) for tensor in operands])
        ancestors = self._ancestors_of(call.inputs)
        row_call = None if own_operators else self._row_call(call)
        self._on_operator(operator_name(func), args, kwargs)
        read = None
        if self._consumers is not None:
            with contextlib.nullcontext() if own_operators else DisableTorchFunction():
                read = self._consumers.prepare(call)
        return _Followed(call, ancestors, row_call, read)

    def _after(
        self, func: Any, operands: list[Tensor], followed: _Followed | None, result: Any
    ) -> None:
        """Follow what an operator has made; without `followed` of nested tensors."""
        outputs = list(tensors_in(result if isinstance(result, tuple | list) else (result,)))
        if followed is None:
            self._forget(outputs, operands, operator_name(func).strip("_"))
            return
        call, ancestors, row_call, read = followed
        is_raw = call.is_plain and all(each.is_raw_input for each in call.inputs)
        self._forget(outputs, operands, call.name)
        for storage in map(_storage, outputs):
            # A write makes no memory raw that was not.
            if is_raw and not (call.in_place and storage not in self._raw):
                self._raw.add(storage)
            else:
                self._raw.discard(storage)
        if ancestors:
            for storage in map(_storage, outputs):
                self._ancestors[storage] = self._ancestors.get(storage, 0) | ancestors
        if any(output.is_nested for output in outputs):
            self._lose(func, operands)
            return
        tracker = self._consumers
        if tracker is None:
            self._returned.follow(call.name, map(_storage, operands), map(_storage, outputs))
        elif read is not None:
            with DisableTorchFunction(), without_dispatch_modes():
                tracker.follow(read, outputs)
        try:
            self._follow(call, outputs)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            # An operator with unexpected arguments: unknown, and the forward pass continues.
            for output in outputs:
                self._set(output, UNKNOWN)
        self.selections.follow(call.name, operands, outputs)
        if (
            row_call is not None
            and self.row_ids is not None
            and outputs
            and not any(map(has_own_operators, outputs))
        ):
            with DisableTorchFunction(), without_dispatch_modes():
                self.row_ids.follow(row_call, outputs)

    def _lose(self, func: Any, inputs: list[Tensor]) -> None:
        if self._consumers is not None:
            with DisableTorchFunction(), without_dispatch_modes():
                self._consumers.lose(operator_name(func), inputs)

    def _forget(self, outputs: list[Tensor], inputs: list[Tensor], name: str) -> None:
        """In new memory, forget the origin of an earlier tensor at this address."""
        reused = {_storage(tensor) for tensor in inputs}
        for output in outputs:
            if _storage(output) not in reused:
                self._origins.pop(_storage(output), None)
                self._weights.pop(_storage(output), None)
                self._ancestors.pop(_storage(output), None)
                self._constants.discard(_storage(output))
                if self.row_ids is not None:
                    if has_own_operators(output):
                        self.row_ids.forget(_storage(output))
                    else:
                        self.row_ids.note_new(name, output)

    def _row_call(self, call: FollowedCall) -> RowCall | None:
        """The call with the ids of its inputs, if it may move the rows of any."""
        ids = self.row_ids
        if ids is None or not (ids.concerns(call.name) or call.name in PRODUCTS):
            return None
        inputs = [
            RowInput(
                each.tensor,
                each.shape,
                None if isinstance(each.origin, Weight) else each.origin,
                ids.of(each.tensor),
            )
            for each in call.inputs
        ]
        return RowCall(call.function, call.args, call.kwargs, inputs)

    def _input_of(self, tensor: Tensor) -> FollowedInput:
        storage = _storage(tensor)
        is_constant = storage in self._constants
        return FollowedInput(
            tensor,
            tuple(tensor.shape),
            self._weight_or_origin(tensor),
            is_constant=is_constant,
            is_inner=is_constant or storage in self._weights,
            is_raw=not self._ancestors.get(storage, 0),
            is_raw_input=is_constant or storage in self._raw,
        )

    def _weight_or_origin(self, tensor: Tensor) -> Origin | Weight:
        """The parameter that this is (or a view or copy of it, or computed from it)."""
        weights = self._weights.get(_storage(tensor))
        if weights is None:
            return self.origin_of(tensor)
        weight = weights.get(_layout(tensor))
        return replace(next(iter(weights.values())), axes=None) if weight is None else weight

    def _ancestors_of(self, inputs: list[FollowedInput]) -> int:
        ancestors = 0
        for argument in inputs:
            ancestors |= self._ancestors.get(_storage(argument.tensor), 0)
        return ancestors

    def _note_weights(self, call: FollowedCall, outputs: list[Tensor]) -> None:
        first = call.weights[0]
        for output in outputs:
            weight = replace(first, axes=None)
            if len(call.inputs) == 1:
                weight = first.after(call.name, call.args, call.inputs[0].shape, output)
            by_layout = self._weights.setdefault(_storage(output), {})
            # A reshape may leave the layout as it is: what was known of it stays.
            by_layout.setdefault(_layout(output), weight)

    def _follow(self, call: FollowedCall, outputs: list[Tensor]) -> None:
        if "fake_quant" in call.name or call.name.endswith("fq_helper"):
            # Rounds its first input; the others are the scales of a quantization.
            call = replace(call, inputs=call.inputs[:1])
        weights, made_of_weights = call.weights, all(each.is_inner for each in call.inputs)
        for storage in map(_storage, outputs):
            if not made_of_weights and storage not in self._own:
                self._weights.pop(storage, None)
            self._constants.discard(storage)
            if made_of_weights and not weights:
                self._constants.add(storage)
        if made_of_weights and weights:
            # Made only from parameters (a transpose, a cast, weight norm): still a parameter,
            # but it may also be an activation, as learned queries are.
            self._note_weights(call, outputs)
            factor = call.factors[0] if call.name in PRODUCTS else None
            inputs = [
                replace(each, origin=self.origin_of(each.tensor))
                if factor is None or each.tensor is factor
                else each
                for each in call.inputs
            ]
            call = replace(call, inputs=inputs)
        before = self._rules.count
        for index, output in enumerate(outputs):
            count = self._rules.count
            origin = self._rules.derive(call, output, index)
            origin = self._products.with_products(call, origin, output, self._rules.count > count)
            self._set(output, origin)
            if call.in_place:
                self._spread(output, origin)
        if self._rules.count > before:
            self._product_weights[self._rules.count] = tuple(
                (_storage(each.tensor), *_layout(each.tensor))
                if _storage(each.tensor) in self._own
                else _module_of(each.origin)
                for each in call.inputs
                if isinstance(each.origin, Weight)
            )

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


def _module_of(weight: Weight) -> str:
    """Path of the module that a weight is of."""
    path = weight.name.rpartition(".")[0]
    return path.partition(f".{PARAMETRIZATIONS}")[0]

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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from reludiag.sites.operation import SHAPES
from reludiag.sites.products import Convolution, Product
from reludiag.sites.readable import has_own_operators
from reludiag.sites.readable import memory_layout as _layout
from reludiag.sites.returned import ReturnTracker
from reludiag.sites.row_ids import BIASED, PRODUCTS, Argument, Operation, RowIds
from reludiag.sites.torch_internals import (
    DisableTorchFunction,
    TorchDispatchMode,
    operator_arguments,
    operator_name,
    without_dispatch_modes,
)
from reludiag.sites.torch_internals import storage_of as _storage
from reludiag.sites.weight_axes import EXACT, PARAMETRIZATIONS, Weight, producer_name, product_with

OperatorObserver = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
"""Called with the dispatcher's name of each operator (`relu_`) and its arguments."""
ProductObserver = Callable[["SeenProduct"], None]
"""Called with each product of an input with a weight."""


@dataclass(frozen=True)
class SeenProduct:
    """One product as it was computed. Its tensors are the model's own memory: read them at once."""

    product: Product
    """Without a bias that is added later."""
    input: Tensor
    weight: Tensor
    """As it was used: maybe a view, a copy, or computed."""
    units_first: bool
    """Whether the weight of a matrix product is `[..., unit, input]`, and not `[..., input, unit]`.
    """
    from_left: bool
    """Whether the weight is its left factor, and the input `[..., input, row]`."""
    sample: Coordinate | None
    """Of the input."""
    is_first: bool
    """Whether the input depends on no parameter."""
    is_exact: bool
    """Whether it has no bias but that of the product."""
    is_known: bool
    """False for a convolution of which it is not known how it is done."""

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Weight and input of a matrix product, `[product, unit, input]` and `[product, row,
        input]`: several products only if they are independent, as those of experts.
        """
        weight = self.weight if self.units_first else self.weight.transpose(-1, -2)
        rows = self.input.transpose(-1, -2) if self.from_left else self.input
        if weight.ndim > 2 and rows.ndim > 2 and len(weight) > 1 and weight.stride(0):
            return weight, rows
        weight = weight[0] if weight.ndim > 2 else weight
        return weight[None], rows.reshape(1, -1, rows.shape[-1])


_BATCH_NORMS = (
    "native_batch_norm",
    "native_batch_norm_legit",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "batch_norm_with_update",
    "batch_norm_no_update",
    "batch_norm_elemt",
)
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
        self,
        model: nn.Module,
        on_operator: OperatorObserver,
        finds_consumers: bool = False,
        on_product: ProductObserver | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`state` are the parameters and buffers by name that the forward will use, if they are not
        the model's own.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_operator, self._on_product = on_operator, on_product
        self._modules = dict(model.named_modules(remove_duplicate=False))
        state = {**dict(model.named_parameters()), **dict(model.named_buffers()), **(state or {})}
        parameters = {name: state.pop(name) for name, _ in model.named_parameters()}
        self._names = list(parameters)
        self._weights: dict[int, dict[tuple[Any, ...], Weight]] = {}
        """Parameters and what is made of them alone, by memory and layout."""
        self._ancestors: dict[int, int] = {}
        """For each memory, the parameters that it depends on: a bit for each."""
        self._feeding = 0
        self.products: dict[str, Product] = {}
        """The first product with each weight, by the weight's name."""
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
        self._products = 0
        self._samples: int | None = None
        self._product_weights: dict[int, tuple[Any, ...]] = {}
        """What `weights_of` says of each product, by its number."""
        self._readings: Counter[tuple[Any, ...]] = Counter()
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

    def begin_site(self, site: int, path: str, output: Tensor, unit: Axes) -> None:
        """Follow the units of a site, at these coordinates of its output, from here on.

        `path` is the site's, for the sums that its output may be a part of.
        """
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

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Follow nothing inside: operators of observers are not part of the model."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

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
        self._samples = samples
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
        ancestors = self._ancestors_of(inputs)
        call = _Call(func, args, kwargs, inputs)
        operation = None if own_operators else self._operation(call)
        self._on_operator(operator_name(func), args, kwargs)
        # Calling it here must not count as a call: a function mode would see what TorchScript
        # calls, and see it in this forward only. A subclass is to find what it always finds.
        with contextlib.nullcontext() if own_operators else DisableTorchFunction():
            tracker = self._consumers
            read = None if tracker is None else tracker.prepare(func, args, kwargs)
            result = func(*args, **kwargs)
        outputs = list(tensors_in(result if isinstance(result, tuple | list) else (result,)))
        self._forget(outputs, operands, call.name)
        if ancestors:
            for storage in map(_storage, outputs):
                self._ancestors[storage] = self._ancestors.get(storage, 0) | ancestors
        if any(output.is_nested for output in outputs):
            self._lose(func, operands)
            return result
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
        if (
            operation is not None
            and self.row_ids is not None
            and outputs
            and not any(map(has_own_operators, outputs))
        ):
            with DisableTorchFunction(), without_dispatch_modes():
                self.row_ids.follow(operation, outputs)
        return result

    def _run_unfollowed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator on nested tensors, which have no shape to follow."""
        inputs = list(tensors_in([*args, *kwargs.values()]))
        self._lose(func, inputs)
        result = func(*args, **kwargs)
        outputs = list(tensors_in(result if isinstance(result, tuple | list) else (result,)))
        self._forget(outputs, inputs, operator_name(func).strip("_"))
        return result

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

    def _operation(self, call: "_Call") -> Operation | None:
        """The call with the ids of its inputs, if it may move the rows of any."""
        ids = self.row_ids
        if ids is None or not (ids.concerns(call.name) or call.name in PRODUCTS):
            return None
        inputs = [
            Argument(
                each.tensor,
                each.shape,
                each.origin.name if isinstance(each.origin, Weight) else each.origin,
                ids.of(each.tensor),
            )
            for each in call.inputs
        ]
        pointwise = torch.Tag.pointwise in call.function.tags
        return Operation(call.function, call.name, call.args, call.kwargs, inputs, pointwise)

    def _weight_or_origin(self, tensor: Tensor) -> Origin | Weight:
        """The parameter that this is (or a view or copy of it, or computed from it)."""
        weights = self._weights.get(_storage(tensor))
        if weights is None:
            return self.origin_of(tensor)
        weight = weights.get(_layout(tensor))
        return replace(next(iter(weights.values())), axes=None) if weight is None else weight

    def _ancestors_of(self, inputs: "list[_Input]") -> int:
        ancestors = 0
        for argument in inputs:
            ancestors |= self._ancestors.get(_storage(argument.tensor), 0)
        return ancestors

    def _note_weights(self, call: "_Call", weights: list[Weight], outputs: list[Tensor]) -> None:
        for output in outputs:
            weight = replace(weights[0], axes=None)
            if len(call.inputs) == 1:
                weight = weights[0].after(call.name, call.args, call.inputs[0].shape, output)
            by_layout = self._weights.setdefault(_storage(output), {})
            # A reshape may leave the layout as it is: what was known of it stays.
            by_layout.setdefault(_layout(output), weight)

    def _follow(self, call: "_Call", outputs: list[Tensor]) -> None:
        if "fake_quant" in call.name or call.name.endswith("fq_helper"):
            # Rounds its first input; the others are the scales of a quantization.
            call = replace(call, inputs=call.inputs[:1])
        weights = [each.origin for each in call.inputs if isinstance(each.origin, Weight)]
        made_of_weights = all(
            argument.is_constant or isinstance(argument.origin, Weight) for argument in call.inputs
        )
        for storage in map(_storage, outputs):
            if not made_of_weights and storage not in self._own:
                self._weights.pop(storage, None)
            self._constants.discard(storage)
            if made_of_weights and not weights:
                self._constants.add(storage)
        if made_of_weights and weights:
            # Made only from parameters (a transpose, a cast, weight norm): still a parameter,
            # but it may also be an activation, as learned queries are.
            self._note_weights(call, weights, outputs)
        if made_of_weights and weights:
            call = replace(
                call,
                inputs=[
                    replace(argument, origin=self.origin_of(argument.tensor))
                    if call.name not in PRODUCTS or argument.tensor is call.factor
                    else argument
                    for argument in call.inputs
                ],
            )
        before = self._products
        for index, output in enumerate(outputs):
            products = self._products
            origin = self._derive(call, output, index)
            origin = self._with_products(call, origin, output, self._products > products)
            self._set(output, origin)
            if call.in_place:
                self._spread(output, origin)
        if self._products > before:
            self._product_weights[self._products] = tuple(
                (_storage(argument.tensor), *_layout(argument.tensor))
                if _storage(argument.tensor) in self._own
                else _module_of(argument.origin)
                for argument in call.inputs
                if isinstance(argument.origin, Weight)
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

    def _with_products(
        self, call: "_Call", origin: Origin, out: Tensor, is_product: bool
    ) -> Origin:
        """The origin of an operator's output, with the products that it was made of."""
        parts = [each.origin for each in call.inputs if isinstance(each.origin, Origin)]
        if is_product:
            seen = self._seen(call)
            if seen is not None and self._on_product is not None:
                with DisableTorchFunction(), without_dispatch_modes():
                    self._on_product(seen)
            product = None if seen is None else seen.product
            if product is None:
                product = next(
                    (
                        Product(producer_name(each.origin.name, self._modules), each.origin.name)
                        for each in call.inputs
                        if isinstance(each.origin, Weight)
                    ),
                    None,
                )
            made = replace(origin, products=() if product is None else (product,), rectifier="")
            if product is not None and seen is not None:
                self.products.setdefault(product.weight, product)
            if product is None or call.name not in BIASED:
                return replace(made, is_exact=seen is not None and seen.is_exact)
            added = call.origin_or_weight(call.args[0])
            if isinstance(added, Weight):
                return self._biased(replace(made, is_exact=True), added, call, out)
            return _joined(made, [made, UNKNOWN if added is None else added])
        if SHAPES.fullmatch(call.name):  # of its input it has no value
            return origin
        # What is computed from weights and constants may also be a product: the first step of a
        # recurrence, from a state of zeros.
        parts += [
            self.origin_of(each.tensor)
            for each in call.inputs
            if isinstance(each.origin, Weight) and each.origin.axes is None
        ]
        added_weights = [each.origin for each in call.inputs if isinstance(each.origin, Weight)]
        if call.name == "add" and len(parts) == len(added_weights) == 1:
            made = replace(origin, is_exact=parts[0].is_exact)
            return self._biased(made, added_weights[0], call, out)
        if call.name in PRODUCTS:  # of two activations, as in attention: of those with its units
            left, right = call.factor, call.args[2 if call.name in BIASED else 1]
            factors = [
                _without(call.origin(left), left.ndim - 1),
                _without(call.origin(right), right.ndim - 2),
            ]
            kept = [factor for factor in factors if factor.unit is not None]
            return _joined(replace(origin, is_exact=False), kept or parts)
        is_relu = _is_relu(call)
        joined = _joined(replace(origin, is_exact=is_relu or call.name in EXACT), parts)
        # A site of the capture says its path later.
        return replace(joined, rectifier=call.name) if is_relu and joined.products else joined

    def _biased(self, origin: Origin, bias: Weight, call: "_Call", out: Tensor) -> Origin:
        """After a parameter was added to a product, which may be its bias."""
        origin = _with_bias(origin, bias, call, out)
        for product in origin.products if origin.is_exact else ():
            if self.products.get(product.weight) == replace(product, bias=None):
                self.products[product.weight] = product
        return origin

    def _seen(self, call: "_Call") -> SeenProduct | None:
        """The product of an input with a weight that an operator computes; None of a norm."""
        name, args = call.name, call.args
        if call.is_quantized:
            return None  # its weight is packed
        if "convolution" in name or name.startswith("mkldnn_conv"):
            x, tensor, convolution = args[0], args[1], None
            if name == "convolution":
                convolution = Convolution(
                    stride=tuple(args[3]),
                    padding=tuple(args[4]),
                    dilation=tuple(args[5]),
                    transposed=bool(args[6]),
                    output_padding=tuple(args[7]),
                    groups=int(args[8]),
                )
            weight, unit = call.origin_or_weight(tensor), int(name == "convolution" and args[6])
            summed = [dim for dim in range(tensor.ndim) if dim != unit]
            from_left = False
        elif name in PRODUCTS:
            convolution = None
            x, tensor = call.factor, args[2 if name in BIASED else 1]
            weight = call.origin_or_weight(tensor)
            unit, summed, from_left = tensor.ndim - 1, [tensor.ndim - 2], False
            if name == "linear":
                unit, summed = summed[0], [unit]
            if not isinstance(weight, Weight):
                x, tensor, from_left = tensor, x, True
                weight = call.origin_or_weight(tensor)
                unit, summed = tensor.ndim - 2, [tensor.ndim - 1]
        else:
            return None
        if not isinstance(weight, Weight):
            return None
        is_inner = _storage(x) in self._weights or _storage(x) in self._constants
        if is_inner and PARAMETRIZATIONS in weight.name.split("."):
            return None  # a step of the parametrization, not of the network
        if "conv" in name and convolution is None:
            weight = replace(weight, axes=None)
        product = product_with(
            weight, producer_name(weight.name, self._modules), unit, summed, convolution
        )
        has_bias = ("conv" in name or name == "linear") and len(args) > 2 and args[2] is not None
        bias = call.origin_or_weight(args[2]) if has_bias else None
        if isinstance(bias, Weight) and bias.is_bias:
            product = replace(product, bias=bias.name)
        return SeenProduct(
            product,
            x,
            tensor,
            unit < summed[0],
            from_left,
            call.origin(x).sample,
            not self._ancestors.get(_storage(x), 0),
            is_exact=not has_bias or product.bias is not None,
            is_known="conv" not in name or convolution is not None,
        )

    def _product(self, unit: int | Axes, sample: Coordinate | None, out: Tensor) -> Origin:
        self._products += 1
        axes = (Coordinate(unit, out.shape[unit]),) if isinstance(unit, int) else unit
        return Origin(axes, sample, order=self._products)

    def _derive(self, call: "_Call", out: Tensor, index: int) -> Origin:
        """The origin of one output of one operator."""
        name, args = call.name, call.args
        if "convolution" in name or name.startswith("mkldnn_conv") or name == "deform_conv2d":
            sample = call.origin(args[0]).sample
            sample_axis = sample if sample and sample.axis == 0 else None
            return self._product(1, sample_axis, out)
        if name in PRODUCTS and isinstance(args[1], Tensor):
            return self._matmul(call, out)
        if name.startswith(_PACKED_PRODUCTS) and call.is_quantized:
            unit = 1 if name.startswith("conv") else out.ndim - 1
            return self._product(unit, call.origin(args[0]).sample, out)
        if name in {"embedding", "embedding_bag", "embedding_bag_forward_only"}:
            sample = call.origin(args[1]).sample
            if name != "embedding" and sample is not None:  # bags of equal size, one after another
                fits = out.shape[0] == sample.size and sample.spans(args[1].shape)
                sample = Coordinate(0, sample.size) if fits else None
            embedded = self._product(out.ndim - 1, sample, out)
            return embedded if index == 0 else UNKNOWN
        if name.startswith(_BATCH_NORMS):
            return self._batch_norm(call, out) if index == 0 else UNKNOWN
        if name.startswith(_RECURRENT):
            sample = call.origin(args[0]).sample if index == 0 else None
            return self._product(out.ndim - 1, sample, out)

        activations = [
            (argument.origin, argument.shape)
            for argument in call.inputs
            if isinstance(argument.origin, Origin)
        ]
        if not activations:
            return UNKNOWN
        first, shape = activations[0]
        if name in _NORMS and first.unit is None and index == 0:
            return self._product(_NORMS[name] % out.ndim, first.sample, out)
        if torch.Tag.pointwise in call.function.tags or name == "copy":
            origin = broadcast(activations, out.shape)
            return self._scaled(call, origin, out) if origin.unit is None else origin
        if name == "cat":
            dim = call.arguments["dim"] % out.ndim
            return self._with_rows_again(concatenated(activations, dim, out.shape), activations)
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

    def _with_rows_again(
        self, origin: Origin, parts: list[tuple[Origin, tuple[int, ...]]]
    ) -> Origin:
        """After a concatenation: if each part has all samples, as crops of them, they repeat."""
        sample, samples = origin.sample, self._samples
        if sample is None or samples is None or sample.size == samples:
            return origin
        repeats = all(part.sample and part.sample.size == samples for part, _ in parts)
        return replace(origin, sample=replace(sample, size=samples) if repeats else None)

    def _matmul(self, call: "_Call", out: Tensor) -> Origin:
        left, right = call.factor, call.args[2 if call.name in BIASED else 1]
        left_sample, right_sample = call.origin(left).sample, call.origin(right).sample
        if call.is_weight(right):
            sample = left_sample if left_sample and left_sample.axis != left.ndim - 1 else None
            return self._product(_units(right, out.ndim - 1, sample, out), sample, out)
        if call.is_weight(left):
            sample = right_sample if right_sample and right_sample.axis != right.ndim - 2 else None
            return self._product(_units(left, out.ndim - 2, sample, out), sample, out)
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
            if isinstance(argument.origin, Weight) and len(long_axes) == 1:
                axis = long_axes[0] + out.ndim - len(argument.shape)
                if axis and argument.shape[long_axes[0]] == out.shape[axis]:
                    return self._product(axis, origin.sample, out)
        return origin

    def _batch_norm(self, call: "_Call", out: Tensor) -> Origin:
        # It scales and shifts axis 1, which therefore is the unit axis.
        origin, weight = call.origin(call.args[0]), call.origin_or_weight(call.args[1])
        units = [c for c in origin.unit or () if c.axis == 1]
        if origin.unit == (Coordinate(1, out.shape[1]),):
            norm = weight.name.rpartition(".")[0] if isinstance(weight, Weight) else None
            return replace(origin, norm=norm)
        if units and (len(units) > 1 or not units[0].spans(out.shape)):
            return origin  # instance norm: on axis 1 are the channels of one sample after another
        return self._product(1, origin.sample, out)

    def _scattered(self, call: "_Call", out: Tensor) -> Origin:
        """After `source` was written or added to a tensor, at some indices along an axis."""
        source, dim = call.arguments.get("src", call.arguments.get("source")), call.arguments["dim"]
        if not isinstance(source, Tensor):  # a number: as a one-hot code is made
            source = call.arguments["index"]

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


def _module_of(weight: Weight) -> str:
    """Path of the module that a weight is of."""
    path = weight.name.rpartition(".")[0]
    return path.partition(f".{PARAMETRIZATIONS}")[0]


@dataclass(frozen=True)
class _Input:
    """A tensor argument of an operator, before the call."""

    tensor: Tensor
    shape: tuple[int, ...]
    origin: Origin | Weight
    """A `Weight` for a parameter, or a tensor made from one."""
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
        factor: Tensor = self.args[1 if self.name in BIASED else 0]
        return factor

    def origin(self, tensor: Tensor) -> Origin:
        """The origin of an activation among the inputs."""
        origin = self.origin_or_weight(tensor)
        return origin if isinstance(origin, Origin) else UNKNOWN

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether this input is a parameter, or made from one."""
        return isinstance(self.origin_or_weight(tensor), Weight)

    def origin_or_weight(self, tensor: Tensor | None) -> Origin | Weight | None:
        """What is known of an input."""
        return next(
            (argument.origin for argument in self.inputs if argument.tensor is tensor), None
        )


def _is_relu(call: _Call) -> bool:
    """Whether an operator is max(x, 0), as the site of a ReLU has it behind its pre-activation."""
    name, bounds = call.name, call.args[1:]
    if any(isinstance(bound, Tensor) for bound in bounds):
        return False
    from_zero: dict[str, tuple[tuple[Any, ...], ...]] = {
        "relu": ((),),
        "clamp_min": ((0,),),
        "clamp": ((0,), (0, None)),
        "threshold": ((0, 0),),
    }
    return bounds in from_zero.get(name, ())


def _with_bias(origin: Origin, bias: Weight, call: _Call, out: Tensor) -> Origin:
    """After a parameter was added: it is a bias if it has one number for each unit."""
    plain = replace(origin, is_exact=False)
    scales = [call.kwargs.get(name, 1) for name in ("alpha", "beta")]
    if not origin.is_exact or origin.rectifier or scales != [1, 1]:
        return plain
    if len(origin.products) != 1 or origin.products[0].bias is not None:
        return plain
    if bias.axes is None or not bias.is_bias or origin.unit is None:
        return plain
    shift = out.ndim - len(bias.axes)
    if {shift + dim for dim, axis in enumerate(bias.axes) if axis} != {c.axis for c in origin.unit}:
        return plain
    return replace(origin, products=(replace(origin.products[0], bias=bias.name),))


def _joined(origin: Origin, parts: Sequence[Origin]) -> Origin:
    """The origin of what was made of these parts, with all of their products.

    A part that came through a rectifier is named by that: what made it is the rectifier's affair.
    """
    made = [part for part in parts if part.products or part.rectifier]
    if len(made) <= 1:
        part = made[0] if made else UNKNOWN
        is_exact = origin.is_exact and part.is_exact and len(parts) == 1
        return replace(origin, products=part.products, rectifier=part.rectifier, is_exact=is_exact)
    products: list[Product] = []
    for part in made:
        products += [Product(part.rectifier, "")] if part.rectifier else part.products
    norms = [part.norm for part in made if not part.rectifier]
    return replace(
        origin,
        products=tuple(dict.fromkeys(products)),
        rectifier="",
        is_exact=False,
        norm=None if None in norms else origin.norm,
    )


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)

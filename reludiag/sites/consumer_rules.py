"""The rules: what each operator does to the units of a site, and which of its inputs reads them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reludiag.sites import labels as _labels
from reludiag.sites.consumers import Consumer, runs_of
from reludiag.sites.operation import (
    BATCH_NORM,
    MOVES_COPIES,
    MOVES_VIEWS,
    RESHAPES,
    SHAPES,
    EndError,
    Operation,
    OperatorInput,
    Weight,
    plain_name,
)
from reludiag.sites.rectifiers import operator_names
from reludiag.sites.torch_internals import operator_arguments

# Left and right factor, the addend, and the axes that are summed over.
PRODUCTS: dict[str, tuple[str, str, str, int, int]] = {
    "mm": ("self", "mat2", "", -1, -2),
    "bmm": ("self", "mat2", "", -1, -2),
    "addmm": ("mat1", "mat2", "self", -1, -2),
    "addmm_activation": ("mat1", "mat2", "self", -1, -2),
    "baddbmm": ("batch1", "batch2", "self", -1, -2),
    "linear": ("input", "weight", "bias", -1, -1),
    "mv": ("self", "vec", "", -1, -1),
    "addmv": ("mat", "vec", "self", -1, -1),
    "dot": ("self", "tensor", "", -1, -1),
}
_REDUCTIONS = frozenset(
    {
        *("mean", "sum", "nansum", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean"),
        *("std_mean", "logsumexp", "linalg_vector_norm", "norm", "any", "all", "argmax", "argmin"),
        "count_nonzero",
    }
)
_ALONG = frozenset(
    {"softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "topk", "cummax"}
)
_SPATIAL = re.compile(
    r"(?:mkldnn_)?(?:adaptive_|fractional_)?(?:max|avg)_pool([123])d|upsample_.*([123])d"
    r"|(?:reflection|replication)_pad([123])d|grid_sampler_([23])d"
)
_POINTWISE = operator_names() | {"prelu_kernel", "native_dropout", "where", "masked_fill"}
_RANDOM = frozenset({"bernoulli", "normal", "uniform", "random", "exponential"})

Producers = Callable[[Tensor], str | None]
"""Path of the module whose weights made a tensor, None if it is not known."""


class Rules:
    """The rules. What they see reading a site is told to `note(site, consumer)`."""

    def __init__(self, note: Callable[[int, Consumer], None], producer_of: Producers) -> None:
        self._note, self._producer_of = note, producer_of

    def derive(
        self, call: Operation, site: int, outputs: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The labels of each output; None where the site is in it in a way not known.

        Labels of -1 alone are those of a tensor that does not depend on the site. Raises EndError
        or MixedError where units go no further.
        """
        name = call.name
        if "backward" in name:
            raise EndError("unknown")
        if name in PRODUCTS:
            return [self._product(call, site, outputs[0])]
        if "convolution" in name:
            return [self._convolution(call, site)]
        if BATCH_NORM.fullmatch(name):
            return self._extra(self._batch_norm(call, site), outputs)
        if name in {"native_layer_norm", "native_group_norm", "fused_rms_norm"}:
            return self._extra(self._norm(call, site), outputs)
        if name in _POINTWISE or torch.Tag.pointwise in call.function.tags:
            return [self._pointwise(call, site, tuple(output.shape)) for output in outputs]
        if name in {"cat", "stack"}:
            return [self._cat(call, site, outputs[0])]
        if name == "copy":
            source = call.of("src")
            if source is None or site not in source.traces:
                return [_nowhere(outputs[0])]
            return [_labels.aligned(source.traces[site].labels, outputs[0].ndim)]
        if name in {"fill", "zero"} and not self._also(call, site, "value"):
            return [_nowhere(outputs[0])]
        if name == "index_put":
            return [self._masked(call, site)]
        if SHAPES.fullmatch(name):
            return [_nowhere(output) for output in outputs]
        if name.startswith("scaled_dot_product"):
            return self._extra(self._attention(call, site), outputs)

        argument = call.of("self", "input", "data")
        labels = call.only(site, argument).labels
        assert argument is not None
        if name in _RANDOM:
            return [labels]
        if name in RESHAPES:
            return [_labels.reshaped(labels, argument.shape, output.shape) for output in outputs]
        if name in MOVES_VIEWS | MOVES_COPIES:
            return self._moved(call, labels, argument)
        if name == "constant_pad_nd":
            return [_labels.padded(labels, call.arguments["pad"])]
        ndim = len(argument.shape)
        if name in _REDUCTIONS:
            dims = call.arguments.get("dim")
            dims = [dims] if isinstance(dims, int) else dims or range(ndim)
            axes = {dim % ndim for dim in dims}
            return [_labels.reduced(labels, axes, output.ndim == ndim) for output in outputs]
        if name in _ALONG:
            axes = {call.arguments["dim"] % ndim}
            return [_labels.reduced(labels, axes, keepdim=True)] * len(outputs)
        if (match := _SPATIAL.match(name)) is not None:
            last = int(next(filter(None, match.groups())))
            axes = set(range(ndim - last, ndim))
            return [_labels.reduced(labels, axes, keepdim=True)] * len(outputs)
        if name == "glu":
            dim = call.arguments["dim"]
            halves = labels.chunk(2, dim) if labels.shape[dim] > 1 else (labels, labels)
            return [_labels.merged(*halves)]
        raise EndError("unknown")

    @staticmethod
    def _extra(labels: Tensor, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Of an operator whose further outputs are for the backward pass."""
        return [labels, *([None] * (len(outputs) - 1))]

    @staticmethod
    def _also(call: Operation, site: int, *names: str) -> bool:
        """Whether one of these arguments depends on a site."""
        return any(argument and site in argument.traces for argument in map(call.of, names))

    def _product(self, call: Operation, site: int, out: Tensor) -> Tensor:
        left_name, right_name, addend, left_axis, right_axis = PRODUCTS[call.name]
        left, right = call.of(left_name), call.of(right_name)
        assert left is not None
        assert right is not None
        parts: list[Tensor] = []
        for factor, other, axis, other_axis, is_left in (
            (left, right, left_axis, right_axis, True),
            (right, left, right_axis, left_axis, False),
        ):
            if site in factor.traces:
                labels = self._factor(call, site, factor, other, axis, other_axis)
                if labels is not None:
                    parts.append(self._in_product(call.name, labels, is_left, out))
        added = call.of(addend) if addend else None
        if added is not None and site in added.traces:
            parts.append(_labels.aligned(added.traces[site].labels, out.ndim))
        result = _nowhere(out)
        for labels in parts:
            result = _labels.merged(result, labels)
        if added is not None and site not in added.traces and parts:
            self._meet(call, site, result, added)
        return result

    def _factor(
        self,
        call: Operation,
        site: int,
        factor: OperatorInput,
        other: OperatorInput,
        axis: int,
        other_axis: int,
    ) -> Tensor | None:
        """The labels of a factor that are left in a product; None if they end in it."""
        labels = factor.traces[site].labels
        axis, other_axis = axis % len(factor.shape), other_axis % len(other.shape)
        where = _labels.varying(labels)
        if axis not in where and (where or other.weight is None):
            if 0 in where and "bmm" in call.name:
                self._meet(call, site, labels[:, :1, :1], other, range(1))
            return labels
        if other.weight is None:
            raise EndError("mixes")
        if where - {axis}:
            raise EndError("unknown", other.weight.path)
        vector = labels.flatten().expand(factor.shape[axis])
        self._read(call, site, other.weight, other_axis, vector)
        return None

    @staticmethod
    def _in_product(operator: str, labels: Tensor, is_left: bool, out: Tensor) -> Tensor:
        """The labels of a factor's other axes, as the axes of the product."""
        if operator in {"mv", "addmv", "dot"}:
            return labels[:, 0] if labels.ndim == 2 else _labels.aligned(labels[0], out.ndim)
        if operator == "linear" and not is_left:
            return _labels.aligned(labels[:, 0], out.ndim)
        return labels

    def _convolution(self, call: Operation, site: int) -> Tensor:
        argument, weight = call.of("input", "self"), call.of("weight")
        labels = call.only(site, argument).labels
        assert argument is not None
        assert weight is not None
        where = _labels.varying(labels)
        if 1 not in where and where:
            # Of units at other places than channels, those of samples stay where they are.
            return _labels.reduced(labels, {1, *range(2, labels.ndim)}, keepdim=True)
        if weight.weight is None:
            raise EndError("mixes")
        if where - {1}:
            raise EndError("unknown", weight.weight.path)
        channels = argument.shape[1]
        vector = labels.flatten().expand(channels)
        groups = int(call.arguments["groups"])
        transposed = bool(call.arguments.get("transposed"))
        if groups == channels > 1:
            outputs = weight.shape[1] if transposed else weight.shape[0] // groups
            spread = vector.repeat_interleave(outputs)
            self._carry(call, site, weight.weight, 0, vector if transposed else spread)
            result = spread.view(1, -1, *[1] * (labels.ndim - 2))
            bias = call.of("bias")
            if bias is not None and bias.weight is not None:
                self._carry(call, site, bias.weight, 0, spread)
            return result
        self._read(call, site, weight.weight, 0 if transposed else 1, vector, groups)
        return torch.full((1,) * labels.ndim, -1)

    def _batch_norm(self, call: Operation, site: int) -> Tensor:
        labels = call.only(site, call.of("input", "self")).labels
        where = _labels.varying(labels)
        if where - {1}:
            raise EndError("mixes")
        for name in ("weight", "bias", "running_mean", "running_var"):
            argument = call.of(name)
            if argument is not None and argument.weight is not None and where:
                self._carry(call, site, argument.weight, 0, labels.flatten())
        return labels

    def _norm(self, call: Operation, site: int) -> Tensor:
        """Of a layer or of groups of channels."""
        argument = call.of("input")
        labels = call.only(site, argument).labels
        assert argument is not None
        weight = call.of("weight")
        named = weight.weight.path if weight is not None and weight.weight is not None else None
        if call.name == "native_group_norm":
            axes = set(range(1, labels.ndim))
            if call.arguments["group"] == argument.shape[1]:
                axes.discard(1)
        else:
            axes = set(range(labels.ndim))
            axes -= set(range(labels.ndim - len(call.arguments["normalized_shape"])))
        where = _labels.varying(labels)
        if where & axes:
            raise EndError("mixes", named)
        if 1 in where and call.name == "native_group_norm":
            for part in (weight, call.of("bias")):
                if part is not None and part.weight is not None:
                    self._carry(call, site, part.weight, 0, labels.flatten())
        return labels

    def _pointwise(self, call: Operation, site: int, shape: tuple[int, ...]) -> Tensor:
        result = None
        for argument in call.having(site):
            labels = _labels.aligned(argument.traces[site].labels, len(shape))
            result = labels if result is None else _labels.merged(result, labels)
        assert result is not None
        for argument in call.inputs.values():
            if site not in argument.traces:
                self._meet(call, site, result, argument)
        return result

    def _cat(self, call: Operation, site: int, out: Tensor) -> Tensor:
        parts = [call.inputs[id(tensor)] for tensor in call.arguments["tensors"]]
        if call.name == "cat":
            parts = [part for part in parts if part.shape != (0,)]  # as torch does, for old code
        dim = call.arguments["dim"] % out.ndim
        traces = [part.traces.get(site) for part in parts]
        labels = [None if trace is None else trace.labels for trace in traces]
        shapes = [part.shape for part in parts]
        if call.name == "stack":
            labels = [None if part is None else part.unsqueeze(dim) for part in labels]
            shapes = [(*shape[:dim], 1, *shape[dim:]) for shape in shapes]
        result = _labels.joined(labels, shapes, dim)
        if _labels.varying(result) and dim not in _labels.varying(result):
            # At other positions, and at the same units.
            axes = [axis for axis in range(out.ndim) if axis != dim]
            for part in parts:
                if site not in part.traces:
                    missing = call.name == "stack"
                    at = result.squeeze(dim) if missing else result
                    self._meet(call, site, at, part, range(at.ndim) if missing else axes)
        return result

    def _masked(self, call: Operation, site: int) -> Tensor:
        """`x[mask] = number`, for a mask of all elements."""
        argument, indices = call.of("self"), call.arguments["indices"]
        value = call.of("values")
        assert argument is not None
        if (
            len(indices) != 1
            or indices[0] is None
            or indices[0].dtype != torch.bool
            or tuple(indices[0].shape) != argument.shape
            or value is None
            or value.traces
            or value.tensor.numel() != 1
        ):
            raise EndError("unknown")
        result = _nowhere(argument.tensor)
        for part in (argument, call.inputs[id(indices[0])]):
            if site in part.traces:
                result = _labels.merged(result, part.traces[site].labels)
        return result

    def _attention(self, call: Operation, site: int) -> Tensor:
        result = None
        for name, summed in (("query", {-1}), ("key", {-1, -2}), ("value", {-2})):
            argument = call.of(name)
            if argument is None or site not in argument.traces:
                continue
            labels = argument.traces[site].labels
            labels = _labels.reduced(labels, {axis % labels.ndim for axis in summed}, keepdim=True)
            result = labels if result is None else _labels.merged(result, labels)
        if result is None or len(call.having(site)) > sum(
            self._also(call, site, name) for name in ("query", "key", "value")
        ):
            raise EndError("unknown")
        return result

    @staticmethod
    def _moved(call: Operation, labels: Tensor, argument: OperatorInput) -> list[Tensor | None]:
        copies = call.name in MOVES_COPIES
        if copies and argument.tensor.numel() > _labels.LARGEST:
            raise EndError("unknown")

        def of(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.cpu()
            return [of(part) for part in value] if isinstance(value, list | tuple) else value

        names = [a.name for a in operator_arguments(call.function)[1:]]
        rest = {name: of(call.arguments[name]) for name in names}
        return [*_labels.moved(call.function, labels, argument.shape, (), **rest)]

    def _meet(
        self,
        call: Operation,
        site: int,
        labels: Tensor,
        other: OperatorInput,
        axes: Sequence[int] | None = None,
    ) -> None:
        """The units of a site meet another tensor, aligned with it, index by index of `axes`."""
        shift = labels.ndim - len(other.shape)
        where = sorted(
            axis
            for axis in _labels.varying(labels)
            if axis >= shift and other.shape[axis - shift] > 1 and (axes is None or axis in axes)
        )
        if not where:
            return
        if other.weight is not None:
            single = _labels.varying(labels) == {*where} and len(where) == 1
            axis = where[0] - shift if single else None
            self._carry(call, site, other.weight, axis, labels.flatten())
        elif site not in other.shaped_by:
            self._note(
                site,
                Consumer(
                    "tied",
                    plain_name(call.name),
                    other=self._producer_of(other.tensor),
                    through=call.through(site),
                ),
            )

    def _carry(
        self, call: Operation, site: int, weight: Weight, axis: int | None, vector: Tensor
    ) -> None:
        through = call.through(site)
        consumer = Consumer("carries", plain_name(call.name), weight.path, through=through)
        own = None if axis is None or weight.axes is None else weight.axes[axis]
        if own is not None:
            runs = runs_of(vector.tolist(), weight.bounds[own][0])
            consumer = replace(consumer, axis=own, runs=runs, part=weight.part(own))
        self._note(site, consumer)

    def _read(
        self,
        call: Operation,
        site: int,
        weight: Weight,
        axis: int,
        vector: Tensor,
        groups: int = 1,
    ) -> None:
        own = None if weight.axes is None else weight.axes[axis]
        if own is None:
            raise EndError("unknown", weight.path)
        self._note(
            site,
            Consumer(
                "reads",
                plain_name(call.name),
                weight.path,
                own,
                runs_of(vector.tolist(), weight.bounds[own][0]),
                groups,
                weight.part(own),
                through=call.through(site),
            ),
        )


def _nowhere(tensor: Tensor) -> Tensor:
    """The labels of a tensor that depends on no unit."""
    return torch.full((1,) * tensor.ndim, -1)

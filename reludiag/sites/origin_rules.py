"""Rules: from the origins of an operator's inputs to that of its output."""

from dataclasses import replace

from torch import Tensor

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
    summed,
)
from reludiag.sites.followed_call import FollowedCall
from reludiag.sites.index_rules import assigned
from reludiag.sites.moves import move_of
from reludiag.sites.operator_call import PRODUCTS
from reludiag.sites.weight_axes import Weight

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
"""Of the quantized operators, whose weights are packed in an object that is not a tensor."""
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


class OriginRules:
    """Counts products as it derives origins: the later of two wins."""

    def __init__(self) -> None:
        self.samples: int | None = None
        """In the pass, if they are known."""
        self.count = 0

    def product(self, unit: int | Axes, sample: Coordinate | None, out: Tensor) -> Origin:
        self.count += 1
        axes = (Coordinate(unit, out.shape[unit]),) if isinstance(unit, int) else unit
        return Origin(axes, sample, order=self.count)

    def derive(self, call: FollowedCall, out: Tensor, index: int) -> Origin:
        """The origin of one output of one operator."""
        name, args = call.name, call.args
        if "convolution" in name or name.startswith("mkldnn_conv") or name == "deform_conv2d":
            sample = call.origin(args[0]).sample
            sample_axis = sample if sample and sample.axis == 0 else None
            return self.product(1, sample_axis, out)
        if name in PRODUCTS and isinstance(args[1], Tensor):
            return self._matmul(call, out)
        if name.startswith(_PACKED_PRODUCTS) and call.is_quantized:
            unit = 1 if name.startswith("conv") else out.ndim - 1
            return self.product(unit, call.origin(args[0]).sample, out)
        if name in {"embedding", "embedding_bag", "embedding_bag_forward_only"}:
            sample = call.origin(args[1]).sample
            if name != "embedding" and sample is not None:  # bags of equal size, one after another
                fits = out.shape[0] == sample.size and sample.spans(args[1].shape)
                sample = Coordinate(0, sample.size) if fits else None
            embedded = self.product(out.ndim - 1, sample, out)
            return embedded if index == 0 else UNKNOWN
        if name.startswith(_BATCH_NORMS):
            return self._batch_norm(call, out) if index == 0 else UNKNOWN
        if name.startswith(_RECURRENT):
            sample = call.origin(args[0]).sample if index == 0 else None
            return self.product(out.ndim - 1, sample, out)

        activations = [
            (argument.origin, argument.shape)
            for argument in call.inputs
            if isinstance(argument.origin, Origin)
        ]
        if not activations:
            return UNKNOWN
        first, shape = activations[0]
        if name in _NORMS and first.unit is None and index == 0:
            return self.product(_NORMS[name] % out.ndim, first.sample, out)
        if call.is_pointwise or name == "copy":
            origin = broadcast(activations, out.shape)
            return self._scaled(call, origin, out) if origin.unit is None else origin
        if name == "cat":
            dim = call.dim(out.ndim)
            return self._with_rows_again(concatenated(activations, dim, out.shape), activations)
        if name == "stack":
            parts = [origin for origin, _ in activations]
            return stacked(parts, out.shape[dim := call.dim(out.ndim)], dim)
        if name in _SCATTERS:
            return self._scattered(call, out)
        if name in {"index_put", "index_put_impl"}:
            return self._assigned(call, out)
        if name in _REDUCTIONS and call.arguments.get("dim") is not None:
            return reduced(first, call.arguments["dim"], len(shape), out)
        move = move_of(name, call.arguments, shape, tuple(out.shape))
        if move is not None:
            after = moved(first, move)
            is_rank = name == "topk" and first.unit is not None and after.unit is None
            return replace(after, is_ranked=True) if is_rank and index == 0 else after
        if len(activations) == 1 and shape == tuple(out.shape):
            return first  # one input of the same shape: every axis stays in place
        return UNKNOWN

    def _with_rows_again(
        self, origin: Origin, parts: list[tuple[Origin, tuple[int, ...]]]
    ) -> Origin:
        """After a concatenation: if each part has all samples, as crops of them, they repeat."""
        sample, samples = origin.sample, self.samples
        if sample is None or samples is None or sample.size == samples:
            return origin
        repeats = all(part.sample and part.sample.size == samples for part, _ in parts)
        return replace(origin, sample=replace(sample, size=samples) if repeats else None)

    def _matmul(self, call: FollowedCall, out: Tensor) -> Origin:
        left, right = call.factors
        left_sample, right_sample = call.origin(left).sample, call.origin(right).sample
        if call.is_weight(right):
            sample = left_sample if left_sample and left_sample.axis != left.ndim - 1 else None
            return self.product(_units(right, out.ndim - 1, sample, out), sample, out)
        if call.is_weight(left):
            sample = right_sample if right_sample and right_sample.axis != right.ndim - 2 else None
            return self.product(_units(left, out.ndim - 2, sample, out), sample, out)
        # A product of two activations (attention): summed axes are gone, the others stay.
        factors = [
            (summed(call.origin(left), left.ndim - 1), tuple(out.shape)),
            (summed(call.origin(right), right.ndim - 2), tuple(out.shape)),
        ]
        return broadcast(factors, out.shape)

    def _scaled(self, call: FollowedCall, origin: Origin, out: Tensor) -> Origin:
        """Features that a vector of parameters scales or shifts are units, as after a LayerNorm."""
        for argument in call.inputs:
            long_axes = [axis for axis, length in enumerate(argument.shape) if length > 1]
            if isinstance(argument.origin, Weight) and len(long_axes) == 1:
                axis = long_axes[0] + out.ndim - len(argument.shape)
                if axis and argument.shape[long_axes[0]] == out.shape[axis]:
                    return self.product(axis, origin.sample, out)
        return origin

    def _batch_norm(self, call: FollowedCall, out: Tensor) -> Origin:
        # It scales and shifts axis 1, which therefore is the unit axis.
        origin, weight = call.origin(call.args[0]), call.origin_or_weight(call.args[1])
        units = [c for c in origin.unit or () if c.axis == 1]
        if origin.unit == (Coordinate(1, out.shape[1]),):
            norm = weight.name.rpartition(".")[0] if isinstance(weight, Weight) else None
            return replace(origin, norm=norm)
        if units and (len(units) > 1 or not units[0].spans(out.shape)):
            return origin  # instance norm: on axis 1 are the channels of one sample after another
        return self.product(1, origin.sample, out)

    def _scattered(self, call: FollowedCall, out: Tensor) -> Origin:
        """After `source` was written or added to a tensor, at some indices along an axis."""
        source, dim = call.arguments.get("src", call.arguments.get("source")), call.arguments["dim"]
        if not isinstance(source, Tensor):  # a number: as a one-hot code is made
            source = call.arguments["index"]

        def move(c: Coordinate) -> Axes | None:
            stays = c.axis != dim % out.ndim and source.shape[c.axis] == out.shape[c.axis]
            return (c,) if stays else None

        return _either(call.origin(call.args[0]), moved(call.origin(source), move))

    def _assigned(self, call: FollowedCall, out: Tensor) -> Origin:
        """After `x[indices] = values`."""
        indices, values = call.args[1], call.args[2]
        written = moved(call.origin(values), lambda c: assigned(c, indices, out.ndim, values.ndim))
        return _either(call.origin(call.args[0]), written)


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

"""Row ids: which sample each row of a tensor belongs to, where rows are chosen, moved or joined.

A sample coordinate (`axes.py`) tells which sample a row belongs to while the rows of a batch stay
in order. `x[mask]`, a gather, a sort or a dispatch into a buffer end that. From there on each
tensor has ids: labels (`labels.py`) that number samples, `EMPTY` where nothing of the batch was
written. The operator that moves the rows moves the ids in the same way. An operator without a rule
loses them, as do rows that are made of several samples: an id is never guessed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reludiag.sites import labels as _labels
from reludiag.sites.axes import Coordinate, Origin
from reludiag.sites.index_rules import indexed_axes
from reludiag.sites.operator_call import PRODUCTS, OperatorCall
from reludiag.sites.readable import memory_layout as _layout
from reludiag.sites.torch_internals import storage_of

EMPTY = -1
"""The id of elements that belong to no sample: an empty slot of a buffer, or padding."""

_BLANK = frozenset(
    {"zeros", "new_zeros", "zeros_like", "empty", "new_empty", "empty_like", "empty_strided",
     "new_empty_strided", "full", "new_full", "full_like", "ones", "new_ones", "ones_like"}
)  # fmt: skip
_SLICES = frozenset({"select", "unbind", "slice", "split", "split_with_sizes", "chunk", "narrow"})
_VIEWS = _SLICES | {"permute", "transpose", "t", "movedim", "expand", "squeeze", "unsqueeze"}
_RESHAPES = frozenset({"view", "unsafe_view", "reshape", "reshape_alias"})
_COPIES = frozenset({"clone", "contiguous", "detach", "alias", "lift_fresh", "to_copy"})
_CHOICES = frozenset(
    {"index", "index_select", "gather", "masked_select", "take", "sort", "topk", "flip", "roll",
     "pack_padded_sequence", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"}
)  # fmt: skip
_PUTS = frozenset({"index_put", "index_put_impl", "unsafe_index_put"})
_ADDS = frozenset({"index_add", "index_reduce"})
_SCATTERS = frozenset({"scatter", "scatter_add", "scatter_reduce"})
_WRITES = _PUTS | _ADDS | _SCATTERS | {"index_copy", "masked_scatter", "copy"}
_MOVES = _SLICES | _CHOICES | _WRITES
_REDUCTIONS = frozenset(
    {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp", "any", "all", "prod"}
)


class Ids(NamedTuple):
    """The ids of one tensor."""

    values: Tensor
    """int64, as many axes as the tensor; of length one where it does not matter."""
    is_chosen: bool
    """Whether rows were chosen at run time, so that another batch may choose others."""


class RowInput(NamedTuple):
    """A tensor argument of an operator, as it was before the operator ran."""

    tensor: Tensor
    shape: tuple[int, ...]
    origin: Origin | None
    """None for a parameter."""
    ids: Ids | None


@dataclass(frozen=True)
class RowCall(OperatorCall):
    """A call, with the ids of its inputs."""

    inputs: list[RowInput]

    def input(self, value: Any) -> RowInput | None:
        """The input that is this tensor."""
        return next((each for each in self.inputs if each.tensor is value), None)


class RowIds:
    """The ids of the tensors of one forward pass.

    `set_sample(tensor, coordinate)` is called where a tensor's sample coordinate is to change:
    None where its ids say more.
    """

    def __init__(
        self, samples: int, groups: Tensor | None, set_sample: Callable[[Tensor, Any], None]
    ) -> None:
        """`groups` are the ids of the input's rows, `[samples]`; by default their numbers."""
        self._samples, self._groups, self._set_sample = samples, groups, set_sample
        self._ids: dict[int, dict[tuple[Any, ...], Ids]] = {}
        """By storage and layout."""
        self._flat: dict[int, Tensor] = {}
        """`[element of the storage]`, where a part of a buffer was written."""
        self._blank: set[int] = set()
        """Storages in which nothing of the batch is yet."""
        self.mixes_rows = False
        """Whether rows were made of several others, as in a graph."""

    def mark_inputs(self, values: Iterable[Any]) -> None:
        """A list of as many tensors as there are samples holds one sample in each."""
        for value in values:
            if isinstance(value, Tensor):
                return  # its rows are the samples
            is_list = isinstance(value, list) or type(value) is tuple
            if is_list and len(value) == self._samples:
                for index, tensor in enumerate(value):
                    if isinstance(tensor, Tensor) and tensor.ndim:
                        ids = self._sample_ids(tensor.device)[index].reshape((1,) * tensor.ndim)
                        self._store(tensor, Ids(ids, False))

    def of(self, tensor: Tensor) -> Ids | None:
        """Ids of a tensor that a sample coordinate cannot describe."""
        storage = storage_of(tensor)
        known = self._ids.get(storage, {}).get(_layout(tensor))
        if known is None and storage in self._flat:
            flat = self._flat[storage]
            values = flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            known = Ids(values, True)
        return known

    def are_in_order(self, ids: Ids, shape: Sequence[int], sample: Coordinate | None) -> bool:
        """Whether a sample coordinate says the same of a tensor of this shape."""
        if sample is None or sample.size != self._samples:
            return False
        plain = self._by_coordinate(sample, shape, ids.values.device)
        return bool((ids.values == plain).all())

    def concerns(self, name: str) -> bool:
        """Whether an operator of this name may need a rule here."""
        return bool(self._ids or self._flat) or name in _MOVES

    def forget(self, storage: int) -> None:
        """A storage is used for another tensor now."""
        self._ids.pop(storage, None)
        self._flat.pop(storage, None)
        self._blank.discard(storage)

    def note_new(self, name: str, output: Tensor) -> None:
        """A tensor was made in new memory."""
        self.forget(storage_of(output))
        if name in _BLANK:
            self._blank.add(storage_of(output))

    def follow(self, call: RowCall, outputs: list[Tensor]) -> None:
        """Ids of what an operator returned or wrote."""
        name = call.name
        if name in _WRITES:
            self._write(call, outputs[0])
            return
        if name in PRODUCTS:
            self._note_mixture(call)
        concerned = any(each.ids for each in call.inputs)
        moves = name in _SLICES | _CHOICES and self._moves_samples(call, outputs)
        if not concerned and not moves:
            return
        results: Sequence[Ids | None]
        try:
            results = self._derive(call, outputs)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            results = []  # an operator with unexpected arguments
        for index, output in enumerate(outputs):
            ids = results[index] if index < len(results) else None
            self._set_sample(output, None)
            if ids is not None and (ids.is_chosen or name in _MOVES):
                self._store(output, ids)
            elif ids is not None:
                self._settle(output, ids)

    # The ids of inputs

    def _source(self, argument: RowInput | None) -> Ids | None:
        """Ids of an argument, also where its sample coordinate says them."""
        if argument is None or argument.ids is not None:
            return None if argument is None else argument.ids
        origin = argument.origin
        if origin is None or origin.sample is None or origin.sample.size != self._samples:
            return None
        values = self._by_coordinate(origin.sample, argument.shape, argument.tensor.device)
        return Ids(values, False)

    def _sample_ids(self, device: torch.device) -> Tensor:
        if self._groups is None:
            return torch.arange(self._samples, device=device)
        self._groups = self._groups.to(device)
        return self._groups

    def _by_coordinate(
        self, sample: Coordinate, shape: Sequence[int], device: torch.device
    ) -> Tensor:
        ids = self._sample_ids(device)
        along = torch.arange(shape[sample.axis], device=device) // sample.inner % sample.size
        return ids[along].reshape([-1 if a == sample.axis else 1 for a in range(len(shape))])

    def _moves_samples(self, call: RowCall, outputs: list[Tensor]) -> bool:
        """Whether an operator chooses along the axis of the samples of its first argument."""
        source = call.inputs[0] if call.inputs else None
        if source is None or source.origin is None or source.origin.sample is None:
            return False
        sample, ndim, args = source.origin.sample, len(source.shape), call.args
        name = call.name
        if name in _SLICES:
            dim = call.dim(ndim)
            is_whole = outputs and outputs[0].shape == source.shape
            return dim == sample.axis and not is_whole
        if name in {"index_select", "gather", "sort", "topk"}:
            return call.dim(ndim) == sample.axis
        if name in {"flip", "roll"}:
            dims = call.arguments["dims"]
            return not dims or sample.axis in {d % ndim for d in dims}
        if name == "index":
            return sample.axis in indexed_axes(args[1], ndim)
        return True

    # Rules

    def _derive(self, call: RowCall, outputs: list[Tensor]) -> Sequence[Ids | None]:
        name, args, out = call.name, call.args, outputs[0]
        first = call.inputs[0]
        if name == "cat" or name == "stack":
            return [self._joined(call, out)]
        if name in PRODUCTS or "convolution" in name or name.startswith("mkldnn_conv"):
            return [self._product(call, out)]
        if name == "embedding":
            ids = self._source(call.input(args[1]))
            return [ids and Ids(ids.values.unsqueeze(-1), ids.is_chosen)]
        if name in _VIEWS | _RESHAPES | _COPIES | _CHOICES | _REDUCTIONS:
            ids = self._source(first)
            if ids is None:
                return []
            if name in _CHOICES:
                values = _chosen(call, ids.values, first.shape, outputs)
                return [None if v is None else Ids(v, True) for v in values]
            values = _moved(call, ids.values, first.shape, outputs)
            return [None if v is None else Ids(v, ids.is_chosen) for v in values]
        if call.is_pointwise:
            return [self._agreed(call.inputs, len(out.shape))]
        ids, shape = self._source(first), first.shape
        if ids is None or len(shape) != out.ndim:
            return []
        # One input, the axes in place: normalizations, pools, softmax, padding.
        changed = [a for a in range(out.ndim) if shape[a] != out.shape[a]]
        return [ids if all(ids.values.shape[a] == 1 for a in changed) else None]

    def _agreed(self, inputs: Iterable[RowInput], ndim: int) -> Ids | None:
        """Ids of an element-wise operator: its inputs must not contradict each other."""
        result: Ids | None = None
        for argument in inputs:
            ids = self._source(argument)
            if ids is None:
                continue
            values = ids.values.reshape((1,) * (ndim - ids.values.ndim) + ids.values.shape)
            if result is None:
                result = Ids(values, ids.is_chosen)
                continue
            try:
                merged = _labels.merged(result.values, values)
            except _labels.MixedError:
                self._note_mixed()
                return None
            result = Ids(merged, result.is_chosen or ids.is_chosen)
        return result

    def _product(self, call: RowCall, out: Tensor) -> Ids | None:
        args = call.args
        if call.name not in PRODUCTS:
            ids = self._source(call.input(args[0]))
            return ids and self._summed(ids, range(1, ids.values.ndim))
        left, right = map(call.input, call.factors)
        first, second = self._source(left), self._source(right)
        rows = first and self._summed(first, [first.values.ndim - 1])
        if call.name == "linear":
            return rows
        columns = second and self._summed(second, [second.values.ndim - 2])
        if (first and rows is None) or (second and columns is None):
            return None
        if rows is None or columns is None:
            return rows or columns
        try:
            merged = _labels.merged(rows.values, columns.values)
        except _labels.MixedError:
            return None
        return Ids(merged, rows.is_chosen or columns.is_chosen)

    def _summed(self, ids: Ids, axes: Iterable[int]) -> Ids | None:
        """Ids after a product that sums over these axes."""
        result = _collapsed(ids, axes)
        if result is None:
            self._note_mixed()
        return result

    def _joined(self, call: RowCall, out: Tensor) -> Ids | None:
        dim, stack = call.dim(out.ndim), call.name == "stack"
        parts: list[tuple[Ids | None, tuple[int, ...]]] = []
        for argument in call.inputs:
            ids, shape = self._source(argument), argument.shape
            if stack:
                ids = ids and Ids(ids.values.unsqueeze(dim), ids.is_chosen)
                shape = (*shape[:dim], 1, *shape[dim:])
            if shape != (0,):  # cat ignores it
                parts.append((ids, shape))
        present = [ids for ids, _ in parts if ids is not None]
        chosen = any(ids.is_chosen for ids in present)
        if all(ids.values.shape[dim] == 1 for ids in present):
            with contextlib.suppress(_labels.MixedError):
                merged = functools.reduce(_labels.merged, [ids.values for ids in present])
                is_known = len(present) == len(parts) or bool(_labels.varying(merged))
                return Ids(merged, chosen) if is_known else None
        if len(present) < len(parts):
            return None
        common = [max(ids.values.shape[a] for ids in present) for a in range(out.ndim)]
        pieces = [
            ids.values.expand([*common[:dim], shape[dim], *common[dim + 1 :]])
            for ids, shape in parts
            if ids is not None
        ]
        return Ids(torch.cat(pieces, dim), chosen)

    # Writing

    def _write(self, call: RowCall, out: Tensor) -> None:
        """What an operator wrote into its first argument, or into a copy of it."""
        target = call.inputs[0]
        value = _written_value(call)
        source = self._source(value)
        storage = storage_of(target.tensor)
        before = self._source(target)
        if before is None and storage in self._blank:
            before = Ids(torch.full((1,) * len(target.shape), EMPTY, device=out.device), False)
        if source is None:
            is_constant = value is None or value.origin is None or (
                value.origin == Origin() and storage_of(value.tensor) in self._blank
            )  # fmt: skip
            if is_constant or value is None or value.tensor.numel() == 1:
                if target.ids is not None and out is not target.tensor:
                    self._store(out, target.ids)
            elif before is not None and (target.ids is not None or call.name != "copy"):
                self.forget(storage)
            return
        try:
            after = None
            if before is not None or call.name == "copy":
                after = self._written(call, before, source, target.shape)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            after = None
        if after is None:
            self.forget(storage_of(out))
            self._set_sample(out, None)
            return
        chosen = call.name != "copy" or source.is_chosen
        if storage_of(out) == storage and out.numel() < _elements(out):
            self._write_part(out, after)
            return
        self._ids.pop(storage_of(out), None)
        self._flat.pop(storage_of(out), None)
        self._settle(out, Ids(after, chosen))

    def _written(
        self, call: RowCall, before: Ids | None, source: Ids, shape: tuple[int, ...]
    ) -> Tensor | None:
        if call.name == "copy":
            values = source.values
            return values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
        assert before is not None
        after = _put(call, before.values, source.values, shape)
        if after is None:
            self._note_mixed()
        return after

    def _write_part(self, out: Tensor, values: Tensor) -> None:
        """Write into a view of a buffer: other views of it see the same."""
        storage = storage_of(out)
        if storage not in self._flat:
            flat = torch.full((_elements(out),), EMPTY, device=out.device)
            for (offset, shape, stride), ids in self._ids.pop(storage, {}).items():
                flat.as_strided(shape, stride, offset).copy_(ids.values.expand(shape))
            self._flat[storage] = flat
        self._ids.pop(storage, None)
        view = self._flat[storage].as_strided(out.shape, out.stride(), out.storage_offset())
        view.copy_(values.expand(out.shape))
        self._set_sample(out, None)

    def _settle(self, out: Tensor, ids: Ids) -> None:
        """Rows that are back in the order of the batch have a sample coordinate again."""
        length = out.shape[0] if out.ndim else 0
        if length and length % self._samples == 0 and bool((ids.values >= 0).any()):
            sample = Coordinate(0, self._samples, length // self._samples)
            plain = self._by_coordinate(sample, out.shape, out.device)
            if bool(((ids.values == plain) | (ids.values < 0)).all()):
                self._blank.discard(storage_of(out))
                self._set_sample(out, sample)
                return
        self._set_sample(out, None)
        self._store(out, ids)

    def _store(self, tensor: Tensor, ids: Ids) -> None:
        here = Ids(ids.values.to(tensor.device), ids.is_chosen)
        self._ids.setdefault(storage_of(tensor), {})[_layout(tensor)] = here

    # Rows that depend on each other

    def _note_mixed(self) -> None:
        self.mixes_rows |= self._groups is None

    def _note_mixture(self, call: RowCall) -> None:
        """A product that sums over samples: with the adjacency matrix of a graph, for example."""
        left, right = map(call.input, call.factors)
        if left is None or right is None or call.name == "linear":
            return
        origin = right.origin
        if origin is not None and left.origin is not None and origin.sample:
            self.mixes_rows |= self._groups is None and (
                origin.sample.axis == len(right.shape) - 2 and self._samples > 1
            )


def _elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _collapsed(ids: Ids, axes: Iterable[int]) -> Ids | None:
    """Ids after a sum over these axes; None if it is over several samples."""
    values = ids.values
    dims = [axis for axis in axes if values.shape[axis] != 1]
    if not dims:
        return ids
    highest = values.amax(dims, keepdim=True)
    if bool(((values != highest) & (values >= 0)).any()):
        return None
    return Ids(highest, ids.is_chosen)


def _moved(
    call: RowCall, values: Tensor, shape: tuple[int, ...], outputs: list[Tensor]
) -> list[Tensor | None]:
    name, out = call.name, outputs[0]
    if name in _COPIES:
        return [values]
    if name in _RESHAPES:
        return [_labels.reshaped(values, shape, tuple(out.shape))]
    if name in _REDUCTIONS:
        if len(call.args) < 2 or isinstance(call.args[1], Tensor):
            return [None]
        given = call.args[1]
        dims = [given] if isinstance(given, int) else given
        axes = sorted({d % len(shape) for d in dims or ()} or range(len(shape)))
        ids = _collapsed(Ids(values, False), axes)
        if ids is None:
            return [None]
        kept = ids.values
        if out.ndim < len(shape):
            kept = kept.reshape([kept.shape[a] for a in range(len(shape)) if a not in axes])
        return [kept] * len(outputs)
    result = call.function(values.expand(shape), *call.args[1:], **call.kwargs)
    parts = result if isinstance(result, tuple | list) else [result]
    return [_labels.compact(part) for part in parts]


def _expanded(values: Tensor, shape: Sequence[int], axes: Iterable[int]) -> Tensor:
    """Expanded along these axes only."""
    chosen = set(axes)
    return values.expand([shape[a] if a in chosen else values.shape[a] for a in range(values.ndim)])


def _chosen(
    call: RowCall, values: Tensor, shape: tuple[int, ...], outputs: list[Tensor]
) -> list[Tensor | None]:
    """Ids of rows that are chosen by other tensors."""
    name, args, ndim = call.name, call.args, len(shape)
    if name == "index":
        return [
            torch.ops.aten.index(_expanded(values, shape, indexed_axes(args[1], ndim)), args[1])
        ]
    if name == "index_select":
        dim = call.dim(ndim)
        return [values if values.shape[dim] == 1 else values.index_select(dim, args[2])]
    if name == "gather":
        return [_gathered(values, shape, call.dim(ndim), args[2])]
    if name in {"sort", "topk"}:
        dim = call.dim(ndim)
        return [_gathered(values, shape, dim, outputs[1])] * 2
    if name == "masked_select":
        wide = values.expand(shape) + torch.zeros_like(args[1], dtype=torch.int64)
        return [wide.masked_select(args[1])]
    if name == "take":
        return [values.expand(shape).reshape(-1)[args[1]]]
    if name in {"flip", "roll"}:
        return [_labels.compact(call.function(values.expand(shape), *args[1:]))]
    if name == "pack_padded_sequence":
        steps = values.expand(shape).flatten(2)[:, :, :1] if ndim > 2 else values.expand(shape)
        packed = call.function(steps.double(), *args[1:])[0].long()
        return [packed.reshape(-1, *(1,) * (outputs[0].ndim - 1))]
    # roi_align and its like: the first column of the boxes is the number of the image.
    images = _collapsed(Ids(values, False), range(1, ndim))
    boxes = args[1]
    if images is None:
        return [None]
    of_image = images.values.expand(shape[0], *(1,) * (ndim - 1)).reshape(-1)
    return [of_image[boxes[:, 0].long()].reshape(-1, *(1,) * (outputs[0].ndim - 1))]


def _gathered(values: Tensor, shape: tuple[int, ...], dim: int, index: Tensor) -> Tensor:
    others = [axis for axis in range(len(shape)) if axis != dim]
    if values.shape[dim] == 1:
        for axis in others:
            if values.shape[axis] > 1:
                values = values.narrow(axis, 0, index.shape[axis])
        return values
    for axis in others:
        if values.shape[axis] == 1 and index.stride(axis) == 0 and index.shape[axis] > 1:
            index = index.narrow(axis, 0, 1)
    wide = [axis for axis in others if index.shape[axis] > 1]
    return _expanded(values, shape, [*wide, dim]).gather(dim, index)


def _written_value(call: RowCall) -> RowInput | None:
    names = ("src", "values", "source")
    return next((call.input(call.arguments[n]) for n in names if n in call.arguments), None)


def _put(call: RowCall, before: Tensor, source: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Ids after rows of `source` are written; None if an element gets several samples."""
    name, args, ndim = call.name, call.args, len(shape)
    adds = name in _ADDS | {"scatter_add", "scatter_reduce"}
    after: Tensor
    if name in _PUTS:
        indices = args[1]
        adds = bool(call.arguments.get("accumulate", False))
        axes = indexed_axes(indices, ndim)
        plain = all(each is not None for each in indices)
        rest = range(len(axes), ndim)
        if not plain or any(
            length > 1 for length in source.shape[max(0, source.ndim - len(rest)) :]
        ):
            axes = set(range(ndim))
        wide = _expanded(before, shape, axes)
        old = torch.ops.aten.index(wide, indices)
        new = source.reshape((1,) * (old.ndim - source.ndim) + source.shape).expand(old.shape)
        after = torch.ops.aten.index_put(wide.contiguous(), indices, new)
        again = torch.ops.aten.index(after, indices)
    elif name == "masked_scatter":
        wide = before.expand(shape)
        new = source.expand(args[2].shape)
        return wide.masked_scatter(args[1], new.contiguous())
    elif name in _SCATTERS:
        dim, index = call.dim(ndim), args[2]
        wide = before.expand(shape)
        value = call.args[3]
        new = source.expand(value.shape)[tuple(slice(0, n) for n in index.shape)]
        old = wide.gather(dim, index)
        after = wide.scatter(dim, index, new)
        again = after.gather(dim, index)
    else:  # index_add, index_copy, index_reduce
        dim, index, value = call.dim(ndim), args[2], args[3]
        wide_axes = [a for a in range(ndim) if before.shape[a] > 1 or source.shape[a] > 1]
        wide = _expanded(before, shape, [*wide_axes, dim])
        new = _expanded(source, value.shape, [*wide_axes, dim])
        old = wide.index_select(dim, index)
        after = wide.index_copy(dim, index, new)
        again = after.index_select(dim, index)
    if bool((again != new).any()):
        return None
    if adds and bool(((old >= 0) & (new >= 0) & (old != new)).any()):
        return None
    return after

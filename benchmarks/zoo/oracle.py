"""What happens at the rectifiers of a forward pass, by operators alone.

The oracle imports nothing of reludiag. It sees every operator that PyTorch's dispatcher runs, and
counts in integers. Which elements of a rectifier's input make one unit it learns by experiment: it
changes one row of the weights that were multiplied last before the rectifier, and looks which
elements change. Which rows belong to one sample it learns by changing one sample of the input.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Batch = Any
"""Positional arguments as a tuple, or keywords as a dict."""
Call = Callable[[nn.Module, Batch], Any]

PRODUCERS_TRIED = 5
ROWS_TRIED = 8
ROWS_WANTED = 3
SAME = 1e-4
"""A change below this share of the largest one is rounding."""

WEIGHT_OPERANDS = {
    "mm": (0, 1),
    "addmm": (1, 2),
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    "mv": (0,),
    "addmv": (1,),
    "convolution": (1,),
    "embedding": (0,),
    "_embedding_bag": (0,),
    "_embedding_bag_forward_only": (0,),
    "index_select": (0,),
    "_trilinear": (1,),
}
STATISTICS = {"mean", "var", "std", "var_mean", "linalg_vector_norm", "norm", "logsumexp"}
NORMS = {
    "native_layer_norm",
    "native_group_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_batch_norm_with_update",
    "_fused_rms_norm",
}


@dataclass(eq=False)
class Rectified:
    """One call of a rectifier."""

    operator: str
    owner: str
    """Path of the innermost module whose forward was running."""
    before: Tensor
    after: Tensor
    uses: int
    """How many uses of weights came before it."""
    vectors: tuple[int, ...] = ()
    """Addresses of the vectors that took part since the weights that were used last."""
    producer: Any = None
    """What stands for the weights that were used last, to tell the calls of a loop."""

    def fires(self) -> Tensor:
        """Where it gives anything: Hardswish is negative between -3 and 0, and learns there."""
        return self.after != 0 if self.operator == "hardswish" else self.after > 0


@dataclass(frozen=True)
class Layout:
    """Which elements of a tensor make one unit.

    Units are the indices along `axes`. If `inner` is more than 1, the only axis holds each unit as
    a block of that many elements; if less than -1, at that many places, a whole unit count apart.
    """

    axes: tuple[int, ...]
    inner: int = 1

    def label(self) -> str:
        axes = ",".join(map(str, self.axes))
        if self.inner == 1:
            return axes
        return f"{axes}//{self.inner}" if self.inner > 1 else f"{axes}%{-self.inner}"

    def units(self, shape: Sequence[int]) -> int:
        return math.prod(shape[axis] for axis in self.axes) // abs(self.inner)

    def by_unit(self, x: Tensor, rows: int | None = None) -> Tensor:
        """`[unit, element]`, or `[unit, row, element]` with an axis of rows."""
        front = list(self.axes)
        if self.inner != 1:
            axis, inner = self.axes[0], abs(self.inner)
            shape = (-1, inner) if self.inner > 1 else (inner, -1)
            x = x.unflatten(axis, shape)
            front = [axis if self.inner > 1 else axis + 1]
            if rows is not None and rows > axis:
                rows += 1
        if rows is None:
            return x.movedim(front, list(range(len(front)))).flatten(0, len(front) - 1).flatten(1)
        both = [*front, rows]
        x = x.movedim(both, list(range(len(both)))).flatten(0, len(front) - 1)
        return x.flatten(2) if x.ndim > 2 else x.unsqueeze(-1)


class _SeenError(Exception):
    """Ends a forward pass early, at the call that is looked at."""


class Watch(TorchDispatchMode):
    """Notes the rectifier calls of one forward pass.

    With `change`, a pair of a use of weights and a row, that row is another one in this pass.
    `last` ends it at that call. `held` are statistics of an earlier pass: normalisations then use
    those, and not their own.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        change: tuple[int, int] | None = None,
        last: int | None = None,
        held: dict[int, Any] | None = None,
    ) -> None:
        super().__init__()
        self.calls: list[Rectified] = []
        self.uses: list[tuple[str, int]] = []
        """Operator and number of rows of each use of weights."""
        self.statistics: dict[int, Any] = {}
        self.unseen: list[str] = []
        """Operators with a rectifier in them."""
        self._vectors: list[int] = []
        self._change, self._last, self._held = change, last, held
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[nn.Module] = []
        self._number = 0
        self._producer: Any = None
        self._alive: list[Any] = []
        self._data: set[int] = set()
        self._mark([leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)])
        for leaf in tree_leaves(batch):
            if hasattr(leaf, "to_dict"):  # a batch of graphs
                self._mark([v for v in leaf.to_dict().values() if isinstance(v, Tensor)])
            elif hasattr(leaf, "__dict__"):
                self._mark([v for v in vars(leaf).values() if isinstance(v, Tensor)])

    def __enter__(self) -> "Watch":
        def begin(module: nn.Module, _: Any) -> None:
            self._stack.append(module)

        def end(module: nn.Module, *_: Any) -> None:
            while self._stack and self._stack.pop() is not module:
                pass

        self._handles = [
            register_module_forward_pre_hook(begin),
            register_module_forward_hook(end, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _mark(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            with contextlib.suppress(NotImplementedError, RuntimeError):
                self._data.add(tensor.untyped_storage()._cdata)
                self._alive.append(tensor.untyped_storage())

    def _from_data(self, x: Any) -> bool:
        try:
            return isinstance(x, Tensor) and x.untyped_storage()._cdata in self._data
        except (NotImplementedError, RuntimeError):
            return True  # sparse: the adjacency of a graph

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        full = func._schema.name
        name = full.rpartition("::")[2]
        number = self._number
        self._number += 1
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        from_data = any(self._from_data(leaf) for leaf in leaves)
        if from_data and name in WEIGHT_OPERANDS:
            args = self._use(name, args)
        if from_data:
            self._vectors += [
                leaf.data_ptr()
                for leaf in leaves
                if leaf.ndim == 1 and leaf.is_floating_point() and not self._from_data(leaf)
            ]
        rectifies = from_data and _rectifies(name.rstrip("_"), args, kwargs)
        before = _input_of(name.rstrip("_"), args).clone() if rectifies else None
        result = func(*args, **kwargs)
        if name in NORMS or name in STATISTICS:
            result = self._statistic(number, name, args, result)
        if from_data:
            self._mark([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
            if func._schema.is_mutable:
                self._mark([leaf for leaf in leaves if _is_written(func, args, kwargs, leaf)])
        if full.startswith("quantized::") and name.endswith("relu"):
            self.unseen.append(name)
        if rectifies:
            owner = self._names.get(self._stack[-1], "?") if self._stack else ""
            after = result if isinstance(result, Tensor) else args[0]
            self.calls.append(
                Rectified(
                    name.rstrip("_"),
                    owner,
                    before,
                    after.clone(),
                    len(self.uses),
                    tuple(self._vectors),
                    self._producer,
                )
            )
            if self._last == len(self.calls) - 1:
                raise _SeenError
        return result

    def _use(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Note a use of weights, and change a row of them if this is the one to be changed."""
        for at in WEIGHT_OPERANDS[name]:
            weight = args[at]
            if not self._from_data(weight) and weight.is_floating_point() and weight.numel() > 1:
                break
        else:
            return args
        selection = _rows(name, at, weight, args)
        self.uses.append((name, len(selection)))
        self._vectors.clear()
        self._producer = (weight.untyped_storage()._cdata, weight.storage_offset())
        self._alive.append(weight.untyped_storage())
        if self._change is None or self._change[0] != len(self.uses) - 1:
            return args
        generator = torch.Generator().manual_seed(self._change[1])
        changed = weight.clone()
        part = changed[selection[self._change[1]]]
        noise = 0.5 + torch.rand(part.shape, generator=generator)
        changed[selection[self._change[1]]] = part + noise.to(part.dtype)
        return (*args[:at], changed, *args[at + 1 :])

    def _statistic(self, number: int, name: str, args: tuple[Any, ...], result: Any) -> Any:
        """Keep a statistic, or put the one that is held in its place."""
        if self._held is None:
            self.statistics[number] = result
            return result
        if number not in self._held:
            return result
        held = self._held[number]
        return held if name in STATISTICS else _normalized(name, args, held, result)


class _Rows(Sequence[Any]):
    """Selections of a weight tensor, one for each row that makes one output."""

    def __init__(self, count: int, select: Callable[[int], Any]) -> None:
        self._count, self._select = count, select

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._select(index)


def _rows(name: str, at: int, weight: Tensor, args: tuple[Any, ...]) -> Sequence[Any]:
    every = slice(None)
    shape = weight.shape
    if name == "convolution":
        transposed, groups = args[6], args[8]
        if not transposed:
            return _Rows(shape[0], lambda row: (row,))
        inputs = shape[0] // groups
        return _Rows(
            groups * shape[1],
            lambda row: (
                slice(row // shape[1] * inputs, (row // shape[1] + 1) * inputs),
                row % shape[1],
            ),
        )
    if name in {"mv", "addmv", "_trilinear"}:
        return _Rows(shape[0], lambda row: (row,))
    if name in {"mm", "addmm"}:
        first = at == WEIGHT_OPERANDS[name][0]
        return _Rows(shape[0 if first else 1], lambda row: (row,) if first else (every, row))
    if name in {"bmm", "baddbmm"}:
        first = at == WEIGHT_OPERANDS[name][0]
        width = shape[1 if first else 2]
        shared = bool((weight == weight[:1]).all())  # one matrix, expanded over the batch
        count = width if shared else width * shape[0]
        return _Rows(
            count,
            lambda row: (
                every if shared else row // width,
                *((row % width,) if first else (every, row % width)),
            ),
        )
    return _Rows(shape[-1], lambda row: (..., row))


def _normalized(name: str, args: tuple[Any, ...], held: Any, result: Any) -> Any:
    """The output of a normalisation with the mean and scale of an earlier pass."""
    x = args[0]
    if name == "native_layer_norm":
        _, mean, scale = held
        y = (x - mean) * scale
        y = y if args[2] is None else y * args[2]
        y = y if args[3] is None else y + args[3]
    elif name == "_fused_rms_norm":
        y = x * held[1] * (1 if args[2] is None else args[2])
    elif name == "native_group_norm":
        _, mean, scale = held
        y = x.reshape(args[3], args[6], -1)
        y = ((y - mean[..., None]) * scale[..., None]).reshape(x.shape)
        y = _per_channel(y, args[1], args[2])
    else:
        mean, scale = held[1], held[2]
        if not mean.numel():
            return result
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = _per_channel((x - mean.view(shape)) * scale.view(shape), args[1], args[2])
    return (y, *result[1:])


def _per_channel(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *[1] * (y.ndim - 2))
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def _is_written(func: Any, args: Any, kwargs: Any, leaf: Tensor) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    written = {a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write}
    values = dict(zip(names, args, strict=False)) | kwargs
    return any(leaf is each for name in written for each in tree_leaves(values.get(name)))


def _rectifies(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this operator's output is 0 over a region of one of its inputs."""
    x = _input_of(name, args)
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
        return False
    if name in {"relu", "hardswish", "hardsigmoid"}:
        return True
    if name == "leaky_relu":
        return len(args) > 1 and args[1] == 0
    if name in {"hardtanh", "clamp", "clamp_min"}:
        lower = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val", -1))
        return isinstance(lower, int | float) and lower == 0
    if name == "threshold":
        return args[1] >= 0 and args[2] == 0
    if name == "maximum":
        return _is_zero(args[1])
    if name == "where" and len(args) == 3:
        return x.shape == args[0].shape and any(
            _is_zero(other) and bool((mask == (x > 0)).all()) and not bool(mask.all())
            for mask, other in ((args[0], args[2]), (~args[0], args[1]))
        )
    if name == "mul" and len(args) == 2 and isinstance(args[1], Tensor):
        mask = args[1] != 0
        return (
            mask.shape == x.shape
            and bool((args[1] == mask).all())  # also one that was cast
            and not bool(mask.all())
            and bool((x[mask] > 0).all())
            and _is_above_thresholds(x, mask)
        )
    if name == "masked_fill":
        mask = args[1]
        return (
            mask.shape == x.shape
            and bool(mask.any())
            and bool((mask == (x < 0)).all())
            and _is_zero(args[2])
        )
    return False


def _is_above_thresholds(x: Tensor, mask: Tensor) -> bool:
    """Whether a mask is where each unit of the last axis is above a number of its own."""
    rows, marked = x.reshape(-1, x.shape[-1]), mask.reshape(-1, x.shape[-1])
    least = rows.masked_fill(~marked, math.inf).amin(0)
    most = rows.masked_fill(marked, -math.inf).amax(0)
    return bool((least > most).all())


def _input_of(name: str, args: tuple[Any, ...]) -> Any:
    if name == "where" and len(args) == 3:
        return args[2] if _is_zero(args[1]) else args[1]
    return args[0] if args else None


def _is_zero(x: Any) -> bool:
    if isinstance(x, Tensor):
        return bool((x == 0).all())
    return isinstance(x, int | float) and x == 0


# Passes that leave no trace


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run passes with one seed; afterwards mode, buffers and random streams are as before."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one operator hides the rectifier
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


def run(
    model: nn.Module,
    batch: Batch,
    call: Call,
    *,
    train: bool = False,
    seed: int = 0,
    **options: Any,
) -> Watch:
    """One forward pass, watched."""
    with untouched(model):
        model.train(train)
        torch.manual_seed(seed)
        watch = Watch(model, batch, **options)
        with contextlib.suppress(_SeenError), watch:
            call(model, batch)
    return watch


# Units, by changing one row of weights


@dataclass(eq=False)
class Truth:
    """What is true of one rectifier call."""

    call: Rectified
    layout: Layout | None
    reason: str = ""
    """Why its layout is not known."""
    rows: int | None = None
    """The axis of rows."""
    sample_of_row: list[int] = field(default_factory=list)
    """The sample of the model's input that each row comes from."""
    samples_known: bool = False


def layout_of(
    model: nn.Module, batch: Batch, call: Call, watch: Watch, index: int, **options: Any
) -> Layout | str:
    """Which elements of the input of call `index` make a unit, or why that cannot be told."""
    target = watch.calls[index]
    reason = "no weights before it"
    for use in range(target.uses - 1, max(-1, target.uses - 1 - PRODUCERS_TRIED), -1):
        found: list[Layout] = []
        reached = False
        for held in (None, watch.statistics) if watch.statistics else (None,):
            changes, told = _changes(model, batch, call, watch, index, use, held, options)
            if not changes and not reached:
                reason = told
                break
            reached = True
            layout = _confined(changes, target.before.shape) if changes else told
            if isinstance(layout, Layout):
                found.append(layout)
                if layout.inner == 1:
                    break
            else:
                reason = layout
        if found:
            # A norm over a group of channels changes them all: that block is not one unit.
            return max(found, key=lambda each: each.units(target.before.shape))
        if reached:
            return reason
    return reason


def _changes(
    model: nn.Module,
    batch: Batch,
    call: Call,
    watch: Watch,
    index: int,
    use: int,
    held: dict[int, Any] | None,
    options: dict[str, Any],
) -> tuple[list[Tensor], str]:
    """Which elements change with each of some rows of one use of weights."""
    before = watch.calls[index].before
    width = watch.uses[use][1]
    order = [width // 2, width // 5, width - 1, 0, width // 3, 2 * width // 3, width // 4, 1]
    changes: list[Tensor] = []
    for row in list(dict.fromkeys(min(row, width - 1) for row in order))[:ROWS_TRIED]:
        options = options | {"change": (use, row), "last": index, "held": held}
        again = run(model, batch, call, **options).calls
        if len(again) <= index or again[index].before.shape != before.shape:
            return [], "the forward pass takes another path when weights change"
        difference = (again[index].before - before).abs().nan_to_num(0, 0, 0)
        if float(difference.max()) > 0:
            changes.append(difference > SAME * difference.max())
            if len(changes) == ROWS_WANTED:
                break
    return changes, "no change of weights reaches it"


def _confined(changes: Sequence[Tensor], shape: Sequence[int]) -> Layout | str:
    touched = [
        [sorted(set(indices)) for indices in changed.nonzero().T.tolist()] for changed in changes
    ]
    axes = range(len(shape))
    single = [a for a in axes if shape[a] > 1 and all(len(each[a]) == 1 for each in touched)]
    if single:
        return Layout(tuple(single))
    partly = [a for a in axes if all(len(each[a]) < shape[a] for each in touched)]
    if len(partly) == 1:
        (axis,) = partly
        found = touched[0][axis]
        inner = len(found)
        if shape[axis] % inner == 0:
            units = shape[axis] // inner
            if all(_is_block(each[axis], inner) for each in touched):
                return Layout((axis,), inner)
            if all(
                each[axis] == list(range(each[axis][0], shape[axis], units)) for each in touched
            ):
                return Layout((axis,), -inner)
    counts = [len(found) for found in touched[0]]
    return f"one row of weights changes {counts} of {list(shape)}"


def _is_block(found: list[int], inner: int) -> bool:
    return found[0] % inner == 0 and found == list(range(found[0], found[0] + inner))


# Samples, by changing one sample of the input


def samples_of(
    model: nn.Module,
    batch: Batch,
    call: Call,
    watch: Watch,
    varied: Sequence[Batch],
    **options: Any,
) -> list[tuple[int, list[int]] | None]:
    """For each call, the axis of its rows and the sample of each; None where that is not told.

    `varied` are batches of which each has one other sample.
    """
    changed: list[list[Tensor]] = [[] for _ in watch.calls]
    for other in varied:
        again = run(model, other, call, **options).calls
        if len(again) != len(watch.calls):
            return [None] * len(watch.calls)
        for at, (one, two) in enumerate(zip(watch.calls, again, strict=True)):
            if one.before.shape == two.before.shape:
                changed[at].append(one.before != two.before)
    return [_row_axis(each) if len(each) == len(varied) else None for each in changed]


def _row_axis(changed: Sequence[Tensor]) -> tuple[int, list[int]] | None:
    shape = changed[0].shape
    for axis in range(len(shape)):
        others = [a for a in range(len(shape)) if a != axis]
        hits = torch.stack([each.any(others) if others else each for each in changed])
        owner = hits.int().argmax(0)
        claims = hits.sum(0)
        if bool((claims > 1).any()) or not bool(claims.any()):
            continue
        if bool((claims == 1).all()):
            return axis, owner.tolist()
        # What comes after a unit that is dead does not change with its sample.
        if shape[axis] == len(changed) and bool(
            (owner == torch.arange(len(changed)))[claims > 0].all()
        ):
            return axis, list(range(len(changed)))
    return None


def fired(truth: Truth) -> Tensor:
    """Whether each unit fired in each sample that reached the call: `[unit, sample]`."""
    assert truth.layout is not None
    positive = truth.call.fires()
    if truth.rows is None or not truth.samples_known:
        return truth.layout.by_unit(positive).any(1, keepdim=True)
    by_row = truth.layout.by_unit(positive, truth.rows).any(2)
    groups = torch.tensor(truth.sample_of_row)
    return torch.stack([by_row[:, groups == g].any(1) for g in groups.unique()], 1)


def varied(batch: Batch, sample: int, count: int) -> Batch:
    """The batch with another sample at this index, in every tensor or list of `count` samples."""

    def other(x: Tensor) -> Tensor:
        if x.ndim == 0 or x.shape[0] != count:
            return x
        x = x.clone()
        if x.is_floating_point():
            x[sample] += 0.01 * (1 + torch.rand(x[sample].shape, dtype=x.dtype))
        elif x.dtype == torch.bool:
            return x
        else:
            x[sample] = x[sample].roll(1, -1) if x[sample].ndim else x[sample]
        return x

    def each(x: Any) -> Any:
        if isinstance(x, list) and len(x) == count:
            noisy = x[sample]
            noisy = tree_map_only(Tensor, lambda t: t + 0.01 if t.is_floating_point() else t, noisy)
            return [*x[:sample], noisy, *x[sample + 1 :]]
        return tree_map_only(Tensor, other, x)

    if isinstance(batch, dict):
        return {key: each(value) for key, value in batch.items()}
    return tuple(each(value) for value in batch)

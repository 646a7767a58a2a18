"""Follows the units of every site through one forward, operator by operator, to what reads them.

For each tensor that depends on a site it is known on which unit each element depends (`labels`).
Tracking stops at a weight that sums over units. That weight is a reader: with its entries for a
unit set to 0, nothing after it depends on the unit. An operator that no rule covers is a reader of
kind `unknown`: a list of readers is complete only if there is none of these.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from reludiag.sites import labels as _labels
from reludiag.sites.axes import Axes
from reludiag.sites.consumer_rules import PRODUCTS, Rules
from reludiag.sites.consumers import Consumer, Kind
from reludiag.sites.guard import Guard
from reludiag.sites.operation import (
    BATCH_NORM,
    MOVES_COPIES,
    MOVES_VIEWS,
    OVERWRITES,
    RESHAPES,
    SHAPES,
    EndError,
    Operation,
    OperatorInput,
    Trace,
    Weight,
    plain_name,
)
from reludiag.sites.operator_call import OperatorCall
from reludiag.sites.readable import memory_layout as _layout
from reludiag.sites.readable import parts_of
from reludiag.sites.torch_internals import operator_arguments
from reludiag.sites.torch_internals import storage_of as _storage
from reludiag.sites.weight_views import view_of

# What leaves the value, or its labels, as it is: not worth a word in `Consumer.through`.
_SILENT = RESHAPES | MOVES_VIEWS | MOVES_COPIES
_ESCAPES = frozenset(
    {
        *("numpy", "tolist", "data_ptr", "__array__", "__dlpack__", "__reduce_ex__"),
        "__cuda_array_interface__",
    }
)

Layout = tuple[Any, ...]


@dataclass
class _Memory:
    """What is known of the tensors in one piece of memory."""

    alive: StorageWeakRef
    """While it is held, no other memory has the same number."""
    layouts: dict[Layout, dict[int, Trace]] = field(default_factory=dict)
    lost: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Sites that are in it in a way not known, and through which operators."""
    shaped_by: set[int] = field(default_factory=set)
    """Sites of whose shape it was made, and not of their values."""


class ConsumerTracker:
    """Notes what reads the units of sites, from `begin` of each to `end` of the forward."""

    def __init__(
        self, model: nn.Module, producer_of: Callable[[Tensor], str | None], guard: Guard
    ) -> None:
        self.escapes = _EscapeMode(self._escaped, guard)
        """A function mode that sees tensors leave: to be active during the forward."""
        self._model = model
        self._rules = Rules(self._note, producer_of)
        self._memory: dict[int, _Memory] = {}
        self._weights: dict[int, tuple[StorageWeakRef, dict[Layout, Weight]]] = {}
        self._consumers: dict[int, dict[Consumer, None]] = {}
        for path, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            shape = tuple(tensor.shape)
            bounds = tuple((0, length) for length in shape)
            self._note_weight(tensor, Weight(path, tuple(range(len(shape))), bounds, shape))

    def begin(self, site: int, output: Tensor, unit: Axes) -> None:
        """A site's output, with its units at these coordinates."""
        self._consumers.setdefault(site, {})
        memory = self._memory_of(output)
        if memory is None:
            self._note(site, Consumer("unknown", "sparse tensor"))
            return
        traces, _ = self._look(output)
        trace = Trace(_labels.of_units(output.shape, unit))
        self._overwrite(memory, _layout(output), {**traces, site: trace})

    def prepare(self, call: OperatorCall) -> Operation | None:
        """The inputs of an operator that is about to run; None if it need not be followed."""
        tensors = list(_tensors_in([*call.args, *call.kwargs.values()]))
        inputs = {id(tensor): self._input_of(tensor) for tensor in tensors}
        if not any(
            tensor_input.traces
            or tensor_input.lost
            or tensor_input.shaped_by
            or tensor_input.weight
            for tensor_input in inputs.values()
        ):
            return None
        targets = set()
        for argument in operator_arguments(call.function):
            if argument.alias_info is not None and argument.alias_info.is_write:
                targets |= {id(tensor) for tensor in _tensors_in([call.arguments[argument.name]])}
        return Operation(call.function, call.args, call.kwargs, inputs, frozenset(targets))

    def follow(self, call: Operation, outputs: Sequence[Tensor]) -> None:
        """Follow an operator that has run, and that gave these."""
        sites = dict.fromkeys(site for argument in call.inputs.values() for site in argument.traces)
        if not sites:
            self._follow_weights(call, outputs)
        name = plain_name(call.name)
        for argument in call.inputs.values():
            if not self._is_unread(call, argument, outputs):
                for site, through in argument.lost.items():
                    self._note(site, Consumer("unknown", name, through=through))
        results: list[dict[int, Trace]] = [{} for _ in outputs]
        hidden: list[dict[int, tuple[str, ...]]] = [{} for _ in outputs]
        for site in sites:
            through = self._through(call, site)
            try:
                traces = self._rules.derive(call, site, outputs)
                if len(traces) != len(outputs):
                    raise EndError("unknown")
            except EndError as end:
                self._stop(call, site, end.kind, end.parameter)
            except _labels.MixedError:
                self._stop(call, site, "mixes")
            except (ArithmeticError, AssertionError, AttributeError, IndexError, KeyError,
                    RuntimeError, TypeError, ValueError):  # fmt: skip
                # An operator with arguments that no rule foresaw.
                self._stop(call, site, "unknown")
            else:
                for index, labels in enumerate(traces):
                    if labels is None:
                        hidden[index][site] = through
                    elif bool((labels >= 0).any()):
                        results[index][site] = Trace(labels, through)
        self._keep(call, outputs, results, hidden)

    def lose(self, name: str, inputs: Iterable[Tensor]) -> None:
        """An operator that cannot be followed takes these tensors."""
        for tensor in inputs:
            for part in parts_of(tensor):
                self._escaped(name, part)

    def end(self, output: Any) -> dict[int, tuple[Consumer, ...]]:
        """The consumers of each site that began, after a forward that gave `output`."""
        for tensor in self._inside(output):
            self._leaves(tensor, "output", "output")
        for path, module in self._model.named_modules():
            buffers = dict(module.named_buffers(recurse=False))
            for name, value in {**vars(module), **buffers}.items():
                if name not in {"_parameters", "_modules", "_buffers"}:
                    for tensor in _tensors_in([value]):
                        self._leaves(tensor, "state", f"{path}.{name}" if path else name)
        return {site: tuple(consumers) for site, consumers in self._consumers.items()}

    # What is known of tensors

    def _memory_of(self, tensor: Tensor) -> _Memory | None:
        """The memory of a tensor, to write down something of it; None if it has none."""
        key = _storage(tensor)
        if key not in self._memory:
            reference = _reference(tensor)
            if reference is None:
                return None
            self._memory[key] = _Memory(reference)
        return self._memory[key]

    def _look(self, tensor: Tensor) -> tuple[Mapping[int, Trace], Mapping[int, tuple[str, ...]]]:
        """The sites in a tensor: where it is known how, and where it is not."""
        memory = self._memory.get(_storage(tensor))
        if memory is None:
            return {}, {}
        traces = memory.layouts.get(_layout(tensor))
        if traces is not None:
            return traces, {}
        lost = dict(memory.lost)
        for others in memory.layouts.values():
            lost |= {site: trace.through for site, trace in others.items()}
        return {}, lost

    def _input_of(self, tensor: Tensor) -> OperatorInput:
        traces, lost = self._look(tensor)
        memory = self._memory.get(_storage(tensor))
        shaped_by = frozenset(memory.shaped_by if memory is not None else ())
        return OperatorInput(
            tensor, tuple(tensor.shape), traces, lost, shaped_by, self._weight(tensor)
        )

    def _weight(self, tensor: Tensor) -> Weight | None:
        entry = self._weights.get(_storage(tensor))
        if entry is None:
            return None
        weights = entry[1]
        first = next(iter(weights.values()))
        return weights.get(_layout(tensor), replace(first, axes=None))

    def _note_weight(self, tensor: Tensor, weight: Weight) -> None:
        reference = _reference(tensor)
        if reference is not None:
            weights = self._weights.setdefault(_storage(tensor), (reference, {}))[1]
            weights.setdefault(_layout(tensor), weight)

    def _overwrite(self, memory: _Memory, layout: Layout, traces: Mapping[int, Trace]) -> None:
        """What was written through one view is seen through others, but it is not known where."""
        if not traces:
            if layout in memory.layouts or memory.lost:
                memory.layouts[layout] = {}
            return
        for other, present in memory.layouts.items():
            if other != layout:
                memory.lost |= {site: trace.through for site, trace in present.items()}
        memory.lost |= {site: trace.through for site, trace in traces.items()}
        memory.layouts = {layout: dict(traces)}

    def _keep(
        self,
        call: Operation,
        outputs: Sequence[Tensor],
        results: Sequence[dict[int, Trace]],
        hidden: Sequence[dict[int, tuple[str, ...]]],
    ) -> None:
        """Write down what an operator's outputs are."""
        target_storages = {_storage(call.inputs[key].tensor) for key in call.targets}
        traced = {site for argument in call.inputs.values() for site in argument.traces}
        shapes = [argument.shaped_by for argument in call.inputs.values() if argument.tensor.ndim]
        shaped_by = set(frozenset.intersection(*shapes)) if shapes else set()
        if SHAPES.fullmatch(call.name):
            shaped_by |= traced
        for output, traces, lost in zip(outputs, results, hidden, strict=True):
            if not (traces or lost or shaped_by or _storage(output) in self._memory):
                continue
            memory = self._memory_of(output)
            if memory is None:
                for site in (*traces, *lost):
                    self._stop(call, site, "unknown")
                continue
            memory.shaped_by = shaped_by
            hides = any(
                argument.lost and self._is_unread(call, argument, outputs)
                for argument in call.inputs.values()
                if id(argument.tensor) not in call.targets
            )
            if lost or hides:
                memory.lost |= lost | {site: trace.through for site, trace in traces.items()}
            elif _storage(output) in target_storages and call.name not in RESHAPES | MOVES_VIEWS:
                self._overwrite(memory, _layout(output), traces)
            elif traces or memory.layouts or memory.lost:
                memory.layouts[_layout(output)] = dict(traces)
        self._keep_targets(call, outputs, traced)

    def _keep_targets(
        self, call: Operation, outputs: Sequence[Tensor], traced: Iterable[int]
    ) -> None:
        """Write down what an operator has written to and not returned."""
        if BATCH_NORM.fullmatch(call.name):  # the statistics: of each channel its own
            return
        output_keys = {(_storage(output), _layout(output)) for output in outputs}
        for key in call.targets:
            tensor = call.inputs[key].tensor
            self._weights.pop(_storage(tensor), None)
            if (_storage(tensor), _layout(tensor)) not in output_keys:
                for site in traced:
                    self._stop(call, site, "unknown")

    @staticmethod
    def _is_unread(call: Operation, argument: OperatorInput, outputs: Sequence[Tensor]) -> bool:
        """Whether a tensor's values are not read: they are overwritten, or seen by another view."""
        if id(argument.tensor) in call.targets:
            return call.name in OVERWRITES
        return call.name in RESHAPES | MOVES_VIEWS and all(
            _storage(output) == _storage(argument.tensor) for output in outputs
        )

    # What is read

    def _note(self, site: int, consumer: Consumer) -> None:
        self._consumers.setdefault(site, {})[consumer] = None

    def _stop(self, call: Operation, site: int, kind: Kind, parameter: str | None = None) -> None:
        through = call.through(site)
        self._note(site, Consumer(kind, plain_name(call.name), parameter, through=through))

    def _leaves(self, tensor: Tensor, kind: Kind, where: str) -> None:
        traces, lost = self._look(tensor)
        for site, trace in traces.items():
            self._note(site, Consumer(kind, where, through=trace.through))
        for site, through in lost.items():
            self._note(site, Consumer("unknown", where, through=through))

    def _escaped(self, name: str, tensor: Tensor) -> None:
        traces, lost = self._look(tensor)
        through = {site: trace.through for site, trace in traces.items()} | dict(lost)
        for site, operators in through.items():
            self._note(site, Consumer("unknown", name, through=operators))

    def _inside(self, output: Any) -> Iterator[Tensor]:
        """All tensors that can be reached from what a forward returned."""
        waiting, identities = [output], set[int]()
        while waiting:
            value = waiting.pop()
            if id(value) in identities or isinstance(value, _PLAIN):
                continue
            identities.add(id(value))
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, Mapping):
                waiting += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple | set | frozenset):
                waiting += value
            elif hasattr(value, "__dict__") and not callable(value):
                waiting += vars(value).values()
            else:  # a function or an iterator: whatever it holds
                for site in self._consumers:
                    self._note(site, Consumer("unknown", type(value).__name__))

    def _through(self, call: Operation, site: int) -> tuple[str, ...]:
        name = () if call.name in _SILENT | OVERWRITES else (plain_name(call.name),)
        return tuple(dict.fromkeys((*call.through(site), *name)))

    # Parameters, and what is made of them

    def _follow_weights(self, call: Operation, outputs: Sequence[Tensor]) -> None:
        """Views, slices and casts of a parameter are known as such; what else is made of it not."""
        weights = [argument.weight for argument in call.inputs.values()]
        first = next((weight for weight in weights if weight is not None), None)
        if first is None or None in weights or call.targets or call.name in PRODUCTS:
            return
        source = next(iter(call.inputs.values()))
        for output in outputs:
            view = replace(first, axes=None)
            if len(weights) == 1 and first.axes is not None:
                try:
                    view = view_of(call, first, source.shape, output)
                except (IndexError, KeyError, TypeError, ValueError):
                    view = replace(first, axes=None)
            self._note_weight(output, view)


class _EscapeMode(TorchFunctionMode):
    """Tells where a tensor's values leave PyTorch's operators: `x.numpy()`, `x.tolist()`."""

    def __init__(self, escaped: Callable[[str, Tensor], None], guard: Guard) -> None:
        super().__init__()
        self._escaped, self.guard = escaped, guard

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _ESCAPES and args and isinstance(args[0], Tensor) and self.guard.error is None:
            try:
                self._escaped(name, args[0])
            except Exception as error:
                self.guard.error = error
        return func(*args, **(kwargs or {}))


_PLAIN = (Number, str, bytes, bool, type(None), np.ndarray, np.generic, torch.dtype, torch.device,
          torch.Size, type, Enum, range, slice)  # fmt: skip


def _reference(tensor: Tensor) -> StorageWeakRef | None:
    """To the memory of a tensor; None for a sparse one, which has several."""
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):
        return None


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors_in(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            yield from _tensors_in(value)

"""From a batch to the arguments of a model's `forward`.

| a batch is | `forward` gets |
|---|---|
| a tensor or an array | it |
| a tuple or list | as many values as it has parameters without a default, at least one, in order |
| ((left, right), labels) | the inner values, if it has as many parameters without a default |
| a mapping | the values whose names it takes |
| a named tuple or dataclass | likewise, if it takes one of the names; else as a tuple, or whole |
| an object, such as a graph batch | the object; its values by name if it needs several |

A parameter with a default is filled by name only: a second value is a label more often than a mask.
Labels are passed where `forward` cannot do without them, and in training mode where it takes them.
A note says what is left out, unless a batch is two values with as many rows, and `forward` has one
parameter: then there is no doubt.
A list of tensors that differ in length, or for which `forward` declares a list, is one argument.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reludiag.errors import DataError, ModelError
from reludiag.loading.batch_contents import (
    described,
    is_dataclass,
    is_named_tuple,
    moved,
    named_values,
    tensors_of,
)

LABEL_NAMES = frozenset({"labels", "label", "targets", "target", "y"})

_WRAPPED = ("module", "model", "base_model")
"""Attributes under which wrappers keep the model that they call."""
_SHOWN = 4
"""Most parameters that a sentence names."""
_OF_DTYPES = re.compile(r"dtype|scalar type|input type|not implemented for", re.I)
"""In PyTorch's errors on tensors of different types."""
_INTEGERS = {
    torch.uint8: r"byte|unsigned char|uint8",
    torch.int8: r"char|int8",
    torch.int16: r"short|int16",
    torch.int32: r"int|int32",
    torch.int64: r"long|long int|long long|int64",
    torch.bool: r"bool",
}
"""The types that have to be converted, with their names in these errors."""


@dataclass(frozen=True)
class Signature:
    """The parameters of a model's `forward`."""

    positional: tuple[Parameter, ...] = ()
    by_keyword: tuple[Parameter, ...] = ()
    """Those that can only be passed by name."""
    any_position: bool = False
    any_keyword: bool = False
    source: inspect.Signature | None = None
    """What Python says of it; None if it does not say."""

    @classmethod
    def of(cls, model: nn.Module) -> "Signature":
        """That of the model; of a wrapper that passes everything on, that of the model in it."""
        signature = cls(any_position=True, any_keyword=True)
        seen: set[int] = set()
        while id(model) not in seen:
            seen.add(id(model))
            try:
                source = inspect.signature(model.forward)
            except (TypeError, ValueError):  # not written in Python
                break
            parameters = source.parameters.values()
            signature = cls(
                tuple(
                    p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
                ),
                tuple(p for p in parameters if p.kind is p.KEYWORD_ONLY),
                any(p.kind is p.VAR_POSITIONAL for p in parameters),
                any(p.kind is p.VAR_KEYWORD for p in parameters),
                source,
            )
            if signature.positional or signature.by_keyword:
                break
            model = _wrapped(model)
        return signature

    @property
    def required(self) -> int:
        """Number of positional parameters without a default."""
        return sum(p.default is p.empty for p in self.positional)

    @property
    def names(self) -> dict[str, Parameter]:
        """The parameters that can be passed by name."""
        parameters = (*self.positional, *self.by_keyword)
        return {p.name: p for p in parameters if p.kind is not p.POSITIONAL_ONLY}

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether these are arguments that it can be called with."""
        if self.source is None:
            return True
        try:
            self.source.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def __str__(self) -> str:
        parts = [
            p.name if p.default is p.empty else f"{p.name}={p.default!r:.20}"
            for p in self.positional
        ]
        if len(parts) > _SHOWN:
            return f"forward({', '.join(parts[:_SHOWN])}, ...)"
        if self.any_position or self.by_keyword:
            parts.append("*args" if self.any_position else "*")
        parts += [
            p.name if p.default is p.empty else f"{p.name}={p.default!r:.20}"
            for p in self.by_keyword
        ]
        return f"forward({', '.join([*parts, *['**kwargs'] * self.any_keyword])})"


class BatchReader:
    """Makes the arguments of one model's `forward` from batches.

    Make it before the model is watched, and in the mode in which it will run, or say with
    `in_training` which that is. Floating-point tensors become `dtype`. Raises ModelError for a
    model without values.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype | None = None,
        in_training: bool | None = None,
    ) -> None:
        self._model = model
        self._in_training = in_training
        self._signature = Signature.of(model)
        tensors = [*model.parameters(), *model.buffers()]
        self._device = tensors[0].device if tensors else torch.device("cpu")
        self._weights = {p.dtype for p in model.parameters() if p.is_floating_point()}
        self.dtype = dtype
        """Set by `settle` where the model refuses floating-point inputs as they are."""
        self._notes: dict[str, None] = {}
        if any(tensor.is_meta for tensor in tensors):
            raise ModelError(
                f"{type(model).__name__} is on the meta device: its weights have shapes, but no "
                "values. Load them first, as by model.to_empty(device='cpu') and "
                "model.load_state_dict(...)"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what of the batches was left out or cast."""
        return tuple(self._notes)

    def settle(self, batch: Any) -> None:
        """Find out, without a `dtype`, whether the model takes the batch's floating-point tensors.

        If their type is not that of all its weights, it is called once; if it refuses, they are
        cast to the type of the weights from here on. Call it without gradients.
        """
        if self.dtype is not None or len(self._weights) != 1:
            return
        (weights,) = self._weights
        args, kwargs = self.arguments(batch)
        inputs = {t.dtype for t in tensors_of([args, kwargs]) if t.is_floating_point()} - {weights}
        if not inputs:
            return
        try:
            self._model(*args, **kwargs)
        except Exception as error:  # the user's forward may raise anything
            if _OF_DTYPES.search(str(error)):
                self.dtype = weights
                names = ", ".join(sorted(map(_name, inputs)))
                self._notes[
                    f"The data is {names} and the model's weights are {_name(weights)}, so the "
                    f"data was cast to {_name(weights)}."
                ] = None

    def arguments(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments, on the model's device.

        Raises DataError for a batch of which `forward` takes nothing.
        """
        if isinstance(batch, Tensor):  # the common case first: in a scan, each check costs time
            return (self._moved(batch),), {}
        args, kwargs = self._matched(batch)
        return (
            tuple(self._moved(value) for value in args),
            {name: self._moved(value) for name, value in kwargs.items()},
        )

    def refusal(
        self, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
    ) -> str | None:
        """Why the model refused a batch, as far as types and names say it; None if they do not."""
        message, signature = str(error), self._signature
        if isinstance(error, TypeError) and not signature.fits(args, kwargs):
            return (
                f"{signature} does not fit a batch of {described(batch)}. A tuple fills its "
                "parameters without a default in order; a dict fills all by name"
            )
        tensor = next(tensors_of([args, kwargs]), None)
        if tensor is None or not _OF_DTYPES.search(message) or not self._weights:
            return None
        names = _INTEGERS.get(tensor.dtype)
        if names is None and (not tensor.is_floating_point() or tensor.dtype in self._weights):
            return None
        if names is not None and not re.search(rf"\b({names})\b", message, re.I):
            return None  # of a type, but not of this one: an index, for example
        given, expected = _name(tensor.dtype), ", ".join(sorted(map(_name, self._weights)))
        if tensor.dtype == torch.uint8:
            return (
                f"the data is uint8 and the model's weights are {expected}. A cast alone would "
                "feed it values up to 255: convert and scale the data as for training, for "
                "example x.float() / 255"
            )
        if names is not None:
            return (
                f"{signature} was given {given} first, and the model's weights are {expected}. If "
                "these are labels, put the inputs first; if they are the inputs, convert them, for "
                "example by x.float()"
            )
        return (
            f"the data is {given} and the model's weights are {expected}. Convert one of them, or "
            "pass dtype= (--dtype)"
        )

    @property
    def _is_training(self) -> bool:
        return self._model.training if self._in_training is None else self._in_training

    def _moved(self, value: Any) -> Any:
        return moved(value, self._device, self.dtype)

    # What forward gets

    def _matched(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        signature = self._signature
        first = signature.positional[0] if signature.positional else None
        if isinstance(batch, PackedSequence) or _declares(first, batch):
            return (batch,), {}
        values = named_values(batch)
        if isinstance(batch, list | tuple) and (values is None or not self._takes_one_of(values)):
            return self._in_order(batch, first)
        if values is None:
            return (batch,), {}
        is_mapping = isinstance(batch, Mapping)
        by_name = self._takes_one_of(values) or (is_mapping and signature.any_keyword)
        if not is_mapping and not is_dataclass(batch) and not is_named_tuple(batch):
            by_name = by_name and signature.required > 1  # a graph
        if by_name:
            return (), self._by_name(values)
        if signature.required > 1 or not (signature.positional or signature.any_position):
            raise DataError(
                f"{signature} takes none of the names in the batch: {described(batch)}. Name the "
                "values as its parameters"
            )
        return (batch,), {}

    def _takes_one_of(self, names: Any) -> bool:
        return not self._signature.names.keys().isdisjoint(names)

    @property
    def _takes_one(self) -> bool:
        signature = self._signature
        return len(signature.positional) == 1 and not signature.any_position

    def _in_order(
        self, batch: Any, first: Parameter | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not batch:
            raise DataError(
                f"a batch is an empty {type(batch).__name__}; expected the inputs as its first "
                "element"
            )
        signature = self._signature
        if signature.required < 2 and _is_list_of_samples(batch):
            return (batch,), {}
        head = named_values(batch[0]) if isinstance(batch[0], Mapping) else None
        if head is not None and (self._takes_one_of(head) or signature.required < 2):
            self._note_rest(batch, 1)
            return self._matched(batch[0])
        inner = batch[0]
        if isinstance(inner, list | tuple) and len(inner) == signature.required > 1:
            self._note_rest(batch, 1)  # ((left, right), labels)
            return tuple(inner), {}
        taken = max(signature.required, 1)
        if self._is_training:
            while taken < len(signature.positional) and _is_label(signature.positional[taken]):
                taken += 1
        self._note_rest(batch, taken)
        return tuple(batch[:taken]), {}

    def _note_rest(self, batch: Any, taken: int) -> None:
        signature = self._signature
        if len(batch) <= taken or (self._takes_one and _are_inputs_and_labels(batch)):
            return
        which = "value" if taken == 1 else f"{taken} values"
        note = (
            f"Of the {len(batch)} values in a batch, {signature} was given the first {which}; the "
            "rest was taken for labels and left out."
        )
        optional = [p.name for p in signature.positional[taken:] if not _is_label(p)]
        if optional:
            note += f" To fill {', '.join(optional[:3])} too, make each batch a dict of names."
        if taken == 1 and None not in (kinds := set(map(_kind, batch))) and len(kinds) == 1:
            note += " If it is a list of samples, wrap it in a tuple: (samples,)."
        self._notes[note] = None

    def _by_name(self, values: Mapping[str, Any]) -> dict[str, Any]:
        names, training = self._signature.names, self._is_training
        passed, untaken, labels = {}, [], []
        for name, value in values.items():
            parameter = names.get(name)
            if parameter is None and not self._signature.any_keyword:
                untaken.append(name)
            elif name in LABEL_NAMES and (
                parameter is None or not (training or parameter.default is Parameter.empty)
            ):
                labels.append(name)
            else:
                passed[name] = value
        if untaken:
            self._notes[
                f"Left out of each batch, because {self._signature} does not take it: "
                f"{', '.join(untaken)}."
            ] = None
        if labels:
            self._notes[
                f"Left out of each batch, because only the loss needs it: {', '.join(labels)}."
            ] = None
        return passed


def _wrapped(model: nn.Module) -> nn.Module:
    """The model that a wrapper calls; the wrapper itself if that is not known."""
    for name in _WRAPPED:
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return inner
    children = list(model.children())
    return children[0] if len(children) == 1 else model


def _is_label(parameter: Parameter) -> bool:
    return parameter.name in LABEL_NAMES


def _declares(parameter: Parameter | None, batch: Any) -> bool:
    """Whether a parameter is declared as the type of this batch, or a list of tensors as a list."""
    if parameter is None or parameter.annotation is Parameter.empty:
        return False
    declared = parameter.annotation
    if isinstance(declared, str):
        text = declared.rpartition(".")[2] if "[" not in declared else declared
    elif isinstance(declared, type) and not hasattr(declared, "__origin__"):
        text = declared.__name__
    else:
        text = str(declared)
    if type(batch) is list:
        starts = re.match(r"(\w+\.)*(list|List|Sequence|Iterable)\b", text)
        return starts is not None and all(_kind(item) is not None for item in batch)
    return type(batch) not in (tuple, dict) and text == type(batch).__name__


def _kind(value: Any) -> tuple[int, Any] | None:
    """Number of axes and type of a tensor or array; None for anything else."""
    return (value.ndim, value.dtype) if isinstance(value, Tensor | np.ndarray) else None


def _are_inputs_and_labels(batch: Any) -> bool:
    """Whether two values have as many rows, and are not two samples of one shape in a list."""
    if len(batch) != 2 or None in map(_kind, batch) or not all(value.ndim for value in batch):
        return False
    first, second = map(torch.as_tensor, batch)
    are_alike = first.shape == second.shape and first.dtype == second.dtype
    return first.size(0) == second.size(0) and not (are_alike and first.is_floating_point())


def _is_list_of_samples(batch: Any) -> bool:
    """Whether a list holds tensors of one kind that differ in length, as inputs and labels of the
    same samples do not.
    """
    kinds = {_kind(item) for item in batch}
    return (
        type(batch) is list
        and len(kinds) == 1
        and None not in kinds
        and all(item.ndim for item in batch)
        and len({len(item) for item in batch}) > 1
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

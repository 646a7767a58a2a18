"""One call of an operator in a forward that is followed, as the dispatcher makes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from reludiag.sites.torch_internals import operator_arguments, operator_name

BIASED = frozenset({"addmm", "baddbmm", "addmm_activation", "sparse_addmm"})
PRODUCTS = frozenset({"mm", "bmm", "linear"}) | BIASED
"""Matrix products; what is added is the first argument of those that are biased."""
_PLAIN = frozenset(
    {
        *("view", "unsafe_view", "reshape", "squeeze", "unsqueeze", "alias", "detach", "clone"),
        *("to_copy", "flatten", "permute", "transpose", "t", "expand", "select", "unbind", "slice"),
        *("split", "split_with_sizes", "chunk", "index", "index_select", "gather", "cat", "stack"),
        *("copy", "sum", "mean", "amax", "amin", "max", "min", "sort", "topk", "cumsum"),
    }
)


@dataclass(frozen=True)
class OperatorCall:
    """A call of an operator. What follows a forward adds what it knows of the inputs."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def name(self) -> str:
        """The dispatcher's, without underscores around it: `relu` for `relu_`."""
        return operator_name(self.function).strip("_")

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
    def in_place(self) -> bool:
        return operator_name(self.function).endswith("_")

    @property
    def is_pointwise(self) -> bool:
        return torch.Tag.pointwise in self.function.tags

    @property
    def is_plain(self) -> bool:
        """Whether it moves, compares or combines single elements, unlike the product of a layer."""
        return self.is_pointwise or self.name in _PLAIN

    @property
    def is_quantized(self) -> bool:
        """Whether its weight is packed in an object that is not a tensor."""
        return "quantized::" in self.function.name()

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """The left and the right one of a matrix product."""
        first = 1 if self.name in BIASED else 0
        left, right = self.args[first : first + 2]
        return left, right

    def dim(self, ndim: int) -> int:
        """The axis that it is called with, in a tensor of `ndim` axes."""
        return int(self.arguments["dim"]) % ndim


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)

"""A call of an operator in a followed forward, and what is known of its input tensors."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from reludiag.sites.consumers import Kind
from reludiag.sites.operator_call import OperatorCall

# Operators by their dispatcher's names without underscores around them, which say "in place".
RESHAPES = frozenset(
    {
        *("view", "unsafe_view", "reshape", "reshape_alias", "squeeze", "unsqueeze", "alias"),
        *("detach", "clone", "to_copy", "contiguous", "lift_fresh"),
    }
)
MOVES_VIEWS = frozenset(
    {
        *("permute", "transpose", "t", "movedim", "expand", "select", "unbind", "slice", "split"),
        *("split_with_sizes", "chunk", "narrow", "unfold", "diagonal"),
    }
)
MOVES_COPIES = frozenset(
    {
        *("flip", "roll", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
        *("native_channel_shuffle", "index_select", "index", "unsafe_index", "gather"),
        *("split_copy", "split_with_sizes_copy", "permute_copy", "expand_copy"),
    }
)
OVERWRITES = frozenset({"copy", "fill", "zero"})

SHAPES = re.compile(r".*_like|new_(?:empty|zeros|ones|full).*")
BATCH_NORM = re.compile(r".*batch_norm(?:_legit)?(?:_no_training|_with_update|_no_update|_elemt)?")


class EndError(Exception):
    """The units of a site go no further as such."""

    def __init__(self, kind: Kind, parameter: str | None = None) -> None:
        super().__init__()
        self.kind, self.parameter = kind, parameter


@dataclass(frozen=True)
class Trace:
    """The units of one site in one tensor."""

    labels: Tensor
    through: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weight:
    """The part of a parameter that a tensor is."""

    path: str
    axes: tuple[int | None, ...] | None
    """For each axis of the tensor that of the parameter; None where it was computed from it."""
    bounds: tuple[tuple[int, int], ...] = ()
    """What it has of each axis of the parameter: (start, stop)."""
    shape: tuple[int, ...] = ()

    def part(self, axis: int | None) -> tuple[tuple[int, int, int], ...]:
        """Where it is sliced along other axes than this one."""
        return tuple(
            (other, *self.bounds[other])
            for other, length in enumerate(self.shape)
            if other != axis and self.bounds[other] != (0, length)
        )


@dataclass(frozen=True)
class OperatorInput:
    """A tensor that an operator gets, as it was before the call."""

    tensor: Tensor
    shape: tuple[int, ...]
    traces: Mapping[int, Trace]
    lost: Mapping[int, tuple[str, ...]]
    shaped_by: frozenset[int]
    weight: Weight | None


@dataclass(frozen=True)
class Operation(OperatorCall):
    """A call of an operator, before it has run."""

    inputs: Mapping[int, OperatorInput]
    """By the identity of the tensor."""
    targets: frozenset[int]
    """Identities of the tensors that it writes to."""

    def of(self, *names: str) -> OperatorInput | None:
        """The tensor among these arguments, the first that there is."""
        for name in names:
            value = self.arguments.get(name)
            if isinstance(value, Tensor):
                return self.inputs[id(value)]
        return None

    def only(self, site: int, argument: OperatorInput | None) -> Trace:
        """The trace of a site, which no other tensor may have. Raises EndError if one has."""
        if argument is None or site not in argument.traces or len(self.having(site)) > 1:
            raise EndError("unknown")
        return argument.traces[site]

    def having(self, site: int) -> list[OperatorInput]:
        """The tensors with a trace of a site."""
        return [argument for argument in self.inputs.values() if site in argument.traces]

    def through(self, site: int) -> tuple[str, ...]:
        """The operators that a site's value has come through to here."""
        ways = (argument.traces[site].through for argument in self.having(site))
        return tuple(dict.fromkeys(itertools.chain(*ways)))


def plain_name(operator: str) -> str:
    """The name of an operator without what says how it is done."""
    name = operator.removeprefix("native_").removeprefix("unsafe_").removesuffix("_with_indices")
    if "batch_norm" in name:
        return "batch_norm"
    if "convolution" in name:
        return "convolution"
    return {"local_scalar_dense": "item", "prelu_kernel": "prelu"}.get(name, name)

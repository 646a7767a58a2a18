"""Step samples: a few numbers of every weight, read before and after each step of an optimizer.

What changed in a step is its update; what changed between two steps was edited from outside. The
weights are not copied: short pieces of each parameter, at fixed places, go into one row of a ring,
by one call for all of them. The norms of the changes are computed for many steps at once, on the
device, and come to the host at snapshots only.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reludiag.sites.torch_internals import DisableTorchFunction

Floats = np.ndarray[Any, np.dtype[np.float64]]

PIECES, LENGTH = 4, 32
"""Of a matrix or a kernel, this many pieces of so many numbers; of a vector one piece as long as
these together. A step has to fetch each piece from memory: more pieces cost more than longer ones.
"""
ROWS = 32
"""Steps between two computations of norms."""
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class StepNorms:
    """What some consecutive steps did to the sampled weights."""

    steps: Sequence[int]
    rates: Floats
    """`[step]`: the largest learning rate of the optimizer; NaN if it is kept on the device."""
    weights: Floats
    """`[step, parameter]`: norm of the sample before the step."""
    updates: Floats
    """Norm of its change in the step, of the same shape."""
    edits: Floats
    """Norm of its change between the last step and this one; NaN where that is not known."""


class StepSamples:
    """Reads the weights of one optimizer before and after each of its steps."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, left_out: Collection[int] = ()
    ) -> None:
        """Of the parameters of `model` that `optimizer` trains, without those with these ids."""
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        mine -= {*left_out}
        named = {n: p for n, p in model.named_parameters() if id(p) in mine and _is_plain(p)}
        self.names = tuple(named)
        """Of the parameters, in the order of the columns of `StepNorms`."""
        self.is_matrix = np.array([p.ndim > 1 for p in named.values()], dtype=bool)
        self._optimizer, self._parameters = optimizer, tuple(named.values())
        self._rings: list[_Ring] = []
        """One for each device and type of numbers."""
        self._pointers: list[int] = []
        self._is_on_cuda = False
        self._row = 0
        """The next row of the rings."""
        self._is_read = False
        """Whether the weights before the step that is being taken have been read."""
        self._steps: list[int] = []
        self._rates: list[float] = []
        self._blocks: list[tuple[Tensor, ...]] = []

    def begin(self) -> None:
        """The weights are now as before the first step: what changes until then is edited."""
        if self._parameters and not self._is_capturing():
            self._find_pieces()
            for ring in self._rings:
                ring.read_after(-1)

    def before(self) -> None:
        """A step begins."""
        if not self._parameters or self._is_capturing():
            return
        if self._row == ROWS:
            self._reduce()
        if [parameter.data_ptr() for parameter in self._parameters] != self._pointers:
            self._find_pieces()  # a tensor was replaced, or the model moved
        for ring in self._rings:
            ring.read_before(self._row)
        self._is_read = True

    def after(self, step: int) -> None:
        """A step has ended."""
        if not self._is_read or self._is_capturing():
            return
        self._is_read = False
        for ring in self._rings:
            ring.read_after(self._row)
        self._row += 1
        rates = [group["lr"] for group in self._optimizer.param_groups]
        self._steps.append(step)
        self._rates.append(max((r for r in rates if isinstance(r, float | int)), default=np.nan))

    def take(self) -> StepNorms:
        """What the steps since the last call did. It waits for the device."""
        if self._row:
            self._reduce()
        tables: list[Floats] = []
        for index in range(3):
            blocks = [block[index].double().cpu().numpy() for block in self._blocks]
            tables.append(np.concatenate(blocks or [np.zeros((0, len(self.names)))]))
        weights, updates, edits = tables
        rates = np.array(self._rates, dtype=np.float64)
        norms = StepNorms(self._steps, rates, weights, updates, edits)
        self._steps, self._rates, self._blocks = [], [], []
        return norms

    def _is_capturing(self) -> bool:
        """Whether a CUDA graph is recorded: it must not read the weights again and again."""
        return self._is_on_cuda and torch.cuda.is_current_stream_capturing()

    def _find_pieces(self) -> None:
        self._pointers = [parameter.data_ptr() for parameter in self._parameters]
        self._is_on_cuda = any(parameter.is_cuda for parameter in self._parameters)
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, parameter in enumerate(self._parameters):
            kinds.setdefault((parameter.device, parameter.dtype), []).append(index)
        old = {(ring.kind, ring.columns): ring for ring in self._rings}
        if self._row and {*old} != {(kind, tuple(columns)) for kind, columns in kinds.items()}:
            self._reduce()  # the model was moved
        self._rings = []
        for kind, columns in kinds.items():
            parameters = [self._parameters[index] for index in columns]
            ring = old.get((kind, tuple(columns))) or _Ring(kind, columns, parameters)
            ring.find(parameters)
            self._rings.append(ring)

    def _reduce(self) -> None:
        rows, self._row = self._row, 0
        parts = [ring.reduce(rows) for ring in self._rings]
        order = np.argsort(np.concatenate([ring.columns for ring in self._rings]))
        home = parts[0][0].device  # of several devices, the first takes them all
        tables = [torch.cat([part[index].to(home) for part in parts], dim=1) for index in range(3)]
        columns = torch.as_tensor(order, device=home)
        self._blocks.append(tuple(table[:, columns] for table in tables))


class _Ring:
    """Samples of the parameters of one device and type, in the last steps."""

    def __init__(
        self,
        kind: tuple[torch.device, torch.dtype],
        columns: Sequence[int],
        parameters: Sequence[Tensor],
    ) -> None:
        self.kind, self.columns = kind, tuple(columns)
        sizes = [sum(len(piece) for piece in _pieces(p)) for p in parameters]
        self._sizes = torch.tensor(sizes, device=kind[0])
        self._starts = np.cumsum([0, *sizes[:-1]])
        shape = (ROWS + 1, sum(sizes))
        self._before, self._after = (
            torch.full(shape, torch.nan, device=kind[0], dtype=kind[1]) for _ in range(2)
        )
        """Row 0 of the second is of the step before the first; that of the first is not used."""
        # NumPy joins many short pieces in a tenth of the time, and is no operator that is seen.
        is_host = kind[0].type == "cpu"
        self._memory_of = _as_array if is_host else _as_it_is
        self._join: Any = np.concatenate if is_host else _cat
        self._before_rows = [self._memory_of(row) for row in self._before]
        self._after_rows = [self._memory_of(row) for row in self._after]
        self._pieces: list[Any] = []

    def find(self, parameters: Sequence[Tensor]) -> None:
        """Find the pieces in the memory of these parameters."""
        with DisableTorchFunction():
            self._pieces = [
                self._memory_of(piece) for parameter in parameters for piece in _pieces(parameter)
            ]

    def read_before(self, row: int) -> None:
        self._join(self._pieces, out=self._before_rows[row + 1])

    def read_after(self, row: int) -> None:
        self._join(self._pieces, out=self._after_rows[row + 1])

    def reduce(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Norms of the weights, the updates and the edits, each `[row, parameter]`."""
        with DisableTorchFunction():
            before, after = self._before[1 : rows + 1].float(), self._after[: rows + 1].float()
            changes = before, after[1:] - before, before - after[:-1]
            self._after[0] = self._after[rows]
            weights, updates, edits = (self._norms(change) for change in changes)
        return weights, updates, edits

    def _norms(self, rows: Tensor) -> Tensor:
        if rows.device.type == "cpu":
            with np.errstate(over="ignore", invalid="ignore"):
                sums = np.add.reduceat(np.square(rows.numpy()), self._starts, axis=1)
            return torch.from_numpy(np.sqrt(sums))
        squares = rows.square().t().contiguous()
        return torch.segment_reduce(squares, "sum", lengths=self._sizes).t().sqrt()


def _as_array(x: Tensor) -> np.ndarray[Any, Any]:
    """The same memory for NumPy, which has no bfloat16."""
    return (x.view(torch.int16) if x.dtype is torch.bfloat16 else x).numpy()


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _cat(pieces: list[Tensor], out: Tensor) -> None:
    with DisableTorchFunction():
        torch.cat(pieces, out=out)


def _is_plain(parameter: Tensor) -> bool:
    """Whether its memory can be read in pieces: not that of a shard, or of a sparse tensor."""
    with DisableTorchFunction():
        data = parameter.detach()
    return (
        type(parameter) in (nn.Parameter, Tensor)
        and type(data) is Tensor
        and data.layout is torch.strided
        and data.device.type in ("cpu", "cuda")
        and data.dtype in _DTYPES
        and data.numel() > 0
        and _flat(data) is not None
    )


def _flat(data: Tensor) -> Tensor | None:
    """Its memory as a vector; None if there are gaps in it."""
    if data.is_contiguous():
        return data.view(-1)
    turned = data.permute(sorted(range(data.ndim), key=data.stride, reverse=True))
    return turned.view(-1) if turned.is_contiguous() else None  # as of channels_last


def _pieces(parameter: Tensor) -> list[Tensor]:
    """The pieces of its memory that are read, evenly spread."""
    with DisableTorchFunction():
        flat = _flat(parameter.detach())
        assert flat is not None
        whole = PIECES * LENGTH
        if len(flat) <= whole:
            return [flat]
        if parameter.ndim == 1:
            middle = (len(flat) - whole) // 2
            return [flat[middle : middle + whole]]
        gap = (len(flat) - LENGTH) // (PIECES - 1)
        return [flat[index * gap : index * gap + LENGTH] for index in range(PIECES)]

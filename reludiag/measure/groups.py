"""Groups: rows of a batch that are not independent of each other, and so count as one sample."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reludiag.errors import DataError
from reludiag.loading.model_inputs import ModelInputs

Groups = str | Callable[[Any], Any]
"""The name of a key or attribute of a batch with the group of each row, or a function of a batch
that returns these."""

GRAPH_KEY = "batch"
"""Where graph libraries keep the number of the graph of each node."""


class Grouping:
    """Numbers the groups of the rows of one batch after the other."""

    def __init__(self, groups: Groups | None) -> None:
        self._groups = groups
        self._numbers: dict[Any, int] = {}
        self.count = 0
        """Number of groups so far."""
        self.name = groups if isinstance(groups, str) else ""
        """The key that the groups are from, if it is known."""

    @property
    def is_global(self) -> bool:
        """Whether the same group may come again in a later batch."""
        return self._groups is not None

    def of(self, batch: Any, rows: int) -> tuple[Tensor, int] | None:
        """The group of each row of a batch, `[row]`, and the number of groups so far.

        Groups that the user names are the same in all batches. The graphs of a batch are numbered
        anew in each, so the numbers are those of this batch. None if each row is a sample.
        """
        if isinstance(batch, ModelInputs):  # as many rows for each model
            batch = batch.batch
        if self._groups is None:
            ids = _graph_of_each_node(batch, rows)
            if ids is None:
                return None
            self.name = GRAPH_KEY
            distinct, numbers = np.unique(ids.cpu().numpy(), return_inverse=True)
            self.count += len(distinct)
            return torch.from_numpy(numbers), len(distinct)
        ids = self._named(batch)
        try:
            if ids is None:
                raise TypeError
            values = ids.tolist() if isinstance(ids, Tensor) else np.asarray(ids).tolist()
            if len(values) != rows:
                raise TypeError
            for value in values:
                self._numbers.setdefault(value, len(self._numbers))
        except TypeError:
            what = f"{self._groups!r}" if isinstance(self._groups, str) else "The function"
            raise DataError(
                f"groups: {what} gives no group for each of the {rows:,} rows of a batch; "
                "expected a tensor of as many integers"
            ) from None
        self.count = len(self._numbers)
        return torch.tensor([self._numbers[value] for value in values]), self.count

    def _named(self, batch: Any) -> Any:
        if callable(self._groups):
            return self._groups(batch)
        parts = batch if isinstance(batch, list | tuple) else (batch,)
        named = (_field(part, str(self._groups)) for part in (batch, *parts))
        return next((ids for ids in named if ids is not None), None)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _graph_of_each_node(batch: Any, rows: int) -> Tensor | None:
    if isinstance(batch, Tensor):
        return None
    first = batch[0] if isinstance(batch, list | tuple) and batch else batch
    ids = None if isinstance(first, Tensor) else _field(first, GRAPH_KEY)
    if not isinstance(ids, Tensor) or ids.shape != (rows,):
        return None
    return None if ids.is_floating_point() or ids.dtype == torch.bool else ids

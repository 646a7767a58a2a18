"""Whether what a site outputs does nothing but leave the model: known of any forward that is
followed, at no cost. What else reads units takes a `ConsumerTracker`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from reludiag.sites.consumers import Consumer
from reludiag.sites.operation import MOVES_VIEWS, RESHAPES, plain_name
from reludiag.sites.torch_internals import storage_of

_RETURNED = (Consumer("output", "output"),)


class ReturnTracker:
    """Remembers in which memory sites' outputs are, as long as no operator reads them.

    Views, reshapes and copies of an output are it as well.
    """

    def __init__(self) -> None:
        self._sites: dict[int, int] = {}
        """Memory -> site."""

    def begin(self, site: int, output: Tensor) -> None:
        """A site's output."""
        self._sites[storage_of(output)] = site

    def follow(self, name: str, inputs: Iterable[int], outputs: Iterable[int]) -> None:
        """An operator that read one piece of memory and has written another."""
        if not self._sites:
            return
        inputs = set(inputs)
        moves = plain_name(name.strip("_")) in RESHAPES | MOVES_VIEWS
        read = [self._sites[storage] for storage in inputs if storage in self._sites]
        for storage in outputs:
            if storage not in inputs:  # an earlier tensor may have been in this memory
                self._sites.pop(storage, None)
                if moves and read:
                    self._sites[storage] = read[0]
        if not moves:
            for site in read:
                for storage in [key for key, other in self._sites.items() if other == site]:
                    del self._sites[storage]

    def end(self, output: Any) -> dict[int, tuple[Consumer, ...]]:
        """The sites whose outputs the model returned, unread, with that as their only consumer."""
        storages = {storage_of(tensor) for tensor in returned_tensors(output)}
        return {site: _RETURNED for storage, site in self._sites.items() if storage in storages}


def returned_tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in what a forward returned: in containers, and in attributes of objects."""
    waiting, identities = [output], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in identities:
            continue
        identities.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif hasattr(value, "__dict__") and not callable(value):
            waiting += vars(value).values()

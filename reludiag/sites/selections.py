"""Selections: which site takes all that goes on of another one, as a top-k does of a ReLU's output.

The two have the same units: a unit may fire at the ReLU and never be selected, so that nothing of
it arrives at what follows. `SelectionTracker` sees the operators of a forward that is followed, and
knows of each piece of memory the sites whose values are in it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from reludiag.sites.operation import MOVES_COPIES, MOVES_VIEWS, RESHAPES, SHAPES, plain_name
from reludiag.sites.returned import returned_tensors
from reludiag.sites.site import Rectifier
from reludiag.sites.torch_internals import storage_of

_RANKS = frozenset({"topk", "sort", "kthvalue"})
"""They return values, and indices, which are no values."""
_CHOICES = frozenset({"gather", "take_along_dim"})
_COMPARISONS = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "isnan", "isfinite", "sign"})
"""What they return says where values are, and has none of them."""
_SHARES = {"softmax": -1, "safe_softmax": -1, "sigmoid": -2}
"""What they return is no site's, and has a negative number here."""
_SELECTS = frozenset({"mul", "where", "masked_fill", "index_put", "index_put_impl", "scatter"})
_PASSES = (
    _SELECTS
    | {"relu", "clamp", "clamp_min", "maximum", "threshold", "hardtanh", "div", "dropout"}
    | (RESHAPES | MOVES_VIEWS | MOVES_COPIES) - _CHOICES - {"index", "unsafe_index", "index_select"}
)
"""Operators behind which each value is still in its place, or moved, as that of the same unit."""

Sites = frozenset[int]
_NONE: Sites = frozenset()


@dataclass
class Selections:
    """What a followed forward has shown, by the numbers of sites."""

    sources: dict[int, int] = field(default_factory=dict)
    """Site -> the one that it takes its units from."""
    elsewhere: set[int] = field(default_factory=set)
    """Sites whose output is also read by something else."""
    unseen: set[int] = field(default_factory=set)
    """Sites whose largest values are read by operators behind which units cannot be told."""
    masked: set[int] = field(default_factory=set)
    """Sites whose largest values were taken, and that are read through a mask that is no site."""


class SelectionTracker:
    """Follows the values of sites until something other than a selection reads them."""

    def __init__(
        self, depends: Callable[[int], bool], units_lost: Callable[[Tensor, Tensor], bool]
    ) -> None:
        """`depends(memory)` says whether it depends on any parameter; `units_lost(x, y)` whether
        `x` has units and `y`, made of it, has none.
        """
        self._depends, self._units_lost = depends, units_lost
        self._widths: dict[int, int] = {}
        self._rectifiers: dict[int, Rectifier] = {}
        self._values: dict[int, Sites] = {}
        """Memory -> the sites whose values are in it."""
        self._ranked: dict[int, Sites] = {}
        """Memory -> the sites of which the largest values are in it, by rank or in their places."""
        self._cut: Sites = _NONE
        """The sites of which the largest values were taken."""
        self._fixed: set[int] = set()
        """Memory that depends on nothing but the shape of what a parameter has made: `rand_like`.
        """
        self._chosen: set[int] = set()
        """Memory with values that something selected which depends on parameters."""
        self._found = Selections()

    def is_selected(self, tensor: Tensor) -> bool:
        """Whether this is the output of one site after a selection that layers have made."""
        return storage_of(tensor) in self._chosen

    def is_share(self, rectifier: Rectifier, tensor: Tensor) -> bool:
        """Whether this is shares that a gate picks, as of experts, and no rectifier of latents."""
        memory = storage_of(tensor)
        values = self._values.get(memory, _NONE) | self._ranked.get(memory, _NONE)
        picks = rectifier.activation == "topk"
        return _SHARES["softmax"] in values or (picks and _SHARES["sigmoid"] in values)

    def begin(self, site: int, rectifier: Rectifier, output: Tensor, units: int) -> None:
        """A site's output, before anything reads it."""
        if rectifier.is_asked_for and not rectifier.is_composed:
            return  # it reports what another site has made
        memory = storage_of(output)
        came = (self._values.pop(memory, _NONE) | self._ranked.pop(memory, _NONE)) - {site}
        if len(came) == 1 and rectifier.can_die:
            (source,) = came
            known = self._rectifiers.get(source)
            selects = known is not None and (rectifier.is_composed or known.is_composed)
            is_same = selects and self._widths[source] == units
            if is_same and self._found.sources.setdefault(site, source) == source:
                came = _NONE
        self._found.elsewhere |= came
        self._widths[site], self._rectifiers[site] = units, rectifier
        self._values[memory] = frozenset({site})
        self._chosen.discard(memory)

    def follow(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """An operator that has run; its name is the dispatcher's, without underscores."""
        memories = [storage_of(tensor) for tensor in inputs]
        results = [storage_of(tensor) for tensor in outputs]
        values = _union(self._values, memories)
        ranked = _union(self._ranked, memories)
        depending = {m for m in memories if self._depends(m) and m not in self._fixed}
        is_fixed = SHAPES.fullmatch(name) is not None or not depending
        for memory in results:
            if memory not in memories:  # an earlier tensor may have been there
                self._values.pop(memory, None)
                self._ranked.pop(memory, None)
                self._chosen.discard(memory)
                self._fixed.discard(memory)
                if is_fixed:
                    self._fixed.add(memory)
            elif not is_fixed:
                self._fixed.discard(memory)
        if name in _SHARES:
            for memory in results:
                self._values[memory] = frozenset({_SHARES[name]})
        if not (values or ranked) or SHAPES.fullmatch(name) or name in _COMPARISONS:
            return
        name = plain_name(name)
        if name in _RANKS or (name in _CHOICES and values <= self._cut):
            self._rank(inputs, outputs, results, values, ranked)
        elif name in _PASSES:
            self._pass_on(name, memories, results, values, ranked, depending)
        else:
            self._found.elsewhere |= values
            self._found.unseen |= ranked
            chosen = [memory for memory in memories if memory in self._chosen]
            self._found.masked |= _union(self._values, chosen) & self._cut

    def _rank(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        results: Sequence[int],
        values: Sites,
        ranked: Sites,
    ) -> None:
        if values and self._units_lost(inputs[0], outputs[0]):
            self._cut |= values
            ranked, values = ranked | values, _NONE
        self._keep(results[0], values, ranked)

    def _pass_on(
        self,
        name: str,
        memories: Sequence[int],
        results: Sequence[int],
        values: Sites,
        ranked: Sites,
        depending: set[int],
    ) -> None:
        others = [m for m in depending if m not in self._values and m not in self._ranked]
        was_chosen = any(memory in self._chosen for memory in memories)
        for memory in results:
            self._keep(memory, values, ranked)
            if len(values | ranked) == 1 and (was_chosen or (others and name in _SELECTS)):
                self._chosen.add(memory)

    def _keep(self, memory: int, values: Sites, ranked: Sites) -> None:
        if values:
            self._values[memory] = values
        if ranked:
            self._ranked[memory] = ranked

    def end(self, output: Any) -> Selections:
        """What was found, after a forward that returned `output`."""
        memories = [storage_of(tensor) for tensor in returned_tensors(output)]
        self._found.elsewhere |= _union(self._values, memories)
        self._found.unseen |= _union(self._ranked, memories)
        for sites in (self._found.elsewhere, self._found.unseen, self._found.masked):
            sites.difference_update(_SHARES.values())
        return self._found


class SelectionTable:
    """What all followed forwards have shown together."""

    def __init__(self) -> None:
        self._found = Selections()

    def add(self, found: Selections) -> None:
        """Take in what one forward has shown."""
        known = self._found
        for site, source in found.sources.items():
            if known.sources.setdefault(site, source) != source:
                known.elsewhere |= {source, known.sources[site]}
        known.elsewhere |= found.elsewhere
        known.unseen |= found.unseen
        known.masked |= found.masked

    @property
    def sources(self) -> Mapping[int, int]:
        """Site -> the one that goes on into it, and into nothing else."""
        all_sources = list(self._found.sources.values())
        return {
            site: source
            for site, source in self._found.sources.items()
            if source not in self._found.elsewhere and all_sources.count(source) == 1
        }

    @property
    def unseen(self) -> Iterable[int]:
        """Sites of whose output only a selection goes on, and it is not seen of which units."""
        hidden = (self._found.unseen - self._found.elsewhere) | self._found.masked
        return sorted(hidden - set(self._found.sources.values()))


def _union(sites: Mapping[int, Sites], memories: Iterable[int]) -> Sites:
    found = _NONE
    for memory in memories:
        found |= sites.get(memory, _NONE)
    return found

"""Places: which site a call is of, and where its units are, from the first call to the last.

A call that was met before is found by what owns it and what fed it; of one met for the first time
the unit axis is found.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from reludiag.capture.calls import Place, Reading, Turn
from reludiag.sites.axes import Coordinate, Origin
from reludiag.sites.layout import UNKNOWN_AXIS, Layout, find_layout
from reludiag.sites.provenance import ProvenanceMode
from reludiag.sites.rectifiers import Rectifier
from reludiag.sites.site import Identity, Site, site_names


class Places:
    """The sites of one model, in the order in which they were met.

    `paths` are those of its modules; `unit_axes` as in `Capture`.
    """

    def __init__(
        self, model: nn.Module, paths: Mapping[nn.Module, str], unit_axes: Mapping[str, int]
    ) -> None:
        self.overruled: set[str] = set()
        """Names of `unit_axes` that were met."""
        self.waiting: set[Turn] = set()
        """Calls that are not read until they are met in a pass that is followed."""
        self._model, self._paths, self._unit_axes = model, paths, unit_axes
        self._places: list[Place] = []
        self._found: dict[tuple[Any, ...], tuple[Place, Layout]] = {}
        self._names: list[Site] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def functions(self) -> Counter[tuple[str, str]]:
        """(path of the owner, operator) -> number of places; the operator is empty for a module."""
        return Counter((place.path, place.identity.operator) for place in self._places)

    @property
    def sites(self) -> list[Site]:
        """A name may change when another path through the model is first taken."""
        if self._names is None:
            names = site_names([(place.identity, place.numbers) for place in self._places])
            self._names = [
                Site(
                    key=str(place.identity),
                    name=name,
                    module=place.path,
                    operator=place.identity.operator,
                    rectifier=place.rectifier,
                    unit_axis=place.label,
                    units=place.layout.unit.size,
                    producer=place.producer,
                    norm=place.norm,
                )
                for name, place in zip(names, self._places, strict=True)
            ]
        return self._names

    def find(
        self,
        turn: Turn,
        rectifier: Rectifier,
        output: Tensor,
        samples: int | None,
        following: ProvenanceMode | None,
        waits: bool = False,
    ) -> Reading | None:
        """How the output of a call is read, None if it does not fit its site.

        Notes in `turn` what it found. `following` is what follows this forward, if anything does;
        `waits` says that a call whose axes only that can tell is better met then, and not yet.
        """
        key: tuple[Any, ...] = (turn.owner, turn.operator, turn.producer, turn.ordinal)
        place, layout = self._found.get(key, (None, None))
        shape: tuple[int, ...] = ()
        if layout is not None and not layout.fits(output):
            # Where units are the positions of an axis of varying length, each is a site.
            shape = tuple(output.shape[1:])
            key = (*key, shape)
            place, layout = self._found.get(key, (None, None))
        if waits and layout is not None and layout.of_one and samples != 1:
            self._let_wait(turn)
            return None
        if place is None or layout is None or (following is not None and layout.of_one):
            path = self._paths[turn.owner]
            identity = Identity(
                owner=path or type(self._model).__name__,
                operator=turn.operator,
                fed_by="" if turn.producer is None else self._paths[turn.producer],
                ordinal=turn.ordinal,
                shape=shape,
            )
            origin = None if following is None else following.origin_of(output.detach())
            axis = self._overruled(identity, turn.number, output)
            layout, label = find_layout(output, origin, turn.producer, samples, axis)
            unsure = layout.sample is None or label == UNKNOWN_AXIS
            if waits and (unsure or self.waiting):  # sites are in the order of their first calls
                self._let_wait(turn)
                return None
            if place is None:
                place = self._meet(path, identity, rectifier, layout, label, origin)
            self._found[key] = place, layout
        if turn.number not in place.numbers:
            place.numbers.add(turn.number)
            self._names = None
        reading = Reading(layout, output, samples)
        turn.place, turn.reading = place, reading if reading.fits else None
        return turn.reading

    def _let_wait(self, turn: Turn) -> None:
        self.waiting.add(turn)
        turn.place = turn.reading = None

    def _meet(
        self,
        path: str,
        identity: Identity,
        rectifier: Rectifier,
        layout: Layout,
        label: str,
        origin: Origin | None,
    ) -> Place:
        place = Place(
            index=len(self._places),
            path=path,
            identity=identity,
            rectifier=rectifier,
            layout=layout,
            label=label,
            producer=(origin.producer if origin is not None else None) or identity.fed_by or None,
            norm=origin.norm if origin is not None else None,
        )
        self._places.append(place)
        return place

    def _overruled(self, identity: Identity, number: int, output: Tensor) -> Coordinate | None:
        for name in (
            f"{identity.base}#{number}" if number else identity.base,
            f"{identity.base}@{identity.fed_by}",
        ):
            axis = self._unit_axes.get(name)
            if axis is not None and -output.ndim <= axis < output.ndim:
                self.overruled.add(name)
                return Coordinate(axis % output.ndim, output.shape[axis])
        return None

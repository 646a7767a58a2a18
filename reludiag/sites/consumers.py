"""Consumers: which parameters and operators read a site's units next.

They say what may be cut: a unit can be taken out of a network if every reader of it is known, and
is a parameter from which its entries can be taken as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal["reads", "carries", "tied", "mixes", "output", "state", "unknown"]

KINDS: dict[Kind, str] = {
    "reads": "a weight that sums over the units; the value goes no further as a unit's",
    "carries": "a parameter with entries for each unit, behind which the value goes on: of a "
    "BatchNorm, a depthwise convolution, a scale",
    "tied": "another tensor that the value meets index by index, and whose units can only go "
    "together with these: of a residual sum, a gate",
    "mixes": "an operator in whose result each element comes of several units, without a weight: "
    "a softmax, a mean or a norm over the units, a product of activations",
    "output": "the output of the model",
    "state": "an attribute of a module, which keeps the value after the forward",
    "unknown": "an operator, or a use outside of operators, behind which the units are lost",
}
"""What each kind of consumer is."""
KNOWN: frozenset[Kind] = frozenset({"reads", "carries", "tied"})
"""The kinds that hide no other reader: where all are of these, they are all that read a unit."""
assert set(KINDS) == set(get_args(Kind))


class IndexRange(NamedTuple):
    """A stretch of an axis: from index `start`, each of `units` units has `repeat` indices."""

    start: int
    unit: int
    """The first of these units; the others follow in order."""
    units: int
    repeat: int


@dataclass(frozen=True)
class Consumer:
    """One reader of a site's units."""

    kind: Kind
    operator: str
    """Name of the operator that reads: `convolution`, `addmm`, `batch_norm`, `add`."""
    parameter: str | None = None
    """Path of the parameter or buffer that reads, `fc2.weight`; of several for one tensor, the
    first. None where none does. A weight that is computed from others reads as `unknown`, with one
    of these."""
    axis: int | None = None
    """The axis of the parameter that the units lie along; None if there is no single axis."""
    runs: tuple[IndexRange, ...] = ()
    """Where along that axis each unit is."""
    groups: int = 1
    """Of a grouped convolution. If it reads along axis 1, `runs` speak of its input's channels."""
    part: tuple[tuple[int, int, int], ...] = ()
    """(axis, start, stop): where the parameter was sliced along other axes, what is read of it."""
    other: str | None = None
    """Of a tied value: the module whose weights made the other tensor, None if it is not known."""
    through: tuple[str, ...] = ()
    """The operators between the site and here that may have changed the value."""

    def indices(self, unit: int) -> list[int]:
        """The indices along the axis that are this unit's."""
        return [
            run.start + (unit - run.unit) * run.repeat + index
            for run in self.runs
            if run.unit <= unit < run.unit + run.units
            for index in range(run.repeat)
        ]

    def entries(self, unit: int, shape: Sequence[int]) -> Iterator[tuple[int | slice, ...]]:
        """Indices into the parameter, of this shape, that together give the entries of a unit."""
        if self.axis is None:
            return
        whole: list[int | slice] = [slice(None)] * len(shape)
        for axis, start, stop in self.part:
            whole[axis] = slice(start, stop)
        for index in self.indices(unit):
            entry = list(whole)
            entry[self.axis] = index
            if self.groups > 1 and self.axis == 1:
                group, entry[1] = divmod(index, shape[1])
                rows = shape[0] // self.groups
                entry[0] = slice(group * rows, (group + 1) * rows)
            yield tuple(entry)

    def to_json(self) -> dict[str, Any]:
        """The fields that are not at their defaults, for `from_json`."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Consumer":
        """The reverse of `to_json`, also after a way through JSON."""
        lists = {
            "runs": tuple(IndexRange(*run) for run in content.get("runs", ())),
            "part": tuple(tuple(bounds) for bounds in content.get("part", ())),
            "through": tuple(content.get("through", ())),
        }
        return Consumer(**{**content, **lists})


def only_returned(consumers: Sequence[Consumer] | None) -> bool:
    """Whether all that happens to the units is that the model returns them, as they are.

    Views, reshapes, slices and copies of them are also they. False where the consumers are not
    known.
    """
    return bool(consumers) and all(
        consumer.kind == "output" and not consumer.through for consumer in consumers or ()
    )


def runs_of(labels: Sequence[int], start: int = 0) -> tuple[IndexRange, ...]:
    """The runs of an axis whose entries, from index `start`, are of these units; -1 of none."""
    runs: list[IndexRange] = []
    begin, unit, units, repeat = start, -1, 0, 0  # of the run that is being read
    first = 0
    for index in range(1, len(labels) + 1):
        if index < len(labels) and labels[index] == labels[first]:
            continue
        label, length, at = labels[first], index - first, start + first
        first = index
        goes_on = label == unit + units and length == repeat and at == begin + units * repeat
        if goes_on and unit >= 0:
            units += 1
            continue
        if unit >= 0:
            runs.append(IndexRange(begin, unit, units, repeat))
        begin, unit, units, repeat = at, label, 1, length
    if unit >= 0:
        runs.append(IndexRange(begin, unit, units, repeat))
    return tuple(runs)

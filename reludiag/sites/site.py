"""Sites: the places where rectifiers run, their names, and how their tensors are read.

A site is a rectifier module, or a module that calls a rectifying function, and the ordinal of the
call. Two calls are told apart by the weights that fed them, not by counting alone: on a
data-dependent path the second call of one batch may be the first of the next.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from torch import Tensor, nn

from reludiag.sites.axes import Coordinate, Origin
from reludiag.sites.rectifiers import Rectifier, rectifier_of

UNKNOWN_AXIS = "unknown"


@dataclass(frozen=True)
class Site:
    """One place where a rectifier runs in a forward pass."""

    key: str
    """Tells it from all others of the model, for good; the name is for reading."""
    name: str
    """`layer1.0.relu` for the first call of that module, `layer1.0.relu#1` for the second;
    `encoder.2:relu` for a function called in `encoder.2`."""
    module: str
    """Path of the rectifier module, or of the module that calls the function."""
    operator: str
    """Name of the function, empty for a module."""
    rectifier: Rectifier
    unit_axis: str
    """`1`; `1//49` where units are the blocks of 49 of a flattened axis; `unknown`, where they
    are the positions of the last axis."""
    units: int | None
    """None where the site was never called."""
    producer: str | None
    """Path of the module whose weights feed it."""
    norm: str | None
    """Path of the BatchNorm between the producer and the site, if there is one."""


@dataclass(frozen=True)
class Layout:
    """How to read a site's tensors: where units and samples are in its shape."""

    shape: tuple[int, ...]
    unit: Coordinate
    sample: Coordinate | None
    """None where rows of the batch cannot be told apart: the whole call is one sample."""
    of_one: bool
    """Found in a batch of one sample, where any axis of length one could be the samples'."""

    def rows(self, shape: tuple[int, ...], samples: int | None) -> int:
        """Number of samples in an output of this shape; 1 where they cannot be told apart."""
        if self.sample is None:
            return 1
        size = self.sample.size if samples is None else samples
        found = _refit(self.sample, size, self.shape, shape)
        return 1 if found is None else found.size

    def fits(self, output: Tensor) -> bool:
        """Whether a later output, of other sizes perhaps, has as many units in the same place."""
        shape = output.shape
        if shape == self.shape:
            return True
        return len(shape) == len(self.shape) and (
            self.unit.axis == len(shape)
            or _refit(self.unit, self.unit.size, self.shape, tuple(shape)) is not None
        )


def rectifier_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Rectifier]]:
    """Path, module and description of every rectifier module, leaky ones included."""
    for path, module in model.named_modules():
        rectifier = rectifier_of(module)
        if rectifier is not None:
            yield path, module, rectifier


@dataclass(frozen=True)
class Identity:
    """What makes a site itself: the same in every batch, run and process."""

    owner: str
    """Path of the rectifier module or of the module that calls the function; a class if it is
    the model itself."""
    operator: str
    """Name of the function, empty for a module."""
    fed_by: str
    """The module with weights that ran last before."""
    ordinal: int
    """How many calls of the owner, fed by the same, came before in the same forward."""
    shape: tuple[int, ...] = ()
    """Of the output without its first axis, where units are positions and their number varies."""

    @property
    def base(self) -> str:
        """What all calls of the same rectifier share in their names."""
        return f"{self.owner}:{self.operator}" if self.operator else self.owner

    def __str__(self) -> str:
        return "|".join(map(str, (self.base, self.fed_by, self.ordinal, *self.shape)))


def site_names(sites: Sequence[tuple[Identity, Set[int]]]) -> list[str]:
    """Names of sites, each given with the numbers of its calls among those of its owner.

    `relu#1` is the second call of `relu` in a forward. Where a branch was skipped that does not
    tell the calls apart, but what feeds them does: `relu@left`, `relu@right`. So a name follows
    from the set of paths that were taken, and not from their order.
    """
    claims = Counter((site.base, number) for site, numbers in sites for number in numbers)
    names: list[str] = []
    for site, numbers in sites:
        number = min(numbers, default=0)
        if len(numbers) <= 1 and claims[site.base, number] <= 1:
            name = f"{site.base}#{number}" if number else site.base
        else:
            name = f"{site.base}@{site.fed_by}" if site.fed_by else site.base
            name += f"#{site.ordinal}" if site.ordinal else ""
        if site.shape:
            name += f"[{'x'.join(map(str, site.shape))}]"
        names.append(name)
    return names


def find_layout(
    output: Tensor,
    origin: Origin | None,
    producer: nn.Module | None,
    samples: int | None,
    overruled: Coordinate | None = None,
) -> tuple[Layout, str]:
    """The layout of a site's output, and the label of its unit axis.

    `origin` is what was followed through the forward pass. Where the pass was not followed
    (None), the last module with weights that ran before, `producer`, says where its units are.
    `samples` is the number of rows of the model's input, None if it is not known. `overruled` is
    where the user says that the units are.
    """
    shape = tuple(output.shape)
    if origin is not None:
        unit, sample = origin.unit, origin.sample
    else:
        unit, sample = _axis_after(producer, shape), None
    unit = overruled or unit
    label = UNKNOWN_AXIS if unit is None else str(unit)
    if unit is None:
        unit = Coordinate(output.ndim - 1, shape[-1]) if output.ndim > 1 else Coordinate(1, 1)
    taken = unit.axis == 0 and unit.inner * unit.size == (shape or (1,))[0] and unit.size > 1
    if sample is None and samples is not None and shape[:1] == (samples,) and not taken:
        sample = Coordinate(0, samples)
    return Layout(shape, unit, sample, of_one=samples == 1), label


def arrange(output: Tensor, layout: Layout, samples: int | None) -> Tensor | None:
    """`output` as `[sample, unit, position]`, a view where strides allow; None if it does not fit.

    `layout` was found on an earlier call: the number of samples and of positions may differ.
    `output` is not empty.
    """
    if output.ndim != len(layout.shape):
        return None
    if layout.unit.axis == output.ndim:  # one number per sample: a single unit
        output = output.unsqueeze(-1)
    shape = tuple(output.shape)
    unit = _refit(layout.unit, layout.unit.size, layout.shape, shape)
    if unit is None:
        return None
    sample = layout.sample
    if sample is not None:
        sample = _refit(sample, sample.size if samples is None else samples, layout.shape, shape)
    return _split(output, unit, sample)


def _refit(
    coordinate: Coordinate, size: int, old: tuple[int, ...], new: tuple[int, ...]
) -> Coordinate | None:
    """The coordinate, now of `size`, in a tensor of another shape."""
    axis, inner = coordinate.axis, coordinate.inner
    length = new[axis]
    outermost = axis >= len(old) or old[axis] == coordinate.size * inner
    if outermost and length % size == 0 and (inner > 1 or length == size):
        return Coordinate(axis, size, length // size)
    if not outermost and length % (size * inner) == 0:
        return Coordinate(axis, size, inner)
    return None


def _split(output: Tensor, unit: Coordinate, sample: Coordinate | None) -> Tensor:
    """Split both coordinates out of their axes and bring them to the front."""
    shape: list[int] = []
    found: dict[str, int] = {}
    for axis, length in enumerate(output.shape):
        inside = [("unit", unit)] if unit.axis == axis else []
        if sample is not None and sample.axis == axis:
            inside.append(("sample", sample))
        inside.sort(key=lambda item: (item[1].inner, item[1].size), reverse=True)
        rest = length
        for role, coordinate in inside:
            outer = rest // (coordinate.size * coordinate.inner)
            shape.append(outer)
            found[role] = len(shape)
            shape.append(coordinate.size)
            rest = coordinate.inner
        shape.append(rest)
    parts = output.view(shape)
    front = [found["unit"]] if sample is None else [found["sample"], found["unit"]]
    others = [dim for dim in range(len(shape)) if dim not in front and shape[dim] != 1]
    ones = [dim for dim in range(len(shape)) if dim not in front and shape[dim] == 1]
    parts = parts.permute(front + others + ones)
    if sample is None:
        parts = parts.unsqueeze(0)
    return parts.flatten(2) if parts.ndim > 2 else parts.unsqueeze(2)


def _axis_after(producer: nn.Module | None, shape: tuple[int, ...]) -> Coordinate | None:
    """Where the units of the last module with weights are, checked against its width."""
    width = None
    for attribute in ("out_features", "out_channels", "num_features", "num_channels"):
        width = getattr(producer, attribute, width)
    if width is None:
        return None
    last = isinstance(producer, nn.Linear)
    axis = len(shape) - 1 if last else 1
    if axis < len(shape) and shape[axis] == width:
        return Coordinate(axis, width)
    matches = [axis for axis in range(1, len(shape)) if shape[axis] == width]
    return Coordinate(matches[0], width) if len(matches) == 1 else None

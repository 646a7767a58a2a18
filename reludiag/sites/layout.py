"""Layout: where units and samples are in a site's tensors, and how these are arranged by them.

It is found at a site's first call, and holds for later calls of other sizes.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from reludiag.sites.axes import Axes, Coordinate, Origin, label_of

UNKNOWN_AXIS = "unknown"
"""Label of a unit axis that was not found: the positions of the last axis are the units."""


@dataclass(frozen=True)
class Layout:
    """How to read a site's tensors: the positions of units and samples in its shape."""

    shape: tuple[int, ...]
    unit: Axes
    sample: Coordinate | None
    """None if rows of the batch cannot be distinguished: the whole call is one sample."""
    of_one: bool
    """Found in a batch of one sample, in which any axis of length one could be the sample axis."""

    def rows(self, shape: tuple[int, ...], samples: int | None) -> int:
        """Number of samples in an output of this shape; 1 if they cannot be distinguished."""
        sample = self.sample_in(shape, samples)
        return 1 if sample is None else sample.size

    def sample_in(self, shape: tuple[int, ...], samples: int | None) -> Coordinate | None:
        """Where the samples are in an output of this shape."""
        if self.sample is None or len(shape) != len(self.shape):
            return None
        size = self.sample.size if samples is None else samples
        return _refit(self.sample, size, self.shape, shape)

    def fits(self, output: Tensor) -> bool:
        """Whether a later output, maybe of another size, has the same number of units in the same
        place.
        """
        shape = output.shape
        if shape == self.shape:
            return True
        return len(shape) == len(self.shape) and all(
            unit.axis == len(shape) or _refit(unit, unit.size, self.shape, tuple(shape)) is not None
            for unit in self.unit
        )


def find_layout(
    output: Tensor,
    origin: Origin | None,
    producer: nn.Module | None,
    samples: int | None,
    override: Axes | None = None,
) -> tuple[Layout, str]:
    """The layout of a site's output, and the label of its unit axis.

    `origin` is what was followed through the forward pass. Where the pass was not followed
    (None), the last module with weights that ran before, `producer`, says where its units are.
    `samples` is the number of rows of the model's input, None if it is not known. `override` is
    where the user says that the units are.
    """
    shape = tuple(output.shape)
    if origin is not None:
        unit, sample = origin.unit, origin.sample
    else:
        unit, sample = _axis_after(producer, shape), None
    unit = override or unit
    label = UNKNOWN_AXIS if unit is None else label_of(unit)
    if unit is None:
        unit = (Coordinate(output.ndim - 1, shape[-1]) if output.ndim > 1 else Coordinate(1, 1),)
    is_followed = origin is not None and (origin.sample is not None or origin.order > 0)
    if not is_followed and samples is not None and shape[:1] == (samples,):
        is_unit_axis = any(c.axis == 0 and c.size > 1 and c.spans(shape) for c in unit)
        sample = None if is_unit_axis else Coordinate(0, samples)
    return Layout(shape, unit, sample, of_one=samples == 1), label


def arrange(output: Tensor, layout: Layout, samples: int | None) -> Tensor | None:
    """`output` as `[sample, unit, position]`, a view where strides allow; None if it does not fit.

    `layout` is from an earlier call: the numbers of samples and positions may differ.
    `output` is not empty.
    """
    if output.ndim != len(layout.shape):
        return None
    if layout.unit[-1].axis == output.ndim:  # one number per sample: a single unit
        output = output.unsqueeze(-1)
    shape = tuple(output.shape)
    units: list[Coordinate] = []
    for coordinate in layout.unit:
        unit = _refit(coordinate, coordinate.size, layout.shape, shape)
        if unit is None:
            return None
        units.append(unit)
    sample = layout.sample
    if sample is not None:
        sample = _refit(sample, sample.size if samples is None else samples, layout.shape, shape)
    return _split(output, units, sample)


def _refit(
    coordinate: Coordinate, size: int, old: tuple[int, ...], new: tuple[int, ...]
) -> Coordinate | None:
    """The coordinate, with the new `size`, in a tensor of another shape."""
    axis, inner = coordinate.axis, coordinate.inner
    length = new[axis]
    outermost = axis >= len(old) or old[axis] == coordinate.size * inner
    if outermost and length % size == 0 and (inner > 1 or length == size):
        return Coordinate(axis, size, length // size)
    if not outermost and length % (size * inner) == 0:
        return Coordinate(axis, size, inner)
    return None


def _split(output: Tensor, units: list[Coordinate], sample: Coordinate | None) -> Tensor:
    """Split the coordinates out of their axes and move them to the front, the units as one axis."""
    front = ([] if sample is None else [sample]) + units
    shape: list[int] = []
    places: dict[int, int] = {}
    for axis, length in enumerate(output.shape):
        inside = [index for index, coordinate in enumerate(front) if coordinate.axis == axis]
        inside.sort(key=lambda index: (front[index].inner, front[index].size), reverse=True)
        rest = length
        for index in inside:
            coordinate = front[index]
            shape.append(rest // (coordinate.size * coordinate.inner))
            places[index] = len(shape)
            shape.append(coordinate.size)
            rest = coordinate.inner
        shape.append(rest)
    parts = output.view(shape)
    first = [places[index] for index in range(len(front))]
    others = [dim for dim in range(len(shape)) if dim not in first and shape[dim] != 1]
    ones = [dim for dim in range(len(shape)) if dim not in first and shape[dim] == 1]
    parts = parts.permute(first + others + ones)
    if sample is None:
        parts = parts.unsqueeze(0)
    if len(units) > 1:
        parts = parts.flatten(1, len(units))  # a copy, unless they are side by side in memory
    return parts.flatten(2) if parts.ndim > 2 else parts.unsqueeze(2)


def _axis_after(producer: nn.Module | None, shape: tuple[int, ...]) -> Axes | None:
    """The unit axis of the last module with weights, checked against its width."""
    width = None
    for attribute in ("out_features", "out_channels", "num_features", "num_channels"):
        width = getattr(producer, attribute, width)
    if width is None:
        return None
    last = isinstance(producer, nn.Linear)
    axis = len(shape) - 1 if last else 1
    if axis < len(shape) and shape[axis] == width:
        return (Coordinate(axis, width),)
    matches = [axis for axis in range(1, len(shape)) if shape[axis] == width]
    return (Coordinate(matches[0], width),) if len(matches) == 1 else None

"""How many samples a forward pass has, and which inputs are one sample without a batch axis."""

from typing import Any

from torch import Tensor, nn

from reludiag.loading.batch_contents import samples_in
from reludiag.sites.axes import Coordinate


class SampleCounter:
    """Counts the samples in a forward's arguments.

    PyTorch's layers also take one sample without a batch axis: `[feature]` for a linear layer,
    `[channel, *position]` for a convolution. `note_first_layer` recognizes that, and from then on
    an input with as many axes is one sample to `of`.
    """

    def __init__(self) -> None:
        self._unbatched: set[tuple[nn.Module, int]] = set()
        """Modules at which a pass begins, with the number of axes of one sample."""

    def of(self, root: nn.Module, values: list[Any]) -> int | None:
        """Number of samples; None if it is not known: then a pass is one sample."""
        samples = samples_in(values)
        if samples is not None and self._unbatched and self.is_unbatched(root, shape_of(values)):
            return None
        return samples

    def is_unbatched(self, root: nn.Module, shape: tuple[int, ...]) -> bool:
        """Whether an input of this shape is known to be one sample without a batch axis."""
        return (root, len(shape)) in self._unbatched

    def note_first_layer(
        self,
        root: nn.Module,
        shape: tuple[int, ...],
        layer: nn.Module,
        x: Tensor,
        rows: Coordinate | None,
    ) -> bool:
        """Whether the first layer with weights in a pass takes its input for one sample.

        `shape` is that of the pass's input, `x` the input of the layer, and `rows` where in `x` the
        rows of the pass's input are, if that was followed.
        """
        unbatched = x.dim() == _axes_of_one(layer)
        if rows is not None:
            is_one = _is_in_sample(layer, x, rows)
        else:
            is_one = unbatched and not x.is_nested and tuple(x.shape) == shape
        if is_one:
            self._unbatched.add((root, len(shape)))
        return is_one


def shape_of(values: list[Any]) -> tuple[int, ...]:
    """The shape of the first argument; empty if it is not one tensor."""
    for value in values:
        if isinstance(value, Tensor):
            return () if value.is_nested else tuple(value.shape)
        if isinstance(value, dict):
            return shape_of(list(value.values()))
        if value is not None:
            break
    return ()


def _axes_of_one(layer: nn.Module) -> int:
    """Number of axes of a sample without a batch axis, as PyTorch documents it; 0 if unknown."""
    kernel = getattr(layer, "kernel_size", None)
    if isinstance(kernel, tuple) and hasattr(layer, "in_channels"):
        return len(kernel) + 1
    normalized = getattr(layer, "normalized_shape", None)
    if isinstance(normalized, tuple):
        return len(normalized)
    if isinstance(layer, nn.RNNBase | nn.MultiheadAttention):
        return 2
    if isinstance(layer, nn.RNNCellBase) or hasattr(layer, "in_features"):
        return 1
    return 0


def _is_in_sample(layer: nn.Module, x: Tensor, rows: Coordinate) -> bool:
    """Whether a layer mixes the rows of the input, as it does features and positions."""
    axes = _axes_of_one(layer)
    if hasattr(layer, "in_features"):
        return rows.axis == x.dim() - 1
    if hasattr(layer, "in_channels"):
        return x.dim() == axes or rows.axis != 0
    if hasattr(layer, "normalized_shape"):
        return rows.axis >= x.dim() - axes
    return x.dim() == axes

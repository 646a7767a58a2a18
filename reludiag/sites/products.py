"""Products: which weights a tensor was made with, and which axes of a weight are its units.

A linear layer, a convolution and `x @ W + b` are the same thing: a product of an input with a
weight, to which a bias may be added. A `Product` describes it for everything that reads, measures
or draws weights, whether they are those of a module or plain parameters. These are plain records: a
recording is read without torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SEPARATOR = ", "
"""Between the names of several producers."""
MOST_NAMED = 6
"""Of more producers a report names only these many; a dense network joins dozens."""


@dataclass(frozen=True)
class Convolution:
    """How a convolution is done, as `torch.convolution` takes it."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Product:
    """One product of an input with a weight, and the bias that was added to it."""

    producer: str
    """For a reader: the path of the module if PyTorch has its kind of layer, else the name of the
    parameter."""
    weight: str
    """Name of the parameter, as in `named_parameters`; of a computed weight, the first parameter
    that it is computed from."""
    units: tuple[int, ...] = ()
    """Axes of the weight that number the outputs; empty if they are not known."""
    summed: tuple[int, ...] = ()
    """Axes of the weight that are summed over; of a convolution also those of its kernel. An axis
    that is neither numbers independent products, as of experts."""
    convolution: Convolution | None = None
    bias: str | None = None
    """Name of the parameter that was added to it, one number for each unit."""
    is_whole: bool = True
    """Whether all of the parameter takes part, not only a slice of it."""

    @property
    def is_plain(self) -> bool:
        """Whether the weight is a whole parameter with known axes: it can be read and drawn."""
        return bool(self.units and self.summed) and self.is_whole


def producers_in_words(products: Sequence[Product]) -> str | None:
    """What made a tensor, as tables and recordings name it; None if that is not known."""
    names = dict.fromkeys(product.producer for product in products)
    return SEPARATOR.join(names) if names else None


def shortened(producer: str) -> str:
    """The names of `producers_in_words` for a reader, at most `MOST_NAMED`."""
    names = producer.split(SEPARATOR)
    if len(names) > MOST_NAMED:
        names[MOST_NAMED:] = [f"{len(names) - MOST_NAMED} more"]
    return SEPARATOR.join(names)

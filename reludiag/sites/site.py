"""Sites: the places where rectifiers run, and their names.

A site is a rectifier module, or a module that calls a rectifying function, and the ordinal of the
call. Two calls are distinguished by the weights that fed them, not by counting alone: on a
data-dependent path the second call of one batch may be the first of the next. These are plain
records: a recording is read without torch.
"""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from reludiag.sites.consumers import Consumer


@dataclass(frozen=True)
class Rectifier:
    """How to read the output of one rectifier."""

    activation: str
    """Its name in reports: `ReLU6` for a module, `relu6` for a function."""
    can_die: bool
    """Whether it has a region in which its gradient is zero and its output is 0."""
    signed: bool = False
    """Its output may be negative outside that region, so a unit fires if it is not 0."""
    passes_input: bool = False
    """Its output is its input wherever it fires."""


@dataclass(frozen=True)
class Site:
    """One place where a rectifier runs in a forward pass."""

    key: str
    """Its permanent, unique identity in the model; the name is for humans."""
    name: str
    """`layer1.0.relu` for the first call of that module, `layer1.0.relu#1` for the second;
    `encoder.2:relu` for a function called in `encoder.2`."""
    module: str
    """Path of the rectifier module, or of the module that calls the function."""
    operator: str
    """Name of the function, empty for a module."""
    rectifier: Rectifier
    unit_axis: str
    """`1`; `1,3` if units are on two axes, as the features of several heads; `1//49` if units are
    blocks of 49 along a flattened axis; `unknown` if they are the positions of the last axis.
    """
    units: int | None
    """None if the site was never called."""
    producer: str | None
    """Path of the module whose weights feed it."""
    norm: str | None
    """Path of the BatchNorm between the producer and the site, if there is one."""
    consumers: tuple[Consumer, ...] | None = None
    """What reads the units next, in the forwards that were followed; none where nothing does. None
    where that is not known: it was never called, or its forward was not followed to the end."""


@dataclass(frozen=True)
class Identity:
    """The identity of a site: the same in every batch, run and process."""

    owner: str
    """Path of the rectifier module or of the module that calls the function; a class if it is
    the model itself."""
    operator: str
    """Name of the function, empty for a module."""
    fed_by: str
    """The last module with weights that ran before the call."""
    ordinal: int
    """Number of earlier calls of the owner with the same producer in the same forward pass."""
    shape: tuple[int, ...] = ()
    """Shape of the output without its first axis, if units are positions and their number varies.
    """

    @property
    def base(self) -> str:
        """The common part of the names of all calls of one rectifier."""
        return f"{self.owner}:{self.operator}" if self.operator else self.owner

    def __str__(self) -> str:
        return "|".join(map(str, (self.base, self.fed_by, self.ordinal, *self.shape)))


def site_names(sites: Sequence[tuple[Identity, Set[int]]]) -> list[str]:
    """Names of sites, from their call indices within their owners.

    `relu#1` is the second call of `relu` in a forward pass. If a branch was skipped, the index is
    ambiguous, and the producer is used: `relu@left`, `relu@right`. So a name depends on the set of
    paths that were taken, not on their order.
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

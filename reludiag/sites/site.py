"""Sites: the places where rectifiers run, and their names.

A site is a rectifier module, or a module that calls a rectifying function, and the ordinal of the
call. Two calls are distinguished by the weights that fed them, not by counting alone: on a
data-dependent path the second call of one batch may be the first of the next. These are plain
records: a recording is read without torch.
"""

from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from reludiag.sites.consumers import Consumer
from reludiag.sites.products import SEPARATOR, Product


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
    zero_gradient: str = ""
    """Where its gradient is zero, for a reader; empty if it cannot die, or if this is not known."""
    upper: float | None = None
    """Its largest output, where its gradient is zero again. None if there is none, or it is not
    known."""
    is_composed: bool = False
    """It is made of several operators, each output from the input at the same place."""
    is_asked_for: bool = False
    """Whether the user has registered it, reported its output, or watches its module."""
    is_mask: bool = False
    """Whether it is a mask of what another rectifier returned, by other values than these."""
    off_value: float = 0.0
    """Of a registered one: its output where a unit is off."""
    fired: Callable[[Any, Any], Any] | None = field(default=None, compare=False)
    """Of a registered one: from its input and output, a mask of where units fired."""

    @cached_property
    def has_own_rule(self) -> bool:
        """Whether it takes more than the sign of the output to say where a unit fired."""
        return self.fired is not None or self.off_value != 0


@dataclass(frozen=True)
class Site:
    """One place where a rectifier runs in a forward pass."""

    key: str
    """Its permanent, unique identity in the model; the name is for humans."""
    name: str
    """`layer1.0.relu` for the first call of that module, `layer1.0.relu#1` for the second;
    `encoder.2:relu` for a function called in `encoder.2`; `fc1:relu` for a function that the model
    itself calls on the output of `fc1`."""
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
    """Path of the module whose weights feed it, or the name of the parameter where these are no
    module's of PyTorch. Of several, whose results are joined, all names: `conv2, shortcut`."""
    norm: str | None
    """Path of the BatchNorm between the producer and the site, if there is one."""
    consumers: tuple[Consumer, ...] | None = None
    """What reads the units next, in the forwards that were followed; none where nothing does. None
    where that is not known: it was never called, or its forward was not followed to the end."""
    alias: str = ""
    """Another name of it, which is understood as well: `Net:relu#1`. Empty if it has none."""
    products: tuple[Product, ...] = ()
    """The products with weights that feed it; none if they are not known, as in a recording."""
    is_exact: bool = False
    """Whether its pre-activation is a single product with its bias, to which nothing was done."""
    selects_from: str = ""
    """Name of the rectifier whose output it selects from, if that goes nowhere else: its units are
    the same, and are counted here only. Empty if there is none."""

    @property
    def producers(self) -> tuple[str, ...]:
        """Each of its producers. None of several may be blamed, cut or drawn anew alone."""
        return () if self.producer is None else tuple(self.producer.split(SEPARATOR))

    @property
    def layers(self) -> frozenset[str]:
        """Those of its producers that have weights: a branch may also come from another site."""
        branches = {product.producer for product in self.products if not product.weight}
        return frozenset(self.producers) - branches


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

    @property
    def suffix(self) -> str:
        """The end of its names, if units are positions."""
        return f"[{'x'.join(map(str, self.shape))}]" if self.shape else ""

    def __str__(self) -> str:
        return "|".join(map(str, (self.base, self.fed_by, self.ordinal, *self.shape)))


class NamedCall(NamedTuple):
    """What a site is named by."""

    identity: Identity
    numbers: Set[int]
    """Which call of its owner it was, in each of the forwards that made it."""
    module: str
    """Path of the owner, empty for the model itself."""
    producer: str | None
    """Path of the module whose weights feed it."""

    @property
    def fed_name(self) -> str:
        """`fc1:relu`, for a function that the model calls; `fc1:relu#1` for the second call after
        `fc1`. Empty for any other site: `block:relu` says already in which module it runs.
        """
        identity = self.identity
        if self.module or not identity.operator or not self.producer:
            return ""
        if SEPARATOR in self.producer:  # several feed it together
            return ""
        name = f"{self.producer}:{identity.operator}"
        if identity.ordinal and identity.fed_by == self.producer:
            name += f"#{identity.ordinal}"
        return name + identity.suffix


def site_names(sites: Sequence[NamedCall]) -> list[tuple[str, str]]:
    """Name and alias of each site; the alias is empty if there is none.

    A function that the model itself calls is named after what feeds it, where that is unique:
    `fc1:relu`. Its alias says who calls it, as the names of all others do: `Net:relu`.
    """
    aliases = _call_names(sites)
    claims = Counter(site.fed_name for site in sites)
    names = set(aliases)
    return [
        (site.fed_name, alias)
        if site.fed_name and claims[site.fed_name] == 1 and site.fed_name not in names
        else (alias, "")
        for site, alias in zip(sites, aliases, strict=True)
    ]


def _call_names(sites: Sequence[NamedCall]) -> list[str]:
    """Names of sites, from their call indices within their owners.

    `relu#1` is the second call of `relu` in a forward pass. If a branch was skipped, the index is
    ambiguous, and the producer is used: `relu@left`, `relu@right`. So a name depends on the set of
    paths that were taken, not on their order.
    """
    claims = Counter((site.identity.base, number) for site in sites for number in site.numbers)
    names: list[str] = []
    for identity, numbers, _, _ in sites:
        number = min(numbers, default=0)
        if len(numbers) <= 1 and claims[identity.base, number] <= 1:
            name = f"{identity.base}#{number}" if number else identity.base
        else:
            name = f"{identity.base}@{identity.fed_by}" if identity.fed_by else identity.base
            name += f"#{identity.ordinal}" if identity.ordinal else ""
        names.append(name + identity.suffix)
    return names

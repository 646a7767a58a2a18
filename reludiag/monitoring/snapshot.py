"""Snapshot: the state of all units at a step, as a user's own function gets it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SiteSnapshot:
    """One site at a snapshot, with the numbers of the recording's timeline."""

    name: str
    units: int
    samples: int
    dead: int
    died_units: tuple[int, ...]
    """The units that died since the previous snapshot; `revived` likewise."""
    revived: int
    nonfinite: int
    born_dead: int | None
    """Units dead at step 0; None if the site was not called before the first step."""
    per_pass: bool = False
    """Whether each forward pass counts as one sample here, though it has several."""
    dead_units: tuple[int, ...] = ()
    """The units that are dead now."""
    dormant_units: tuple[int, ...] | None = None
    """The units whose tau-score is now at most 0.025: mean absolute activation over the mean of the
    site (Sokar et al. 2023). Dead units are among them.

    It is of the probe; without one, of the steps since the previous snapshot that have statistics
    (see `stats_every`). None if there was none with this site, as `rare`.
    """
    rare: int | None = None
    """Number of units that fired, but in fewer than 0.1 % of these samples."""
    model: str = ""
    """Name of its model, if several are watched."""

    @property
    def dormant(self) -> int | None:
        """Number of dormant units; None if it is not known."""
        return None if self.dormant_units is None else len(self.dormant_units)

    @property
    def died(self) -> int:
        """Number of units that died since the previous snapshot."""
        return len(self.died_units)


@dataclass(frozen=True)
class Snapshot:
    """The state of the units at a step, as stored in the recording."""

    step: int
    """Optimizer steps taken."""
    previous: int | None
    """Step of the previous snapshot; None at the first."""
    sites: tuple[SiteSnapshot, ...]
    """In the order of their first calls; sites not called since `previous` are left out."""
    learning_rates: Mapping[str, float]
    """The rates of the last step by "optimizer/group"; empty before the first step."""
    largest_rate: float | None
    """The largest learning rate of any step since `previous`."""
    rate_at_deaths: float | None = None
    """The largest at which the units that died may have died: without a probe also of the window
    before, since a unit that dies in a window still fired in it.
    """

    @property
    def units(self) -> int:
        """Units of all sites; `dead`, `died`, `revived` and `nonfinite` also count all sites."""
        return sum(site.units for site in self.sites)

    @property
    def dead(self) -> int:
        """Number of dead units."""
        return sum(site.dead for site in self.sites)

    @property
    def dormant(self) -> int | None:
        """Number of units whose tau-score is at most 0.025, dead ones among them, of the sites of
        which it is known; None if there are none.
        """
        return _sum(site.dormant for site in self.sites)

    @property
    def rare(self) -> int | None:
        """Number of units that fired, but in fewer than 0.1 % of samples; None as for `dormant`."""
        return _sum(site.rare for site in self.sites)

    @property
    def died(self) -> int:
        """Number of units that died since `previous`."""
        return sum(site.died for site in self.sites)

    @property
    def revived(self) -> int:
        """Number of units that came back since `previous`."""
        return sum(site.revived for site in self.sites)

    @property
    def nonfinite(self) -> int:
        """Number of units with a NaN or an infinity: neither dead nor alive."""
        return sum(site.nonfinite for site in self.sites)

    def scalars(self) -> dict[str, float]:
        """The numbers for a metric logger: name -> value; all names begin with `reludiag/`."""
        shares = {
            f"reludiag/{name}_fraction/{site.name}": count / site.units
            for name in ("dead", "rare", "dormant")
            for site in self.sites
            if site.units and (count := getattr(site, name)) is not None
        }
        totals = {
            "dead": self.dead,
            "rare": self.rare,
            "dormant": self.dormant,
            "deaths": self.died,
            "revived": self.revived,
            "born_dead": _sum(site.born_dead for site in self.sites),
        }
        return {
            **shares,
            **{f"reludiag/{name}": float(n) for name, n in totals.items() if n is not None},
            **{f"reludiag/learning_rate/{group}": r for group, r in self.learning_rates.items()},
        }

    def __str__(self) -> str:
        """The deaths since the previous snapshot, as a sentence without the full stop."""
        steps = f"by step {self.step:,}"
        if self.previous is not None:
            steps = f"in steps {self.previous:,}-{self.step:,}"
        highest = self.rate_at_deaths
        rate = "" if highest is None else f", at a learning rate of {highest:g}"
        worst = max(self.sites, key=lambda site: site.died, default=None)
        most = ""
        if worst is not None and worst.died:
            most = f"; most in {worst.name!r}, {worst.died:,} of {worst.units:,}"
            whole = max(site.samples for site in self.sites if site.model == worst.model)
            if worst.samples < whole and not worst.per_pass:
                most += f", which {worst.samples:,} of {whole:,} samples reached"
        return f"{self.died:,} of {self.units:,} units died {steps}{rate}{most}"


def _sum(counts: Iterable[int | None]) -> int | None:
    """Of the known ones; None if none is known."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None

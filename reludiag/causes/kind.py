"""Kind of cause: its name, the rules that attribute deaths to it, and its words in reports.

A new kind is a file beside this one that defines a `CauseKind`, and a row of `all_kinds`. All else
follows from it: which cause a report names, its words, and the tables of the documentation.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from reludiag.causes.cause import Change, Evidence, text_of
from reludiag.causes.site_lives import Mask, SiteLives, trace_sites
from reludiag.recording import RecordedRun
from reludiag.recording.named_models import RecordedModel, model_name, recorded_models

Kinds = np.ndarray[Any, np.dtype[np.str_]]
Result = TypeVar("Result")


class RunLives:
    """The lives of a run's units, and the kinds that their deaths are attributed to.

    The rules of many sites ask for the same measurement of the whole run: it is made once.
    """

    def __init__(self, recorded: RecordedRun, kinds: Sequence["CauseKind"]) -> None:
        self.recorded = recorded
        self.kinds = {kind.name: kind for kind in kinds}
        """By name, in the order in which they are asked."""
        self.sites = tuple(trace_sites(recorded))
        self.models = recorded_models(recorded.facts)
        """The named models of the run by name; empty for one model without a name."""
        self._measured: dict[Callable[[RunLives], Any], Any] = {}

    def model_of(self, lives: SiteLives) -> RecordedModel | None:
        """The named model that a site is of; None if there is one model without a name."""
        return self.models.get(model_name(lives.recorded.site))

    def is_trained(self, lives: SiteLives) -> bool:
        """Whether an optimizer trains the model that a site is of, as far as is known."""
        model = self.model_of(lives)
        return model is None or model.trained

    def up_to(self, depth: int) -> tuple[SiteLives, ...]:
        """The sites of the same model up to this one, in forward order."""
        model = self.model_of(self.sites[depth])
        return tuple(each for each in self.sites[: depth + 1] if self.model_of(each) == model)

    def once(self, measure: Callable[["RunLives"], Result]) -> Result:
        """What `measure` returns for this run, computed at the first call."""
        if measure not in self._measured:
            self._measured[measure] = measure(self)
        result: Result = self._measured[measure]
        return result


@dataclass(frozen=True)
class SiteAttribution:
    """One site, and the causes of its deaths. Rules see it with the parts known so far."""

    run: RunLives
    lives: SiteLives
    depth: int
    """Its place among the sites of `run`."""
    above: SiteLives | None
    """The earlier site that was dead, completely or all but a few units, so that it may have
    silenced this one."""
    births: Kinds
    """`[unit]`: kind of cause by which it was born dead, also if it revived; empty if it was alive
    at step 0, and while births are being attributed."""
    kinds: Kinds
    """`[unit]`: kind of cause by which it is dead at the end; empty if it is not dead, and while
    deaths are being attributed."""

    @property
    def tally(self) -> Counter[str]:
        """Number of dead units by kind."""
        return Counter(str(kind) for kind in self.kinds if kind)

    @property
    def kind(self) -> "CauseKind":
        """Of most of its deaths that need an explanation; if none does, the kind that says so."""
        kinds = self.run.kinds
        counts = {name: n for name, n in self.tally.items() if kinds[name].claim != "nothing"}
        if counts:
            return kinds[max(counts, key=lambda name: counts[name])]
        return next(kind for kind in kinds.values() if kind.claim == "nothing")


@dataclass(frozen=True)
class RunAttribution:
    """All sites of a run, with the causes of their deaths."""

    run: RunLives
    sites: tuple[SiteAttribution, ...]

    def roots(self) -> Counter[str]:
        """Dead units by kind; a kind that has its root in another site counts as that site's."""
        roots: Counter[str] = Counter()
        for site in self.sites:
            for name, count in site.tally.items():
                kind, at = self.run.kinds[name], site
                while (root := kind.root(at)) is not None:
                    at = self.site(root.name)
                    kind = at.kind
                roots[kind.name] += count
        return roots

    def site(self, name: str) -> SiteAttribution:
        """The site with this name."""
        return next(site for site in self.sites if site.lives.name == name)

    def foremost(self, kind: str) -> SiteAttribution:
        """The site with most deaths of this kind."""
        return max(self.sites, key=lambda site: int((site.lives.dead & (site.kinds == kind)).sum()))


@dataclass(frozen=True)
class Account:
    """The account of a cause; the fields are those of `Cause`."""

    identifiable: bool
    evidence: tuple[Evidence, ...]
    sentence: str
    advice: str
    """Leave it empty if `changes` say all of it: then it is made from them."""
    confirm: str
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        if not self.advice:
            object.__setattr__(self, "advice", text_of(self.changes))


def _no_units(site: SiteAttribution) -> bool:
    return False


def _no_share(attribution: RunAttribution) -> float:
    return 0.0


def _no_root(site: SiteAttribution) -> SiteLives | None:
    return None


@dataclass(frozen=True)
class CauseKind:
    """One kind of cause. Its rules return which units of a site it explains: a mask `[unit]`, or
    one bool for all of them. They are asked only about units that no earlier kind has claimed.
    """

    name: str
    """As it stands in tables and documents: `learning_rate`."""
    title: str
    """In a report: `the learning rate`."""
    clue: str
    """The evidence for it, in a line of the documentation."""
    rule: str
    """When a death is attributed to it, in words, for the documentation."""
    account: Callable[[RunAttribution, SiteAttribution | None], Account]
    """Its account for one site, or for the run as a whole (None)."""
    births: Callable[[SiteAttribution], Mask | bool] = _no_units
    """Which of the units born dead are its."""
    deaths: Callable[[SiteAttribution], Mask | bool] = _no_units
    """Which of the units that died in training are its."""
    of_run: Callable[[RunAttribution], float] = _no_share
    """Its share if it is the cause of the whole run, whatever single units died of; else 0."""
    root: Callable[[SiteAttribution], SiteLives | None] = _no_root
    """The site whose own cause is behind this one, if it is only a consequence."""
    claim: Literal["cause", "unknown", "nothing"] = "cause"
    """`unknown` if deaths need an explanation and there is none, `nothing` if not more units died
    than in a healthy run. Exactly one kind is `nothing`."""
    share_of: Literal["deaths", "units"] = "deaths"
    """What its share is a share of."""
    subject: str = ""
    """In a sentence, as in `the input explains 3 of the 9 dead units`; the title where empty."""
    badge: str = ""
    """On an HTML page; the name with spaces where empty."""
    leads: bool = True
    """Whether it is named as the cause of a run even where units died of another one, too."""
    advice_order: int | None = None
    """Beside another cause with more deaths, its advice comes first, the lowest number before all;
    None if it is not given then."""

"""The gate: how many units of which sites may be dead, and whether more are, or may be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from reludiag.errors import UsageError
from reludiag.limits import Limit
from reludiag.measure.unjudged import Unjudged, unjudged_sites
from reludiag.measure.verdicts import LOST

TO_ALLOW = "To let this pass, set --allow-unobserved (allow_unobserved=True in Python)."
"""What to do where something was not judged, and need not be."""


@dataclass(frozen=True)
class Check:
    """The result of a gate: of one site, of the whole model, or of a place that was not judged."""

    site: str | None
    """Its name, also of a place that is not a site; None for the whole model."""
    limit: Limit | None
    """None if there is no limit."""
    lost: int
    """Units that are dead or not finite."""
    units: int | None
    """None if no unit of it is known."""
    exceeded: bool
    unjudged: Unjudged | None = None
    """What was not judged there."""
    fails_unjudged: bool = False
    """Whether the gate fails because of that."""
    is_whole_limit: bool = False
    """Whether the limit of this site is that of the whole model, which is over it."""

    @property
    def fails(self) -> bool:
        """Whether the gate fails here."""
        return self.exceeded or self.fails_unjudged

    @property
    def sentence(self) -> str:
        """The number of lost units and the limit: `5 of 8 units of '1' are dead ...`."""
        where = "" if self.site is None else f" of '{self.site}'"
        of = " of the whole model" if self.is_whole_limit else ""
        limit = "" if self.limit is None else f" (the limit{of} is {self.limit.text})"
        return f"{self.lost:,} of {self.units or 0:,} units{where} are dead or not finite{limit}"


@dataclass(frozen=True)
class Gate:
    """Limits for the whole model and for sites by pattern.

    A place that was not judged fails it, where a limit is set that it could be over.
    """

    whole: Limit | None = None
    rules: tuple[tuple[str, Limit], ...] = ()
    """(pattern of site names, limit for each site for which it is the first match)."""
    allow_unobserved: bool = False
    """Whether the gate passes although something was not judged."""

    @classmethod
    def parse(cls, texts: Sequence[str], allow_unobserved: bool = False) -> "Gate":
        """Parse `5%` or `12`, for the whole model, and `encoder.*=10%`, for each site that matches.

        Patterns have `*`, `?` and `[...]`, as in a shell. Raises UsageError for anything else.
        """
        whole: Limit | None = None
        rules = []
        for text in texts:
            pattern, limit_texts, limit = text.rpartition("=")
            if limit_texts and not pattern:
                raise UsageError(
                    f"--fail-over {text!r} was given; expected a pattern of sites before the =, "
                    "such as encoder.*=10%"
                )
            if pattern:
                rules.append((pattern, Limit.parse(limit)))
            elif whole is not None:
                raise UsageError(
                    f"--fail-over {whole.text} and --fail-over {text} both set a limit for the "
                    "whole model; expected one. '*=5%' sets a limit for each site"
                )
            else:
                whole = Limit.parse(text)
        return cls(whole, tuple(rules), allow_unobserved)

    def judge(self, sites: pd.DataFrame, unjudged: Sequence[Unjudged]) -> list[Check]:
        """A check of each site in forward order, after one of the whole model if it has a limit.

        A pattern that matches no site is one of aliases. Places that were not judged and are no
        site come last. A site without a rule of its own answers to the limit for the whole model,
        but only where the whole model is over it. `sites` and `unjudged` are those of a Diagnosis.
        """
        lost = int(sites[LOST].sum().sum())
        units = int(sites["units"].sum())
        over = self.whole is not None and self.whole.less_than(lost, units)
        by_site, others = unjudged_sites([str(name) for name in sites["site"]], unjudged)
        checks = [
            self._site_check(row, limit, over, by_site.get(str(row["site"])))
            for row, limit in zip(sites.to_dict("records"), self._limits(sites), strict=True)
        ]
        checks += self._other_checks(others)
        if self.whole is None:
            return checks
        return [Check(None, self.whole, lost, units, over), *checks]

    def require_matches(self, sites: pd.DataFrame, unjudged: Sequence[Unjudged]) -> None:
        """Raise UsageError for a pattern that matches no site: such a gate would never fail."""
        names = [str(name) for name in sites["site"]]
        _, others = unjudged_sites(names, unjudged)
        for pattern, limit in self.rules:
            if not any(_matches(sites, pattern)) and not any(
                fnmatchcase(place.where, pattern) for place in others
            ):
                site_names = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise UsageError(
                    f"--fail-over {pattern}={limit.text} was given, but no site name matches. "
                    f"The sites are {site_names}"
                )

    def _limits(self, sites: pd.DataFrame) -> list[Limit | None]:
        """Of each site, the limit of the first rule that matches it."""
        matches = [(_matches(sites, pattern), limit) for pattern, limit in self.rules]
        return [
            next((limit for matching, limit in matches if matching[index]), None)
            for index in range(len(sites))
        ]

    def _site_check(
        self, row: dict[Any, Any], own: Limit | None, whole_is_over: bool, place: Unjudged | None
    ) -> Check:
        name, never_called = str(row["site"]), pd.isna(row["units"])
        limit = own or self.whole
        lost, units = (
            sum(int(row[verdict]) for verdict in LOST),
            0 if never_called else int(row["units"]),
        )
        answers = own is not None or whole_is_over
        over = answers and limit is not None and limit.less_than(lost, units)
        fails = place is not None and self._must_be_judged(limit)
        is_whole = own is None and over
        units_known = None if never_called else units
        return Check(name, limit, lost, units_known, over, place, fails, is_whole)

    def _other_checks(self, places: Sequence[Unjudged]) -> Iterator[Check]:
        """Of places that are not sites. What may be anywhere concerns every limit."""
        for place in places:
            limit = self._own_limit(place.where) or self.whole
            limits = [limit] if place.where else [self.whole, *(each for _, each in self.rules)]
            fails = any(self._must_be_judged(each) for each in limits)
            yield Check(place.where, limit, 0, None, False, place, fails)

    def _own_limit(self, name: str) -> Limit | None:
        return next((limit for pattern, limit in self.rules if fnmatchcase(name, pattern)), None)

    def _must_be_judged(self, limit: Limit | None) -> bool:
        return not self.allow_unobserved and limit is not None and not limit.allows_all


def _matches(sites: pd.DataFrame, pattern: str) -> list[bool]:
    """Which sites match by name; if none does, by alias, or by what they select from."""
    for column in ("site", "alias", "selects_from"):
        found = [
            isinstance(name, str) and fnmatchcase(name, pattern) for name in sites.get(column, ())
        ]
        if any(found):
            return found
    return [False] * len(sites)


def exceeded(checks: Sequence[Check]) -> list[Check]:
    """The checks that are over their limit."""
    return [check for check in checks if check.exceeded]


def not_judged(checks: Sequence[Check]) -> list[Unjudged]:
    """What was not judged and makes the gate fail."""
    return [check.unjudged for check in checks if check.fails_unjudged and check.unjudged]

"""The gate: how many units of which sites may be dead, and whether more are."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from reludiag.errors import UsageError
from reludiag.limits import Limit
from reludiag.measure.verdicts import LOST


@dataclass(frozen=True)
class Check:
    """The result of a gate for one site or for the whole model."""

    site: str | None
    """None for the whole model."""
    limit: Limit | None
    """None if there is no limit."""
    lost: int
    """Units that are dead or not finite."""
    units: int | None
    """None if the site was never called."""
    exceeded: bool

    @property
    def sentence(self) -> str:
        """The number of lost units and the limit: `5 of 8 units of '1' are dead ...`."""
        where = "" if self.site is None else f" of '{self.site}'"
        limit = "" if self.limit is None else f" (the limit is {self.limit.text})"
        return f"{self.lost:,} of {self.units or 0:,} units{where} are dead or not finite{limit}"


@dataclass(frozen=True)
class Gate:
    """Limits for the whole model and for sites by pattern."""

    whole: Limit | None = None
    rules: tuple[tuple[str, Limit], ...] = ()
    """(pattern of site names, limit for each site for which it is the first match)."""

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "Gate":
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
        return cls(whole, tuple(rules))

    def judge(self, sites: pd.DataFrame) -> list[Check]:
        """A check of each site of a Diagnosis, after one of the whole model if it has a limit.

        A pattern that matches no site is one of aliases.

        `sites` is its table, a row per site in forward order. A site without a rule of its own
        answers to the limit for the whole model, but only where the whole model is over it.
        """
        lost = int(sites[LOST].sum().sum())
        units = int(sites["units"].sum())
        over = self.whole is not None and self.whole.less_than(lost, units)
        checks = [
            self._site_check(row, limit, over)
            for row, limit in zip(sites.to_dict("records"), self._limits(sites), strict=True)
        ]
        if self.whole is None:
            return checks
        return [Check(None, self.whole, lost, units, over), *checks]

    def require_matches(self, sites: pd.DataFrame) -> None:
        """Raise UsageError for a pattern that matches no site: such a gate would never fail."""
        names = [str(name) for name in sites["site"]]
        for pattern, limit in self.rules:
            if not any(_matches(sites, pattern)):
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

    def _site_check(self, row: dict[Any, Any], own: Limit | None, whole_is_over: bool) -> Check:
        name, never_called = str(row["site"]), pd.isna(row["units"])
        limit = own or self.whole
        lost, units = (
            sum(int(row[verdict]) for verdict in LOST),
            0 if never_called else int(row["units"]),
        )
        answers = own is not None or whole_is_over
        over = answers and limit is not None and limit.less_than(lost, units)
        return Check(name, limit, lost, None if never_called else units, over)


def _matches(sites: pd.DataFrame, pattern: str) -> list[bool]:
    """Which sites match by their names; if none does, which by their aliases."""
    for column in ("site", "alias"):
        found = [
            isinstance(name, str) and fnmatchcase(name, pattern) for name in sites.get(column, ())
        ]
        if any(found):
            return found
    return [False] * len(sites)


def exceeded(checks: Sequence[Check]) -> list[Check]:
    """The failed checks; the gate fails if there is one."""
    return [check for check in checks if check.exceeded]

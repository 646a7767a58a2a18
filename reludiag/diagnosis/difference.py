"""Difference: which units died, and which came back, between two looks at a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from reludiag.diagnosis.diagnosis import Diagnosis, Head
from reludiag.diagnosis.from_json import open_stored
from reludiag.errors import UsageError
from reludiag.tables import Column, table_of

CHANGES = ("died", "diverged", "revived", "unchanged", "unknown", "new", "missing")

CHANGE_COLUMNS = (
    Column("site", "str", "as in the unit table"),
    Column("unit", "Int64", "index along the unit axis"),
    Column("change", "str", "one of: " + ", ".join(CHANGES)),
    Column("verdict_before", "str", "its verdict in the first; empty if it was not there"),
    Column("verdict_after", "str", "its verdict in the second; empty if it is not there"),
    Column("samples_before", "Int64", "samples that the verdict in the first rests on"),
    Column("samples_after", "Int64", "samples that the verdict in the second rests on"),
    Column("firing_rate_before", "float64", "in the first, where it is known"),
    Column("firing_rate_after", "float64", "in the second, where it is known"),
)
SITE_CHANGE_COLUMNS = (
    Column("site", "str", "as in the unit table; in the order of the second, then what is missing"),
    Column("status", "str", "compared, new, missing, or resized: another number of units"),
    Column("units_before", "Int64", "units in the first; empty if not there, or never called"),
    Column("units_after", "Int64", "units in the second; empty if not there, or never called"),
    Column("dead_before", "Int64", "dead in the first"),
    Column("dead_after", "Int64", "dead in the second"),
    Column("died", "Int64", "dead now, and not before"),
    Column("diverged", "Int64", "not finite now, and not so before"),
    Column("revived", "Int64", "dead before, and not now"),
    Column("unchanged", "Int64", "dead both times, or neither time"),
    Column("unknown", "Int64", "not seen, or not finite before, so that nothing can be said"),
)

_UNSEEN = ("nonfinite", "unobserved")


@dataclass(frozen=True)
class Difference:
    """What became of each unit from one look to the next."""

    before: Head
    after: Head
    units: pd.DataFrame
    """A row per unit of the sites that are the same, new or missing: `CHANGE_COLUMNS`."""
    sites: pd.DataFrame
    """A row per site: `SITE_CHANGE_COLUMNS`."""

    def count(self, change: str) -> int:
        """How many units changed in one way: `died`, `revived`, ... of `CHANGES`."""
        return int((self.units["change"] == change).sum())

    @property
    def new_deaths(self) -> int:
        """Units that died, or are no longer finite. Those of a new site have no before."""
        return self.count("died") + self.count("diverged")

    @property
    def notes(self) -> list[str]:
        """What the reader must know before believing the counts; a sentence each."""
        before, after = self.before, self.after
        notes = []
        if before.model != after.model:
            notes.append(f"The models are of two classes: {before.model} and {after.model}.")
        if before.frozen != after.frozen:
            which = ("second", "first") if before.frozen else ("first", "second")
            notes.append(
                f"The {which[0]} is of training batches, the {which[1]} of frozen weights: some "
                "of the changes may be of the method."
            )
        elif before.samples != after.samples:
            notes.append(
                f"The first rests on {before.samples:,} samples, the second on "
                f"{after.samples:,}: a unit that fires seldom can seem to change by that alone."
            )
        died = self.units["change"] == "died"
        seldom = int((died & (self.units["verdict_before"] == "rare")).sum())
        if seldom:
            notes.append(f"{seldom:,} of those that died fired rarely before.")
        return notes

    def to_csv(self, path: str | Path | IO[str], all_units: bool = False) -> None:
        """Write the units that changed, or all of them; `-` is the standard output."""
        from reludiag.reports.csv_file import write_csv
        from reludiag.reports.difference_report import changed_units

        write_csv(changed_units(self, all_units), path)

    def to_json(self, path: str | Path | IO[str], all_units: bool = False) -> None:
        """Write one JSON document with a `schema_version`; `-` is the standard output."""
        from reludiag.reports.difference_report import difference_document
        from reludiag.reports.output import write

        write(path, difference_document(self, all_units))

    def __str__(self) -> str:
        """The terminal report as plain text, 80 columns wide."""
        from reludiag.reports.difference_report import difference_text

        return difference_text(self)


def diff(before: Diagnosis | str | Path, after: Diagnosis | str | Path) -> Difference:
    """What died and what came back from `before` to `after`.

    Each is a Diagnosis, or the path of a recording or of a JSON report. A unit is known again by
    its site and its index. Raises UsageError if no site of the one is in the other.
    """
    first, second = (
        given if isinstance(given, Diagnosis) else open_stored(given) for given in (before, after)
    )
    sites = _paired_sites(first, second)
    if not (sites["status"] == "compared").any():
        raise UsageError(
            f"{first.head.subject} and {second.head.subject} have no site with the same units in "
            "common. Are they of the same model?"
        )
    units = _paired_units(first, second, sites.set_index("site")["status"])
    compared = sites["status"] == "compared"
    for change in ("died", "diverged", "revived", "unchanged", "unknown"):
        count = units.loc[units["change"] == change, "site"].value_counts()
        sites[change] = sites["site"].map(count).fillna(0).where(compared)
    return Difference(first.head, second.head, units, table_of(SITE_CHANGE_COLUMNS, [sites]))


def _paired_sites(first: Diagnosis, second: Diagnosis) -> pd.DataFrame:
    old, new = (
        diagnosis.sites[["site", "units", "dead"]].set_index("site")
        for diagnosis in (first, second)
    )
    names = [*new.index, *(name for name in old.index if name not in new.index)]
    pairs = pd.concat(
        [old.reindex(names).add_suffix("_before"), new.reindex(names).add_suffix("_after")], axis=1
    )
    here, there = pairs.index.isin(new.index), pairs.index.isin(old.index)
    # A site that was never called has no number of units, and contradicts none.
    resized = (pairs["units_before"] != pairs["units_after"]).fillna(False).to_numpy(dtype=bool)
    pairs["status"] = np.select(
        [~there, ~here, resized], ["new", "missing", "resized"], default="compared"
    )
    return pairs.reset_index(names="site")


def _paired_units(first: Diagnosis, second: Diagnosis, statuses: pd.Series) -> pd.DataFrame:
    """The units of the sites whose units can be told apart, in the order of `statuses`."""
    shown = ["site", "unit", "verdict", "samples", "firing_rate"]
    old, new = (
        diagnosis.units.loc[diagnosis.units["unit"].notna(), shown] for diagnosis in (first, second)
    )
    pairs = old.merge(new, on=["site", "unit"], how="outer", suffixes=("_before", "_after"))
    status = pairs["site"].map(statuses)
    for verdict in ("verdict_before", "verdict_after"):  # of a site that was not called once
        pairs.loc[status == "compared", verdict] = pairs[verdict].fillna("unobserved")
    pairs["change"] = _changes(pairs["verdict_before"], pairs["verdict_after"])
    pairs["place"] = pairs["site"].map({site: place for place, site in enumerate(statuses.index)})
    pairs = pairs[status != "resized"].sort_values(["place", "unit"], kind="stable")
    return table_of(CHANGE_COLUMNS, [pairs])


def _changes(before: pd.Series, after: pd.Series) -> Any:
    """The change of each unit, from its two verdicts."""
    dead_before, dead_after = before == "dead", after == "dead"
    known_before, known_after = ~before.isin(_UNSEEN), ~after.isin(_UNSEEN)
    conditions = {
        "new": before.isna(),
        "missing": after.isna(),
        "diverged": (after == "nonfinite") & (before != "nonfinite"),
        "unknown": ~known_before | ~known_after,
        "died": dead_after & ~dead_before,
        "revived": dead_before & ~dead_after,
    }
    return np.select(
        [c.to_numpy(dtype=bool) for c in conditions.values()], list(conditions), "unchanged"
    )

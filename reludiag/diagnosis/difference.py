"""Difference: which units died and which came back between two diagnoses of a model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from reludiag.diagnosis.diagnosis import Diagnosis, Head
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.errors import UsageError
from reludiag.measure.unjudged import Unjudged, sentences
from reludiag.tables import Column, table_of

CHANGES = ("died", "diverged", "revived", "unchanged", "unknown", "new", "missing")

CHANGE_COLUMNS = (
    Column("site", "str", "as in the unit table"),
    Column("unit", "Int64", "index along the unit axis"),
    Column("change", "str", "one of: " + ", ".join(CHANGES)),
    Column("verdict_before", "str", "its verdict in the first; empty if it is not there"),
    Column("verdict_after", "str", "its verdict in the second; empty if it is not there"),
    Column("samples_before", "Int64", "samples that the verdict in the first is based on"),
    Column("samples_after", "Int64", "samples that the verdict in the second is based on"),
    Column("firing_rate_before", "float64", "cause in the first, if known"),
    Column("firing_rate_after", "float64", "cause in the second, if known"),
)
SITE_CHANGE_COLUMNS = (
    Column("site", "str", "as in the unit table; in the order of the second, then missing sites"),
    Column("status", "str", "compared, new, missing, or resized (another number of units)"),
    Column("units_before", "Int64", "units in the first; empty if not there, or never called"),
    Column("units_after", "Int64", "units in the second; empty if not there, or never called"),
    Column("dead_before", "Int64", "dead in the first"),
    Column("dead_after", "Int64", "dead in the second"),
    Column("died", "Int64", "dead in the second only"),
    Column("diverged", "Int64", "not finite in the second only"),
    Column("revived", "Int64", "dead in the first only"),
    Column("unchanged", "Int64", "dead in both, or in neither"),
    Column("unknown", "Int64", "not seen, or not finite in the first: no change can be determined"),
)

_UNSEEN = ("nonfinite", "unobserved")


@dataclass(frozen=True)
class Difference:
    """What changed for each unit from one diagnosis to another."""

    before: Head
    after: Head
    units: pd.DataFrame
    """A row per unit of the compared, new and missing sites: `CHANGE_COLUMNS`."""
    sites: pd.DataFrame
    """A row per site: `SITE_CHANGE_COLUMNS`."""
    unjudged: tuple[Unjudged, ...] = ()
    """What was not judged in the second: whether units died there is not known."""

    def count(self, change: str) -> int:
        """Number of units with one kind of change: `died`, `revived`, ... (see `CHANGES`)."""
        return int((self.units["change"] == change).sum())

    @property
    def new_deaths(self) -> int:
        """Number of units that died or are no longer finite. Units of new sites are not counted."""
        return self.count("died") + self.count("diverged")

    @property
    def notes(self) -> list[str]:
        """What the reader must know to judge the counts, one sentence each."""
        before, after = self.before, self.after
        notes = []
        if before.model != after.model:
            notes.append(f"The models have different classes: {before.model} and {after.model}.")
        if before.frozen != after.frozen:
            which = ("second", "first") if before.frozen else ("first", "second")
            notes.append(
                f"The {which[0]} was measured on training batches, the {which[1]} with frozen "
                "weights: some changes may be due to the method."
            )
        elif before.samples != after.samples:
            notes.append(
                f"The first is based on {before.samples:,} samples, the second on "
                f"{after.samples:,}: a unit that fires rarely can seem to change for this reason "
                "alone."
            )
        died = self.units["change"] == "died"
        seldom = int((died & (self.units["verdict_before"] == "rare")).sum())
        if seldom:
            notes.append(f"{seldom:,} of the units that died were rare before.")
        return notes + [f"In the second: {sentence}" for sentence in sentences(self.unjudged)]

    def to_csv(self, path: str | Path | IO[str], all_units: bool = False) -> None:
        """Write the units that changed, or all units; `-` is stdout."""
        from reludiag.reports.csv_file import write_csv
        from reludiag.reports.difference_report import changed_units

        write_csv(changed_units(self, all_units), path)

    def to_json(self, path: str | Path | IO[str], all_units: bool = False) -> None:
        """Write one JSON document with a `schema_version`; `-` is stdout."""
        from reludiag.reports.difference_report import difference_document
        from reludiag.reports.output import write

        write(path, difference_document(self, all_units))

    def __str__(self) -> str:
        """The terminal report as plain text, 80 columns wide."""
        from reludiag.reports.difference_report import difference_text

        return difference_text(self)


def diff(before: Diagnosis | str | Path, after: Diagnosis | str | Path) -> Difference:
    """Which units died and which came back from `before` to `after`.

    Each is a Diagnosis, or the path of a recording or of a JSON report. Units are matched by site
    and index: sites by their key, where one has none by name or alias, and named as in `after`.
    Raises UsageError if they have no site in common.
    """
    first, second = (
        subject if isinstance(subject, Diagnosis) else open_diagnosis(subject)
        for subject in (before, after)
    )
    first = _renamed(first, _new_names(first.sites, second.sites))
    sites = _paired_sites(first, second)
    if not (sites["status"] == "compared").any():
        raise UsageError(
            f"{first.head.subject} and {second.head.subject} have no site in common with the "
            "same number of units. Are they from the same model?"
        )
    units = _paired_units(first, second, sites.set_index("site")["status"])
    compared = sites["status"] == "compared"
    for change in ("died", "diverged", "revived", "unchanged", "unknown"):
        count = units.loc[units["change"] == change, "site"].value_counts()
        sites[change] = sites["site"].map(count).fillna(0).where(compared)
    return Difference(
        first.head,
        second.head,
        units,
        table_of(SITE_CHANGE_COLUMNS, [sites]),
        second.unjudged,
    )


def _new_names(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, str]:
    """Site of `old` -> the name that it has in `new`; those that are not there are left out."""
    names: dict[str, str] = {}
    # The surest first. Where names are compared, one of the two is of a version without keys.
    for column, other in (("key", "key"), ("site", "site"), ("alias", "site"), ("site", "alias")):
        there = dict(zip(new[other], new["site"], strict=True))
        for key, site in zip(old[column], old["site"], strict=True):
            match = there.get(key) if isinstance(key, str) else None
            if match is not None and site not in names and match not in names.values():
                names[site] = match
    return names


def _renamed(diagnosis: Diagnosis, names: dict[str, str]) -> Diagnosis:
    if all(name == new for name, new in names.items()):
        return diagnosis
    # One that is not in the other may have a name that another has there.
    taken = set(names.values())
    renamed = {
        site: names.get(site, f"{site} (of the first)" if site in taken else site)
        for site in diagnosis.sites["site"]
    }
    return replace(
        diagnosis,
        sites=diagnosis.sites.assign(site=diagnosis.sites["site"].map(renamed)),
        units=diagnosis.units.assign(site=diagnosis.units["site"].map(renamed)),
    )


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
    # A site that was never called has no number of units, which matches every number.
    resized = (pairs["units_before"] != pairs["units_after"]).fillna(False).to_numpy(dtype=bool)
    pairs["status"] = np.select(
        [~there, ~here, resized], ["new", "missing", "resized"], default="compared"
    )
    return pairs.reset_index(names="site")


def _paired_units(first: Diagnosis, second: Diagnosis, statuses: pd.Series) -> pd.DataFrame:
    """The units of the sites that have unit rows, in the order of `statuses`."""
    columns = ["site", "unit", "verdict", "samples", "firing_rate"]
    old, new = (
        diagnosis.units.loc[diagnosis.units["unit"].notna(), columns]
        for diagnosis in (first, second)
    )
    pairs = old.merge(new, on=["site", "unit"], how="outer", suffixes=("_before", "_after"))
    status = pairs["site"].map(statuses)
    for verdict in ("verdict_before", "verdict_after"):  # the site was not called in one of the two
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

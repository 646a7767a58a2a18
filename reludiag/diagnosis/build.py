"""diagnose(): makes the tables of a Diagnosis from the counts of each site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from reludiag.causes.cause import Cause
from reludiag.diagnosis.columns import (
    LEDGER_COLUMNS,
    SITE_COLUMNS,
    SITE_LEDGER_COLUMNS,
    UNIT_COLUMNS,
)
from reludiag.diagnosis.diagnosis import Diagnosis, Head
from reludiag.measure.binomial import upper_bounds
from reludiag.measure.structure import StructureNote
from reludiag.measure.unit_counts import UnitCounts
from reludiag.measure.unjudged import (
    Unjudged,
    all_unjudged,
    label,
    named,
    sentences,
    unjudged_sites,
)
from reludiag.measure.verdicts import VERDICTS, Thresholds, judge, tau_score
from reludiag.recording.ledger import NEVER, Ledger, Lives
from reludiag.sites.site import Site
from reludiag.tables import table_of

_FEW_SAMPLES = 59
"""From so many on, a unit that never fired has a firing rate below 5 %, with 95 % confidence."""
_FEW_SHARE = 0.1


@dataclass(frozen=True)
class SiteFindings:
    """One site with its counts."""

    site: Site
    counts: UnitCounts
    ledger: Ledger | None = None
    at_death: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    """Columns of `LEDGER_COLUMNS` that a recording adds to the ledger, `[unit]`."""
    states: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    """`[snapshot, unit]`, as in `Lives`."""
    passed: int | None = None
    """Number of samples in the passes of its model, where several models have their own."""

    def whole(self, head: Head) -> int:
        """Number of samples that could have reached it."""
        return head.samples if self.passed is None else self.passed


def diagnose(
    head: Head,
    findings: Sequence[SiteFindings],
    thresholds: Thresholds,
    timeline: pd.DataFrame | None = None,
    causes: Sequence[Cause] = (),
    structure: Sequence[StructureNote] = (),
    missed: Sequence[Unjudged] = (),
) -> Diagnosis:
    """Make the tables from the counts; `missed` is what could not be seen of the model."""
    unjudged = all_unjudged(((each.site, each.counts.samples) for each in findings), missed)
    few = _few_samples_note(head, findings)
    head = replace(head, notes=(*sentences(unjudged), *few, *head.notes))
    by_site, _ = unjudged_sites([finding.site.name for finding in findings], unjudged)
    units = [
        _unit_rows(head, finding, thresholds, by_site.get(finding.site.name), bounds)
        for finding, bounds in zip(findings, _upper_bounds(head, findings), strict=True)
    ]
    ledger = timeline is not None
    unit_columns = UNIT_COLUMNS + (LEDGER_COLUMNS if ledger else ())
    sites = [
        _site_row(finding, table, ledger) for finding, table in zip(findings, units, strict=True)
    ]
    return Diagnosis(
        head=head,
        units=table_of(unit_columns, units),
        sites=table_of(SITE_COLUMNS + (SITE_LEDGER_COLUMNS if ledger else ()), sites),
        timeline=timeline,
        thresholds=thresholds,
        causes=tuple(causes),
        structure=tuple(structure),
        lives=None if timeline is None else _lives(timeline, findings),
        unjudged=unjudged,
    )


def _upper_bounds(head: Head, findings: Sequence[SiteFindings]) -> list[Any]:
    """The bound on each unit's firing rate, of each site; NaN where it has none."""
    counts = [finding.counts for finding in findings]
    if not head.frozen:
        return [np.nan] * len(counts)
    bounds = upper_bounds([each.fired for each in counts], [each.counted for each in counts])
    return [
        np.where(each.nonfinite, np.nan, bound) for each, bound in zip(counts, bounds, strict=True)
    ]


def counted_in_words(samples: int, rows: int | None, groups: str | None) -> str:
    """`8 samples`, or `8 groups of 40 rows`; `groups` is as in `Measurement`."""
    if groups is None or rows is None:
        return f"{samples:,} sample{'s' * (samples != 1)}"
    return f"{samples:,} group{'s' * (samples != 1)} of {rows:,} rows"


def grouping_notes(groups: str | None) -> list[str]:
    """The note on rows that were counted together; `groups` is as in `Measurement`."""
    if groups is None:
        return []
    named_so = f" with the same `{groups}`" if groups else " of one group"
    return [f"Rows{named_so} count as one sample."]


def _lives(timeline: pd.DataFrame, findings: Sequence[SiteFindings]) -> Lives:
    return Lives(
        tuple(int(step) for step in timeline["step"].unique()),
        {finding.site.name: finding.states for finding in findings if finding.states is not None},
    )


def _few_samples_note(head: Head, findings: Sequence[SiteFindings]) -> list[str]:
    """The notes on the sites with so few samples that little can be said of their units."""
    notes = []
    if head.per_pass:
        notes.append(
            f"In training, a forward pass counts as one sample at {named(head.per_pass)}: only a "
            "scan or a probe follows which sample each row there is of. Firing rates there are "
            "shares of passes (active_fraction is that of rows and positions), so a unit that "
            "fires rarely may count as alive."
        )
    few = {
        each.site.name: each.counts.samples
        for each in findings
        if each.site.rectifier.can_die
        and each.site.name not in head.per_pass
        and 0 < each.counts.samples < each.whole(head)
        and each.counts.samples < max(_FEW_SAMPLES, _FEW_SHARE * each.whole(head))
    }
    if head.if_independent == "positions":
        return notes
    # One sample a call: rows that were lost track of, or a single row each time.
    untold = {each.site.name for each in findings if each.counts.counted == each.counts.calls}
    if lost := [name for name in few if name in untold]:
        notes.append(
            f"Each call of {named(lost)} counts as one sample: its rows could not be told apart, "
            "or only one reached it." + " Bounds there are wide." * head.frozen
        )
    if reached := {name: samples for name, samples in few.items() if name not in untold}:
        low, high = min(reached.values()), max(reached.values())
        notes.append(
            f"{named(list(reached))} {'is' if len(reached) == 1 else 'are'} reached by "
            f"{f'{low:,}' if low == high else f'{low:,} to {high:,}'} of {head.samples:,} samples. "
            "A unit that is silent there may well fire on more data."
        )
    return notes


def _unit_rows(
    head: Head,
    finding: SiteFindings,
    thresholds: Thresholds,
    place: Unjudged | None,
    bounds: np.ndarray[Any, Any] | float,
) -> dict[str, Any]:
    site, counts, ledger = finding.site, finding.counts, finding.ledger
    if site.units is None:
        return {
            "site": site.name,
            "verdict": "unobserved",
            "samples": 0,
            "activation": site.rectifier.activation,
            "note": "never called" if place is None else label(place.reason),
        }
    n, positions = counts.counted, counts.positions
    observed = n > 0

    def share(part: Any, whole: int) -> Any:
        return part / whole if observed else np.nan

    table = {
        "site": site.name,
        "unit": np.arange(site.units),
        "verdict": judge(counts, site.rectifier, thresholds),
        "samples": counts.samples,
        "counted": n,
        "fired": counts.fired,
        "firing_rate": share(counts.fired, n),
        "firing_rate_upper": bounds,
        "active_fraction": share(counts.active, positions),
        "mean_activation": share(counts.total, positions),
        "max_activation": counts.maximum if observed else np.nan,
        "tau_score": tau_score(counts) if observed else np.nan,
        "unit_axis": site.unit_axis,
        "activation": site.rectifier.activation,
        "producer": site.producer,
        "norm": site.norm,
        "rms_activation": np.sqrt(share(counts.total_square, positions)),
        "max_preactivation": np.where(
            np.isneginf(counts.before_maximum), np.nan, counts.before_maximum
        ),
        "note": _unit_note(place, finding, head),
        "fired_before_selection": _fired_before(counts) if observed else None,
    }
    if ledger is not None:
        table["born_dead"] = ledger.born_dead if ledger.born_known else None
        table["died_step"] = _step_column(ledger.died_step)
        table["revived_step"] = _step_column(ledger.revived_step)
        table |= finding.at_death
    return table


def _unit_note(place: Unjudged | None, finding: SiteFindings, head: Head) -> str | None:
    """What must be said beside the verdict of each unit of a site."""
    notes, counts = [] if place is None else [label(place.reason)], finding.counts
    if finding.site.name in head.per_pass:
        notes.append("one sample a pass")
    elif 0 < counts.samples < finding.whole(head) and head.if_independent != "positions":
        untold = counts.counted == counts.calls
        reached = f"reached by {counts.samples:,} of {finding.whole(head):,} samples"
        notes.append("one sample a call" if untold else reached)
    return "; ".join(notes) or None


def _fired_before(counts: UnitCounts) -> np.ndarray[Any, Any] | None:
    """Which units fired at the rectifier that is selected from, `[unit]`; None if there is none."""
    return None if counts.silent_before is None else ~counts.silent_before


def _step_column(steps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.where(steps == NEVER, np.nan, steps)


def _site_row(finding: SiteFindings, units: Mapping[str, Any], ledger: bool) -> dict[str, Any]:
    site = finding.site
    verdicts, counts = np.unique(units["verdict"], return_counts=True)
    tally = dict(zip(verdicts.tolist(), counts.tolist(), strict=True))
    row: dict[str, Any] = {
        "site": site.name,
        "activation": site.rectifier.activation,
        "unit_axis": site.unit_axis or None,
        "producer": site.producer,
        "norm": site.norm,
        "samples": finding.counts.samples,
        "units": site.units,
        **{verdict: tally.get(verdict, 0) for verdict in VERDICTS},
        "key": site.key,
        "alias": site.alias or None,
        "selects_from": site.selects_from or None,
    }
    if (fired_before := _fired_before(finding.counts)) is not None:
        row["never_arrived"] = int((fired_before & (units["verdict"] == "dead")).sum())
        row["never_fired"] = row["dead"] - row["never_arrived"]
    if site.units is None:
        row["unobserved"] = 0  # the site is known, its units are not
    row["dead_fraction"] = row["dead"] / site.units if site.units else np.nan
    if finding.counts.counted:
        row["mean_firing_rate"] = np.mean(units["firing_rate"])
    if ledger and finding.ledger is not None:
        lives = finding.ledger
        row["born_dead"] = int(lives.born_dead.sum()) if lives.born_known else None
        row["died"] = int(lives.died.any(axis=0).sum())
        row["revived"] = int(lives.revived.any(axis=0).sum())
    return row

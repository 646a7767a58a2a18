"""The tables in sentences, and the timeline of the whole model in a few windows."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reludiag.causes.all_kinds import kind_named
from reludiag.causes.cause import Cause
from reludiag.diagnosis.diagnosis import RANDOM_INPUT, Diagnosis, Head
from reludiag.measure.binomial import upper_bound
from reludiag.measure.structure import StructureNote
from reludiag.reports.wording import plural, share, upper_share, weights_in_words

WINDOWS = 10


@dataclass(frozen=True)
class LifeWindow:
    """Consecutive snapshots of the whole model, summed up."""

    first: int
    """The step of the previous snapshot; in the first window, that of the first snapshot itself."""
    last: int
    learning_rate: float
    """The largest of its steps; NaN where none is known."""
    dead: int
    """At its end, as `nonfinite` is."""
    died: int
    revived: int
    nonfinite: int

    @property
    def steps(self) -> str:
        """`0`, or `10-20`: after step 10, up to 20."""
        return str(self.last) if self.first == self.last else f"{self.first}-{self.last}"


def life_windows(timeline: pd.DataFrame, most: int = WINDOWS) -> list[LifeWindow]:
    """The timeline in a few windows: the first snapshot, then at most `most` of equal length.

    A short last window that takes in the one before is one with it.
    """
    snapshots = _whole_model(timeline)
    has_starts = "window_start" in timeline and len(timeline) > 0  # not in older documents
    begin = timeline["window_start"].iloc[-1] if has_starts else pd.NA
    if len(snapshots) > 2 and pd.notna(begin) and begin < snapshots[-1].first:
        snapshots[-2:] = [_joined(snapshots[-2:])]
    width = math.ceil(max(1, len(snapshots) - 1) / most)
    starts = [0, *range(1, len(snapshots), width)]
    return [
        _joined(snapshots[start:end])
        for start, end in zip(starts, [*starts[1:], len(snapshots)], strict=True)
    ]


def never_fired(units: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows of the unit table fired in no sample that was watched, `[row]`.

    One that is not dead may have fired where its rate was not counted.
    """
    whole = (units["counted"] == units["samples"]).fillna(False)
    never = (units["firing_rate"] == 0) & (units["verdict"].eq("dead") | whole)
    return never.to_numpy(bool)


def thick_of_deaths(timeline: pd.DataFrame) -> LifeWindow | None:
    """The shortest range of steps with half of the deaths; None without deaths."""
    snapshots = _whole_model(timeline)
    half = sum(snapshot.died for snapshot in snapshots) / 2
    if half == 0:
        return None
    stretches, start, died = list[LifeWindow](), 0, 0
    for end, snapshot in enumerate(snapshots):
        died += snapshot.died
        while died - snapshots[start].died >= half:
            died -= snapshots[start].died
            start += 1
        if died >= half:
            stretches.append(_joined(snapshots[start : end + 1]))
    return min(stretches, key=lambda stretch: (stretch.last - stretch.first, -stretch.died))


def _whole_model(timeline: pd.DataFrame) -> list[LifeWindow]:
    """A window for each snapshot, summed over the sites."""
    by_step = timeline.groupby("step")
    sums = by_step[["dead", "died", "revived", "nonfinite"]].sum().astype("int64").to_dict("list")
    steps: list[int] = timeline["step"].drop_duplicates().astype("int64").to_list()
    rates = by_step["learning_rate"].max().to_list()
    return [
        LifeWindow(
            first=steps[max(index - 1, 0)],
            last=step,
            learning_rate=rates[index],
            dead=sums["dead"][index],
            died=sums["died"][index],
            revived=sums["revived"][index],
            nonfinite=sums["nonfinite"][index],
        )
        for index, step in enumerate(steps)
    ]


def _joined(windows: list[LifeWindow]) -> LifeWindow:
    rates = [w.learning_rate for w in windows if not math.isnan(w.learning_rate)]
    return LifeWindow(
        first=windows[0].first,
        last=windows[-1].last,
        learning_rate=max(rates, default=math.nan),
        dead=windows[-1].dead,
        died=sum(window.died for window in windows),
        revived=sum(window.revived for window in windows),
        nonfinite=windows[-1].nonfinite,
    )


def next_steps(diagnosis: Diagnosis) -> list[str]:
    """What to look at according to the tables, the most serious first, one sentence each."""
    sites, head = diagnosis.sites, diagnosis.head
    lines = []
    if diagnosis.diverged:
        first = sites.loc[sites["nonfinite"] > 0, "site"].iloc[0]
        lines.append(
            f"'{first}' is the first site with NaN or infinite values. Lower the learning rate or "
            "clip the gradients. Silent units prove nothing then."
        )
        return lines
    silent = sites[(sites["dead"] == sites["units"]) & (sites["dead"] > 0)]
    for _, part in _by_model(silent, head):
        names = _named(part["site"])
        lines.append(
            f"{names}: every unit is dead{_on(part, head)}, so later layers get only "
            "constants from it, and earlier layers get no gradient through it."
        )
    if diagnosis.timeline is not None and (diagnosis.watched or diagnosis.timeline["step"].any()):
        lines += _life_sentences(diagnosis)
    if diagnosis.dead:
        worst = sites.sort_values(["dead_fraction", "dead"], ascending=False, kind="stable").iloc[0]
        if not len(silent):
            producer = (
                f" (its weights: {weights_in_words(worst['producer'])})"
                if pd.notna(worst["producer"])
                else ""
            )
            lines.append(
                f"The worst site is '{worst['site']}'{producer}: {worst['dead']:,} of "
                f"{plural(worst['units'], 'unit')} dead"
                f"{_on(sites[sites['site'] == worst['site']], head)}."
            )
        lines += arrival_sentences(diagnosis)
        if head.frozen and RANDOM_INPUT not in head.notes:  # noise is not a sample of any data
            lines += _bound_sentences(diagnosis)
    if diagnosis.dead and (saturated := saturated_sentence(diagnosis)):
        lines.append(saturated)
    rare = int(sites["rare"].sum())
    if rare:
        lines.append(
            f"{plural(rare, 'unit')} fired in fewer than "
            f"{share(diagnosis.thresholds.rare, 1)} of the samples that reached "
            f"{'it: it is' if rare == 1 else 'them: they are'} rare, not dead. More data would "
            f"show how often {'it fires' if rare == 1 else 'they fire'}."
        )
    if head.samples == 0:
        lines.insert(0, "No unit has been observed yet.")
    elif diagnosis.dead == 0 and not diagnosis.diverged:
        lines.insert(0, no_dead_sentence(diagnosis))
    verdicts = diagnosis.units.loc[diagnosis.units["unit"].notna(), "verdict"]
    linear = int((verdicts == "always_on").sum())  # which lives, and stands in the file
    count = int((verdicts != "alive").sum()) - linear
    if count:
        be = "is" if count == 1 else "are"
        also = f", and {linear:,} that {'is' if linear == 1 else 'are'} always on"
        lines.append(
            f"Use --csv FILE to save the {plural(count, 'unit')} that {be} not alive"
            f"{also if linear else ''}."
        )
    return lines


def arrival_sentences(diagnosis: Diagnosis, most: int = 3) -> list[str]:
    """For each selection with dead units, which of them fire and never arrive behind it."""
    sites = diagnosis.sites[diagnosis.sites["selects_from"].notna() & (diagnosis.sites["dead"] > 0)]
    lines = []
    for row in sites.head(most).to_dict("records"):
        silent, unselected = int(row["never_fired"]), int(row["never_arrived"])
        fire = "fires there and never arrives" if unselected == 1 else "fire there and never arrive"
        # A ReLU selects nothing: it may stand behind a top-k, too.
        how = "" if str(row["activation"]).lower() == "relu" else " (never selected)"
        lines.append(
            f"'{row['site']}' has the units of '{row['selects_from']}', which are counted once: "
            f"{silent:,} never {'fires' if silent == 1 else 'fire'} there; "
            f"{unselected:,} more {fire}{how}."
        )
    if len(sites) > most:
        lines.append(
            f"{plural(len(sites) - most, 'more site')} with dead units: see never_fired and "
            "never_arrived in the table of sites."
        )
    return lines


def saturated_sentence(diagnosis: Diagnosis) -> str:
    """How many units are saturated, and where; empty if none is."""
    sites = diagnosis.sites[diagnosis.sites["saturated"] > 0]
    count = int(sites["saturated"].sum())
    if not count:
        return ""
    names = sorted(sites["activation"].unique())
    be, pass_on = ("is", "passes") if count == 1 else ("are", "pass")
    return (
        f"{plural(count, 'unit')} of {_named(sites['site'])} {be} saturated: always where "
        f"{' or '.join(names)} is flat but not off, so {'it' if count == 1 else 'they'} "
        f"{pass_on} no gradient."
    )


def no_dead_sentence(diagnosis: Diagnosis) -> str:
    """What can be said where no unit is known to be dead."""
    saturated = saturated_sentence(diagnosis)
    return f"{_no_dead(diagnosis)} {saturated}" if saturated else _no_dead(diagnosis)


def _no_dead(diagnosis: Diagnosis) -> str:
    if not diagnosis.unjudged and diagnosis.only_in_training:
        return "No unit is dead in eval mode."
    if not diagnosis.unjudged:
        return "No unit is dead."
    if not diagnosis.judged_units:
        return "No unit was judged, so it is not known whether any is dead."
    return (
        f"None of the {plural(diagnosis.judged_units, 'unit')} that were judged is dead. "
        f"{unjudged_count(diagnosis)} not judged."
    )


def dead_count(diagnosis: Diagnosis) -> str:
    """`3 of 64 units dead`; nothing is said of units where nothing was watched."""
    if not diagnosis.watched:
        return "nothing was watched"
    return f"{diagnosis.dead:,} of {plural(diagnosis.unit_count, 'unit')} dead"


def unjudged_count(diagnosis: Diagnosis) -> str:
    """`1 place was`, `3 places were`; empty where everything was judged."""
    count = len(diagnosis.unjudged)
    return f"{plural(count, 'place')} {'was' if count == 1 else 'were'}" if count else ""


def model_counts(diagnosis: Diagnosis) -> list[tuple[str, int, int]]:
    """Name, dead units and units of each model, where models have names and are several."""
    models = _by_model(diagnosis.sites, diagnosis.head)
    if len(models) < 2:
        return []
    return [(name, int(part["dead"].sum()), int(part["units"].sum())) for name, part in models]


def _by_model(rows: pd.DataFrame, head: Head) -> list[tuple[str, pd.DataFrame]]:
    """Rows with a `site` by the model that it is of, without models that have none; all in one
    where models have no names.
    """
    if not head.models:
        return [("", rows)] if len(rows) else []
    owners = rows["site"].map(lambda site: re.split("[.:#]", str(site))[0])
    return [(name, rows[owners == name]) for name in head.models if (owners == name).any()]


def samples_differ(diagnosis: Diagnosis) -> bool:
    """Whether some sites saw another number of samples than the model."""
    samples = diagnosis.sites.loc[diagnosis.sites["samples"] > 0, "samples"]
    return bool((samples != diagnosis.head.samples).any())


def _on(sites: pd.DataFrame, head: Head) -> str:
    """On how many samples this was seen, if these sites saw others than the whole model."""
    whole = head.samples
    if _counted(head) == "position":
        return f" on {_range(sites['samples'])} positions"
    if sites["site"].isin(head.per_pass).all():
        return f" in {_range(sites['samples'])} forward passes"
    if (sites["samples"] == whole).all():
        return ""
    if (sites["samples"] < whole).all():
        return f" on {_range(sites['samples'])} of {plural(whole, 'sample')}"
    return f" on {_range(sites['samples'])} samples"


def _counted(head: Head) -> str:
    """What the numbers of samples of sites count."""
    return "position" if head.if_independent == "positions" else "sample"


def _range(numbers: "pd.Series[Any]") -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _bound_sentences(diagnosis: Diagnosis) -> list[str]:
    """What dead means, by the samples of the sites that have dead units; for each model, if these
    saw different ones.
    """
    dead = diagnosis.units[diagnosis.units["verdict"] == "dead"]
    parts = _by_model(dead, diagnosis.head)
    if len(parts) < 2 or dead["samples"].nunique() == 1:
        return [_bound_sentence(diagnosis, dead)]
    return [f"'{name}': {_bound_sentence(diagnosis, part)}" for name, part in parts]


def _bound_sentence(diagnosis: Diagnosis, dead: pd.DataFrame) -> str:
    low, high = int(dead["samples"].min()), int(dead["samples"].max())
    if_independent = diagnosis.head.if_independent
    noun = _counted(diagnosis.head)
    bounds = [upper_share(float(upper_bound(0, samples))) for samples in (low, high)]
    if low == high:
        own = low != diagnosis.head.samples and noun == "sample"
        reached_it = " that reached the unit's site" if own else ""
        meaning = f"0 of {plural(low, noun)}{reached_it}: a firing rate below {bounds[0]}"
    else:
        meaning = (
            f"0 of the {noun}s that reached the unit's site, which are {low:,} to {high:,}: a "
            f"firing rate below {bounds[0]} where they are fewest, and below {bounds[1]} where "
            "they are most,"
        )
    condition = f", if {if_independent} are independent" * bool(if_independent)
    return f"Dead here means {meaning} on data like this, with 95 % confidence{condition}."


def _rate_of_deaths(units: pd.DataFrame, window: LifeWindow) -> float:
    """The largest learning rate at the last deaths in a window; NaN if it is not known."""
    is_inside = units["died_step"].gt(window.first) & units["died_step"].le(window.last)
    rates = units.loc[is_inside.fillna(False), "lr_at_death"].dropna()
    return window.learning_rate if rates.empty else float(rates.max())


def _life_sentences(diagnosis: Diagnosis) -> list[str]:
    assert diagnosis.timeline is not None
    lines = []
    most = thick_of_deaths(diagnosis.timeline)
    if most is not None:
        rate = _rate_of_deaths(diagnosis.units, most)
        at = "" if math.isnan(rate) else f", at a learning rate of {rate:.4g}"
        total = int(diagnosis.timeline["died"].sum())
        windows = life_windows(diagnosis.timeline)
        # If causes were determined, they say what to do.
        advise = windows[-1].dead > windows[0].dead and not diagnosis.causes
        lines.append(
            f"{most.died:,} of {plural(total, 'death')} came in steps {most.steps}{at}."
            + (" Try a lower one or a warm-up first." if at and advise else "")
        )
    born = int(diagnosis.sites["born_dead"].sum())
    if born:
        was = "was" if born == 1 else "were"
        start = diagnosis.timeline[diagnosis.timeline["step"] == diagnosis.timeline["step"].min()]
        start = start[start["dead"] > 0]
        on = ""
        mixes = len(_by_model(start, diagnosis.head)) > 1 and start["samples"].nunique() > 1
        if not mixes and not start["site"].isin(diagnosis.head.per_pass).any():
            noun = "sample" if start["samples"].max() == 1 else "samples"
            on = f" (silent on {_range(start['samples'])} {noun}{_soon_fired(diagnosis.timeline)})"
        lines.append(
            f"{plural(born, 'unit')} {was} dead at step 0{on}"
            + ("." if diagnosis.causes else ": look at the initialization and at the input.")
        )
    return lines


def _soon_fired(timeline: pd.DataFrame) -> str:
    """How many of the units dead at step 0 fired as soon as more samples were seen."""
    start, *later = timeline["step"].drop_duplicates().sort_values().to_list()
    if not later:
        return ""
    first, second = (timeline[timeline["step"] == step] for step in (start, later[0]))
    fired = int(second["revived"].sum())
    if not fired or second["samples"].max() <= first["samples"].max():
        return ""
    return f"; {fired:,} of them fired in the next window, on more samples"


def chosen_units(diagnosis: Diagnosis, all_units: bool) -> pd.DataFrame:
    """All units, or those that are not alive, or are not known to be as their axis is unknown."""
    units = diagnosis.units
    if all_units:
        return units
    return units[(units["verdict"] != "alive") | (units["unit_axis"] == "unknown").fillna(False)]


def own_cause(causes: Sequence[Cause]) -> Cause | None:
    """The cause of the whole run; None if no unit died, or no causes were determined."""
    if not causes or (kind_named(causes[0].kind).claim == "nothing" and causes[0].share == 0):
        return None
    return causes[0]


def instruction(cause: Cause | StructureNote) -> str:
    """What to do, as a sentence; empty if there is nothing to do."""
    return f"{cause.advice[:1].upper()}{cause.advice[1:]}." if cause.advice else ""


def _named(names: "pd.Series[str]", most: int = 3) -> str:
    names_shown = list(names.head(most))
    more = len(names) - len(names_shown)
    return ", ".join(f"'{name}'" for name in names_shown) + (f" and {more} more" if more else "")

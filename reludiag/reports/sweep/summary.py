"""The results of a sweep in sentences, including what remains unknown."""

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from reludiag.experiments.analysis.effects import Effects
from reludiag.experiments.analysis.odds import NOT_INSTALLED
from reludiag.experiments.analysis.safety import SafeRate
from reludiag.experiments.analysis.trend import NO_DEATHS, Trend
from reludiag.experiments.analysis.variance import ALWAYS_SAME, VarianceShare
from reludiag.reports.wording import p_text, plural, rate, share

SIGNIFICANT = 0.05
SOURCES = {
    "lr": "learning rate",
    "init": "initialization",
    "interaction": "both together",
    "residual": "the rest",
}
_MUCH_BORN = 0.05  # share of an initialization's units from which it is reported
_MOST_NAMED = 6


def headline(effects: Effects) -> str:
    """The main result in one sentence, or why there is none."""
    if not effects.runs:
        return "No run was given."
    if not effects.counted:
        none = f"None of {plural(effects.runs, 'run')} can be used: {_left_out(effects)}."
        errors = [error for error in effects.trials["error"].dropna() if error]
        return f"{none} First error: {errors[0]}" if errors else none
    trend = effects.trend
    if trend.reason == NO_DEATHS:
        return f"No unit died after step 0 in any of {plural(effects.counted, 'counted run')}."
    if trend.p_value is None:
        return f"It is unknown whether the learning rate kills units: {trend.reason}."
    if trend.smallest_p is not None and trend.smallest_p > SIGNIFICANT:
        return (
            f"{plural(trend.runs, 'run')} are too few to show whether the learning rate kills "
            f"units: even a perfect order of them would have p = {p_text(trend.smallest_p)}. More "
            "learning rates or seeds would."
        )
    if trend.p_value > SIGNIFICANT:
        return (
            "There is no clear effect of the learning rate on new deaths in "
            f"{plural(trend.runs, 'run')} "
            f"(p = {p_text(trend.p_value)})."
        )
    shares = [effects.variance_share("new", source) for source in SOURCES]
    explained = [item for item in shares[:3] if item.share is not None]
    if not explained or explained[0].source != "lr":
        return f"{_direction(trend)} ({_test(trend)})."
    return (
        f"Learning rate explains {_explained(explained[0])} of the differences in new deaths"
        + "".join(f", {SOURCES[item.source]} {_explained(item)}" for item in explained[1:])
        + f" ({_test(trend)})."
    )


def findings(effects: Effects) -> list[str]:
    """The results, one sentence each, the most important first; also what is unknown."""
    if not effects.counted:
        return [*_safe_sentences(effects)]
    lines = []
    trend = effects.trend
    if trend.p_value is not None and trend.p_value <= SIGNIFICANT:
        rising = [t for t in effects.trends if t.correlation is not None]
        same = [t for t in rising if (t.correlation or 0) * (trend.correlation or 0) > 0]
        which = (
            f" in {len(same)} of {plural(len(rising), 'initialization')}" if len(rising) > 1 else ""
        )
        lines.append(
            f"{_direction(trend)}{which}: rank correlation {trend.correlation:.2f} within an "
            "initialization. The test permutes runs, because the units of one run die together."
        )
    odds = effects.odds
    if odds.odds_ratio is not None and odds.low is not None and odds.high is not None:
        lines.append(
            f"A ten times larger learning rate multiplies a unit's odds of dying by "
            f"{odds.odds_ratio:.3g} (95 %: {odds.low:.3g} to {odds.high:.3g}, errors by run)."
        )
    elif odds.reason == NOT_INSTALLED:
        lines.append(
            f"Not known: by how much ten times the learning rate multiplies a unit's odds to die; "
            f"{NOT_INSTALLED}."
        )
    lines += _safe_sentences(effects)
    lines += _born_sentences(effects)
    lines += _untold_sentences(effects)
    return lines


def caveats(effects: Effects) -> list[str]:
    """What was left out, and what makes the runs hard to compare."""
    lines = []
    if effects.counted and effects.counted < effects.runs:
        lines.append(
            f"Not counted: {_left_out(effects)}."
            + (" Units that are not finite are neither dead nor alive." if effects.diverged else "")
        )
    return [*lines, *effects.notes]


def size(effects: Effects) -> str:
    """The number of runs, learning rates and initializations."""
    rates, inits = effects.cells["lr"].nunique(), effects.cells["init"].nunique()
    return (
        f"{plural(effects.runs, 'run')}: {plural(rates, 'learning rate')}, "
        f"{plural(inits, 'initialization')}"
    )


def marks(effects: Effects) -> str:
    """The legend of the marks in the cells of a heat map."""
    cells, legend = effects.cells, []
    if cells["diverged"].any():
        legend.append("NaN: all runs diverged   !: some runs diverged, the share is of the others")
    if (cells["crashed"] == cells["runs"]).any():
        legend.append("crash: all runs crashed")
    return "   ".join(legend)


def interval(item: VarianceShare) -> str:
    """`70-78 %`, with a decimal if the ends would look equal; empty without an interval."""
    if item.low is None or item.high is None:
        return ""
    for digits in (0, 1):
        ends = [_end(end, digits) for end in (item.low, item.high)]
        if ends[0] != ends[1]:
            break
    return f"{'-'.join(dict.fromkeys(ends))} %"


def _end(part: float, digits: int) -> str:
    """An end of an interval; 0 and 100 only for exactly none and all."""
    text = f"{100 * part:.{digits}f}"
    rounded_away = (part > 0 and float(text) == 0) or (part < 1 and float(text) == 100)
    return share(part, 1).removesuffix(" %") if rounded_away or part in (0, 1) else text


def _left_out(effects: Effects) -> str:
    parts = [
        (effects.diverged, "diverged"),
        (effects.crashed, "did not finish"),
        (effects.repeated, "with the same learning rate, initialization and seed as another"),
        (effects.unplaced, "with an unknown learning rate or without units that can die"),
    ]
    return (
        ", ".join(f"{plural(count, 'run')} {what}" for count, what in parts if count) or "no runs"
    )


def _explained(item: VarianceShare) -> str:
    around = f" ({interval(item)})" if interval(item) and item.source != "interaction" else ""
    return f"{share(item.share or 0.0, 1)}{around}"


def _test(trend: Trend) -> str:
    return f"p = {p_text(trend.p_value or 0.0)}, {plural(trend.runs, 'run')}"


def _direction(trend: Trend) -> str:
    more = "More" if (trend.correlation or 0) > 0 else "Fewer"
    return f"{more} units die at higher learning rates"


def _safe_sentences(effects: Effects) -> list[str]:
    """The safe learning rates of each initialization; equal ones in one clause."""
    born = effects.heat_map("born").mean(axis=1)
    by_rate: dict[float, list[SafeRate]] = {}
    lines, never, clauses = [], [], []
    for item in effects.safe:
        if item.highest_safe is not None:
            by_rate.setdefault(item.highest_safe, []).append(item)
        elif item.lowest_unsafe is not None:
            never.append(item)
    for highest in sorted(by_rate, reverse=True):
        items = by_rate[highest]
        ends = (
            "" if any(item.lowest_unsafe is not None for item in items) else ", the highest tried"
        )
        clauses.append(f"{_enumerate(_named(i, born) for i in items)} up to {rate(highest)}{ends}")
    limit = f"{100 * effects.safe_new:g} %"
    if clauses:
        fewest = min(item.fewest_runs for item in effects.safe if item.highest_safe is not None)
        lines.append(
            f"Safe learning rates (at most {limit} new deaths in each run): {'; '.join(clauses)}."
            + (" This is based on one run each." if fewest == 1 else "")
        )
    if never:
        why = _enumerate(
            f"{i.init} ({_why_unsafe(i)} at {rate(i.lowest_unsafe or 0)})" for i in never
        )
        lines.append(f"Not safe at any of these learning rates: {why}.")
    unknown: dict[str, list[str]] = {}
    for item in effects.safe:
        if item.safe_above and item.lowest_unsafe is not None:
            again = _enumerate(rate(value) for value in item.safe_above)
            lines.append(
                f"{item.init} is not safe at {rate(item.lowest_unsafe)} ({_why_unsafe(item)}), "
                f"but is again at {again}: do not rely on that."
            )
        if item.untold:
            unknown.setdefault(_enumerate(rate(lr) for lr in item.untold), []).append(item.init)
    lines += [
        f"For {_enumerate(of)} at {at}, no run gives an answer." for at, of in unknown.items()
    ]
    return lines


def _named(item: SafeRate, born: "pd.Series[float]") -> str:
    dead = born.get(item.init, math.nan)
    return f"{item.init} (but {share(dead, 1)} born dead)" if dead >= _MUCH_BORN else item.init


def _why_unsafe(item: SafeRate) -> str:
    why = [] if item.unsafe_new is None else [f"up to {share(item.unsafe_new, 1)} new deaths"]
    if item.unsafe_diverged:
        why.append(f"{plural(item.unsafe_diverged, 'run')} diverged")
    return ", ".join(why)


def _born_sentences(effects: Effects) -> list[str]:
    born = effects.heat_map("born").mean(axis=1)
    explained = effects.variance_share("born", "init")
    high = born[born >= _MUCH_BORN].sort_values(ascending=False)
    text = _enumerate(f"{init} {share(part, 1)}" for init, part in high.items())
    if explained.share is None:
        return [f"Dead at step 0: {text}."] if len(high) else []
    if not len(high):
        return []
    return [
        f"Dead at step 0, before any training: {text}. Initialization explains "
        f"{_explained(explained)} of the differences."
    ]


def _untold_sentences(effects: Effects) -> list[str]:
    """What is unknown and why, unless the headline says it already."""
    lines = []
    for response, of in (("new", "new deaths"), ("born", "units dead at step 0")):
        reasons: dict[str, list[str]] = {}
        for source in ("lr", "init"):
            item = effects.variance_share(response, source)
            if item.share is None and item.reason not in (effects.trend.reason, ALWAYS_SAME):
                reasons.setdefault(item.reason, []).append(SOURCES[source])
        lines += [
            f"It is unknown how much of {of} is explained by {_enumerate(names)} ({why})."
            for why, names in reasons.items()
        ]
    silent = [trend for trend in effects.trends if trend.correlation is None]
    by_reason: dict[str, list[str]] = {}
    for trend in silent if effects.trend.correlation is not None else []:
        by_reason.setdefault(trend.reason, []).append(str(trend.init))
    lines += [f"{_enumerate(inits)}: {why}." for why, inits in by_reason.items()]
    shares = [s for s in effects.variance if s.share is not None]
    if shares and all(item.low is None for item in shares):
        lines.append(
            "The uncertainty of the shares is unknown: there are too few runs with the same "
            "learning rate and initialization, or they do not differ. Run three seeds of each."
        )
    return lines


def _enumerate(names: Iterable[str]) -> str:
    all_names: Sequence[str] = list(names)
    part, more = all_names[:_MOST_NAMED], len(all_names) - _MOST_NAMED
    if more > 0:
        return ", ".join(part) + f" and {more} more"
    return " and ".join([", ".join(part[:-1]), part[-1]]) if len(part) > 1 else "".join(part)

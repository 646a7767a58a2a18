"""What the rows say together: the matrix, the mistakes that were sure, and what advice does."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.deadbench.judging import ADVICE, FIXES, TENTH, Row
from benchmarks.deadbench.replaying import is_right
from benchmarks.deadbench.training import CAUSES, Training
from benchmarks.report import markdown

HEADINGS = (
    "cause",
    "training",
    "lost",
    "without it",
    "said",
    "right",
    *FIXES,
    "critical",
    "alarms",
)
NEAR_HALF = (0.2, 0.8)
"""A critical rate is taken as good if it prevents a share of the deaths between these."""


def cells(training: Training, rows: Sequence[Row]) -> tuple[str, ...]:
    """One training, all its seeds."""
    proved = [row for row in rows if row.proof.proved]
    if not proved:
        reasons = "; ".join(dict.fromkeys(row.proof.reason for row in rows))
        return (training.cause, training.name, *[""] * 2, f"not proved: {reasons}", *[""] * 8)
    lost = [row.answer.outcome.at(training.site) for row in proved]
    rest = [row.proof.without[training.cause].at(training.site) for row in proved if row.proof.gone]
    said = Counter(row.answer.cause + ("" if row.answer.sure else "?") for row in proved)
    return (
        training.cause,
        training.name,
        f"{statistics.mean(lost):.0%}",
        f"{statistics.mean(rest):.0%}" if rest else "",
        ", ".join(f"{name} {count}" for name, count in said.most_common()),
        _share(row.is_right for row in proved),
        *(_works(fix, proved) for fix in FIXES),
        ", ".join(f"{r.at_critical:.0%}" for r in proved if r.at_critical is not None),
        str(sum(row.answer.alarms for row in proved)),
    )


def summary(rows: Sequence[Row], replays: Mapping[str, str]) -> str:
    """All tables and sentences, in Markdown. `replays` has the answers by name of a training."""
    left_out = [row for row in rows if not row.proof.proved]
    proved = [row for row in rows if row.proof.proved]
    ill = [row for row in proved if row.training.cause != "none"]
    well = [row for row in proved if row.training.cause == "none"]
    parts = [
        f"{len(rows)} runs of {len({row.training.name for row in rows})} trainings; "
        f"{len(left_out)} did not prove their cause and are left out. "
        f"The cause is right in {_share(row.is_right for row in ill)} runs in which units died, "
        f"and in {_share(row.is_right for row in well)} healthy ones.",
        "What is said (columns) of what is proved (rows):",
        _confusion(proved),
        _sure_and_wrong(proved),
        _also_slower(ill),
        "Fixes that remove 80 % of the deaths without a worse loss, of the runs in which units "
        "died:",
        _efficacy(ill),
        "Of all these runs, by fix:",
        _by_fix(ill),
        _followed(ill),
        _alarms(ill, well),
        _critical(ill),
        *_replays(rows, replays),
        *(
            f"Left out: {row.training.name}, seed {row.seed}: {row.proof.reason}."
            for row in left_out
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _confusion(rows: Sequence[Row]) -> str:
    said = [name for name in CAUSES if any(row.answer.cause == name for row in rows)]
    table = []
    for cause, mine in _by_cause(rows):
        counts = Counter(row.answer.cause for row in mine)
        sure = [row for row in mine if row.answer.sure]
        right = sum(row.is_right for row in sure)
        table.append(
            (
                cause,
                *(str(counts[name] or "") for name in said),
                _share(row.is_right for row in mine),
                str(right),
                str(len(sure) - right),
            )
        )
    return markdown(("proved", *said, "right", "sure and right", "sure and wrong"), *table)


def _sure_and_wrong(rows: Sequence[Row]) -> str:
    wrong = Counter(
        (row.training.cause, row.training.name, row.answer.cause)
        for row in rows
        if row.answer.sure and not row.is_right
    )
    if not wrong:
        return "No answer is sure and wrong."
    lines = [
        f"- {name} ({cause}): {said}, {count} {'seed' if count == 1 else 'seeds'}"
        for (cause, name, said), count in wrong.items()
    ]
    return "\n".join([f"Sure and wrong in {wrong.total()} of {len(rows)} runs:", "", *lines])


def _also_slower(rows: Sequence[Row]) -> str:
    """How many wrong blames of the rate name something that would do, though it is not what is
    wrong.
    """
    blamed = [row for row in rows if not row.is_right and row.answer.cause == "learning_rate"]
    return (
        f"`learning_rate` is said wrongly in {len(blamed)} runs; in "
        f"{sum(row.effects[TENTH].works for row in blamed)} of them a tenth of the rate would "
        "have been a fix too."
    )


def _efficacy(rows: Sequence[Row]) -> str:
    groups = [*_by_cause(rows), ("all", rows)]
    table = [(cause, *(_works(fix, mine) for fix in FIXES)) for cause, mine in groups]
    return markdown(("proved", *FIXES), *table)


def _by_fix(rows: Sequence[Row]) -> str:
    def share(fix: str, holds: Callable[[str, Row], bool]) -> str:
        return _share(fix in row.effects and holds(fix, row) for row in rows)

    table = [
        (
            fix,
            share(fix, lambda fix, row: row.effects[fix].is_down),
            share(fix, lambda fix, row: not row.effects[fix].is_worse),
            share(fix, lambda fix, row: row.effects[fix].works),
        )
        for fix in FIXES
    ]
    return markdown(("fix", "deaths down by 80 %", "loss not worse", "both"), *table)


def _followed(rows: Sequence[Row]) -> str:
    silent = sum(not row.answer.advice for row in rows)
    left = Counter(part for row in rows if ADVICE not in row.effects for part in row.followed.left)
    lines = [
        f"Of {len(rows)} runs in which units died, {silent} get no advice, and in "
        f"{sum(ADVICE in row.effects for row in rows)} it can be followed mechanically, in part at "
        "least. Advice that cannot be:"
    ]
    return "\n".join([*lines, "", *(f"- {part}: {n} runs" for part, n in left.most_common(8))])


def _alarms(ill: Sequence[Row], well: Sequence[Row]) -> str:
    worse = sum(ADVICE in row.effects and row.effects[ADVICE].is_worse for row in well)
    return (
        f"The Monitor warns in {_share(bool(row.answer.alarms) for row in well)} healthy runs and "
        f"in {_share(bool(row.answer.alarms) for row in ill)} others. Healthy runs get an advice "
        f"in {sum(bool(row.answer.advice) for row in well)} of {len(well)}; followed, it makes the "
        f"loss worse in {worse}."
    )


def _critical(rows: Sequence[Row]) -> str:
    shares = [row.at_critical for row in rows if row.at_critical is not None]
    if not shares:
        return ""
    low, high = NEAR_HALF
    near = sum(low <= share <= high for share in shares)
    return (
        "A critical rate is said to prevent half of the deaths. Where the rate is the cause and "
        f"constant, trained at it, it prevents {statistics.median(shares):.0%} (median of "
        f"{len(shares)} runs); between {low:.0%} and {high:.0%} in {near}."
    )


def _replays(rows: Sequence[Row], replays: Mapping[str, str]) -> list[str]:
    """The table of replays' answers, if there are any."""
    proved = {row.training.name: row for row in rows if row.proof.proved}
    answered = [(proved[name], said) for name, said in replays.items() if name in proved]
    if not answered:
        return []
    answers = sorted({said for _, said in answered})
    table = []
    for cause in CAUSES:
        mine = [(row, said) for row, said in answered if row.training.cause == cause]
        if mine:
            counts = Counter(said for _, said in mine)
            right = _share(is_right(said, row.proof.proved) for row, said in mine)
            table.append((cause, *(str(counts[name] or "") for name in answers), right))
    return [
        "`replay` with a tenth of the rate, Kaiming's weights, a centred input, and without decay, "
        "momentum and penalty, by training, from all seeds. `neither` is right where the cause is "
        "another one:",
        markdown(("proved", *answers, "right"), *table),
    ]


def _by_cause(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    groups = [(cause, [row for row in rows if row.training.cause == cause]) for cause in CAUSES]
    return [(cause, mine) for cause, mine in groups if mine]


def _works(fix: str, rows: Sequence[Row]) -> str:
    tried = any(fix in row.effects for row in rows)
    is_ill = any(row.training.cause != "none" for row in rows)
    return (
        _share(fix in r.effects and r.effects[fix].works for r in rows) if tried or is_ill else ""
    )


def _share(which: Iterable[bool]) -> str:
    each = [*which]
    return f"{sum(each)} of {len(each)}"

"""Effects: what a table of trials shows about learning rate and initialization.

The unit of analysis is the run, not the unit of the network: units of one run die together. A run
with a unit that is not finite has diverged. Diverged and crashed runs are counted separately,
because their silent units prove nothing.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pandas as pd

from reludiag.errors import UsageError
from reludiag.experiments.analysis.odds import DeathOdds, death_odds
from reludiag.experiments.analysis.safety import SAFE_NEW, SafeRate, safe_rate
from reludiag.experiments.analysis.trend import Runs, Trend, rank_trends
from reludiag.experiments.analysis.variance import VarianceShare, variance_shares
from reludiag.experiments.trial_table import METRIC, recording_notes
from reludiag.tables import Column, table_of

RESPONSES = ("born", "new", "dead")
"""born: dead at step 0, of all units. new: dead at the end, of those alive at step 0. dead: dead
at the end, of all units."""

CELL_COLUMNS = (
    Column("init", "str", "initialization scheme"),
    Column("lr", "float64", "learning rate"),
    Column("runs", "Int64", "runs of this cell"),
    Column("counted", "Int64", "of these, the runs that the shares are computed from"),
    Column("diverged", "Int64", "of these, runs with a unit that was not finite"),
    Column("crashed", "Int64", "of these, runs that did not finish"),
    Column("born", "float64", "share of units dead at step 0, mean over runs"),
    Column(
        "new", "float64", "share of units alive at step 0 that are dead at the end, mean over runs"
    ),
    Column("dead", "float64", "share of units dead at the end, mean"),
)

_NEEDED = ("lr", "init", "status", "units", "born", "new", "dead", "nonfinite")
_DIGITS = 12  # of a learning rate: 0.1 * 0.1 and 0.01 are one


@dataclass(frozen=True)
class Effects:
    """The results of all runs together."""

    trials: pd.DataFrame
    """The input table."""
    runs: int
    counted: int
    """Number of runs from which the shares of dead units are computed."""
    diverged: int
    crashed: int
    unplaced: int
    """Runs left out because their learning rate is unknown, or because none of their units can die.
    """
    repeated: int
    """Runs left out because a run with the same learning rate, initialization and seed is already
    counted.
    """
    cells: pd.DataFrame
    """A row per initialization and learning rate, in the order they come: `CELL_COLUMNS`, and the
    median over the counted runs of each number that train returned.
    """
    trends: tuple[Trend, ...]
    """Trend of new deaths with the learning rate, within each initialization."""
    trend: Trend
    """The same within all initializations together: the test to report."""
    variance: tuple[VarianceShare, ...]
    """For each response and each source."""
    odds: DeathOdds
    safe: tuple[SafeRate, ...]
    safe_new: float
    """Largest share of new deaths of a safe run."""
    notes: tuple[str, ...]
    """What the reader must know to judge the numbers."""

    def heat_map(self, response: str) -> pd.DataFrame:
        """`born`, `new`, `dead` or one of `metrics`, as `cells` has it: a row per initialization, a
        column per learning rate.
        """
        inits = list(dict.fromkeys(self.cells["init"]))
        rates = sorted(set(self.cells["lr"]))
        table = self.cells.pivot(index="init", columns="lr", values=response)
        return table.reindex(index=inits, columns=rates)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what train returned, as `cells` has them: `metric.loss`."""
        return tuple(_metrics(self.cells))

    def variance_share(self, response: str, source: str) -> VarianceShare:
        """The entry of `variance` for this response and source."""
        return next(v for v in self.variance if (v.response, v.source) == (response, source))

    def to_json(self, path: str | Path | IO[str]) -> None:
        """Write one JSON document with a `schema_version`; `-` is stdout."""
        from reludiag.reports.output import write
        from reludiag.reports.sweep.document import effects_document

        write(path, effects_document(self))

    def to_csv(self, path: str | Path | IO[str]) -> None:
        """Write the table of trials; `-` is stdout."""
        from reludiag.reports.csv_file import write_csv

        write_csv(self.trials, path)

    def to_html(self, path: str | Path | IO[str]) -> None:
        """Write the report as one self-contained page; `-` is stdout."""
        from reludiag.reports.html.sweep_page import effects_page
        from reludiag.reports.output import write

        write(path, effects_page(self))

    def _repr_html_(self) -> str:
        """The HTML that a notebook displays."""
        from reludiag.reports.html.sweep_page import effects_fragment

        return effects_fragment(self)

    def figure(self) -> Any:
        """A matplotlib figure of the heat maps."""
        from reludiag.reports.sweep.figures import sweep_figure

        return sweep_figure(self)

    def __str__(self) -> str:
        """The terminal report as plain text, 80 columns wide."""
        from reludiag.reports.sweep.terminal import effects_text

        return effects_text(self)


def effects(trials: pd.DataFrame, *, safe_new: float = SAFE_NEW, seed: int = 0) -> Effects:
    """Analyse a table of trials; `seed` is for the permutations and the bootstrap.

    `trials` has the columns of `TRIAL_COLUMNS`, at least lr, init, status, units, born, new, dead
    and nonfinite. Raises UsageError if one of these is missing, or if a share is impossible.
    """
    runs = _runs(trials, safe_new)
    counted = runs[runs["counted"]]
    runs_in_cells = runs[~runs["unplaced"] & ~runs["repeated"]]
    runs_by_response = {response: counted[counted[response].notna()] for response in RESPONSES}
    new = runs_by_response["new"]
    trends, trend = rank_trends(
        {str(init): _pair(group) for init, group in _in_order(new, "init")}, seed=seed
    )
    return Effects(
        trials=trials,
        runs=len(runs),
        counted=len(counted),
        diverged=int(runs["diverged"].sum()),
        crashed=int(runs["crashed"].sum()),
        unplaced=int(runs["unplaced"].sum()),
        repeated=int(runs["repeated"].sum()),
        cells=_cells(runs_in_cells),
        trends=trends,
        trend=trend,
        variance=tuple(
            share
            for response, of in runs_by_response.items()
            for share in variance_shares(
                response, of["lr"].tolist(), of["init"].tolist(), of[response].tolist(), seed=seed
            )
        ),
        odds=death_odds(
            new["lr"].tolist(), new["init"].tolist(), new["died"].tolist(), new["exposed"].tolist()
        ),
        safe=tuple(
            safe_rate(str(init), group[["lr", "diverged", "new"]], safe_new)
            for init, group in _in_order(runs_in_cells, "init")
        ),
        safe_new=safe_new,
        notes=tuple(_notes(trials[runs["counted"].to_numpy()], runs)),
    )


def _runs(trials: pd.DataFrame, safe_new: float) -> pd.DataFrame:
    """A row per run: its cell, its status, and the responses (NaN if unknown)."""
    missing = [name for name in _NEEDED if name not in trials]
    if missing:
        raise UsageError(
            f"a table without {', '.join(missing)} was given; expected a table of trials from "
            f"sweep or compare, with at least {', '.join(_NEEDED)}"
        )
    if not 0 <= safe_new < 1:
        raise UsageError(f"safe_new={safe_new} was given; expected a share from 0 to below 1")
    number = {
        name: pd.to_numeric(trials[name]).astype("Float64").to_numpy(float, na_value=float("nan"))
        for name in ("lr", "units", "born", "new", "dead", "nonfinite")
    }
    runs = pd.DataFrame({**number, "init": trials["init"].astype(str).to_numpy()})
    runs["lr"] = [float(f"{rate:.{_DIGITS}g}") for rate in runs["lr"]]
    over = runs[(runs[["born", "new", "dead"]].gt(runs["units"], axis=0)).any(axis=1)]
    if len(over):
        raise UsageError(
            f"row {over.index[0]} of the trials has more dead units than units; expected born, "
            "new and dead to be counts of units"
        )
    status = trials["status"].astype(str).to_numpy()
    runs["crashed"] = status == "crashed"
    runs["diverged"] = ~runs["crashed"] & ((status == "diverged") | (runs["nonfinite"] > 0))
    runs["unplaced"] = runs["lr"].isna() | (
        ~runs["crashed"] & ~runs["diverged"] & ~(runs["units"] > 0)
    )
    runs["repeated"] = _repeated(trials, runs)
    runs["diverged"] &= ~runs["repeated"]
    runs["counted"] = ~runs[["crashed", "diverged", "unplaced", "repeated"]].any(axis=1)
    exposed = runs["units"] - runs["born"]
    runs["exposed"], runs["died"] = exposed, runs["new"]
    runs["new"] = (runs["new"] / exposed.where(exposed > 0)).where(runs["counted"])
    runs["born"] = (runs["born"] / runs["units"].where(runs["units"] > 0)).where(runs["counted"])
    runs["dead"] = (runs["dead"] / runs["units"].where(runs["units"] > 0)).where(runs["counted"])
    for name in _metrics(trials):
        values = pd.to_numeric(trials[name]).astype("float64").to_numpy()
        runs[name] = pd.Series(values, index=runs.index).where(runs["counted"])
    return runs


def _metrics(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table.columns if str(name).startswith(METRIC)]


def _repeated(trials: pd.DataFrame, runs: pd.DataFrame) -> "pd.Series[bool]":
    """Runs with the same learning rate, initialization and seed as an earlier row."""
    if "seed" not in trials:
        return pd.Series(False, index=runs.index)
    seeds = runs.assign(seed=pd.to_numeric(trials["seed"]).to_numpy())
    usable = seeds[~seeds["crashed"] & ~seeds["unplaced"] & seeds["seed"].notna()]
    twice = usable.duplicated(["lr", "init", "seed"])
    return twice.reindex(runs.index, fill_value=False)


def _in_order(runs: pd.DataFrame, by: str) -> Iterable[tuple[Hashable, pd.DataFrame]]:
    return runs.groupby(by, sort=False)


def _pair(group: pd.DataFrame) -> Runs:
    return group["lr"].tolist(), group["new"].tolist()


def _cells(runs: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    metrics = _metrics(runs)
    for init, of_init in _in_order(runs, "init"):
        for lr, cell in of_init.groupby("lr"):
            rows.append(
                {
                    "init": init,
                    "lr": lr,
                    "runs": len(cell),
                    **{name: cell[name].sum() for name in ("counted", "diverged", "crashed")},
                    **{response: cell[response].mean() for response in RESPONSES},
                    **{name: cell[name].median() for name in metrics},
                }
            )
    columns = CELL_COLUMNS + tuple(
        Column(name, "float64", "what train returned, median over runs") for name in metrics
    )
    return table_of(columns, rows)


def _notes(counted: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Reasons why runs are hard to compare."""
    notes = []
    for name, what, why in (
        ("steps", "steps", "units have more time to die in a longer run"),
        ("units", "units", "they are different networks"),
        ("probe", "samples of the probe", "with fewer samples more units look dead"),
    ):
        values = counted[name].dropna() if name in counted else counted["units"].iloc[:0]
        if values.nunique() > 1:
            notes.append(
                f"The runs differ in {what}, {values.min():,} to {values.max():,}: {why}. The "
                "results below do not correct for this."
            )
    notes += _probe_notes(counted)
    unborn = int((runs["counted"] & runs["born"].isna()).sum())
    if unborn:
        notes.append(
            f"{unborn:,} of the runs have no snapshot at step 0: their dead units count as dead "
            "only, neither as born dead nor as new."
        )
    notes += recording_notes(counted)
    if (runs["init"] == "unknown").any():
        notes.append(
            "Recordings that do not name their initialization are listed as unknown: the effect "
            "of the initialization cannot be separated for them."
        )
    return notes


def _probe_notes(counted: pd.DataFrame) -> list[str]:
    """The note that deaths on a probe and deaths in training differ in kind."""
    probed = int(counted["probe"].notna().sum()) if "probe" in counted else 0
    if not 0 < probed < len(counted):
        return []
    return [
        f"{probed:,} of {len(counted):,} runs judged their units on a probe, the others on "
        "training batches. Dead means silent on the probe in the first, and silent in each batch "
        "of a window in the others: do not compare their shares."
    ]

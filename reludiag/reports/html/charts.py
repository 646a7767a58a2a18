"""The arrays for the charts of the page, and the dead units as CSV."""

import base64
import io
from typing import Any

import numpy as np

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.recording.ledger import Life
from reludiag.reports.csv_file import write_frame
from reludiag.reports.json_text import finite
from reludiag.reports.run.lifelines import LifelineChart, SiteLine
from reludiag.reports.run.summary import never_fired

MOST_LISTED = 10_000
"""Largest number of dead units that a page lists; the CSV has all."""
MOST_MARKS = 40
"""Marks that a page draws; the JSON has all."""
MOST_METRICS = 12
"""Metrics that a page draws; the JSON has all."""
MOST_POINTS = 1_000
_BINS = 20  # of firing rates above 0: 5 % each


def charts(diagnosis: Diagnosis, lives: LifelineChart | None) -> dict[str, Any]:
    """All chart data; arrays are Plotly typed arrays: dtype, bdata, shape."""
    return {
        "lives": None if lives is None else _lives(lives),
        "states": {life.name.lower(): int(life) for life in Life},
        "firing": _firing(diagnosis),
        "marks": _marks(diagnosis),
        "metrics": _metrics(diagnosis),
        "csv": dead_csv(diagnosis),
    }


def dead_csv(diagnosis: Diagnosis) -> str:
    """The dead units as `to_csv` writes them."""
    stream = io.StringIO()
    units = diagnosis.units
    write_frame(units[units["verdict"] == "dead"].head(MOST_LISTED), stream)
    return stream.getvalue()


def _lives(lives: LifelineChart) -> dict[str, Any]:
    return {
        "edges": list(lives.edges),
        "joined": lives.joined,
        "whole": _line(lives.whole),
        "sites": [_line(site) for site in lives.sites],
    }


def _line(line: SiteLine) -> dict[str, Any]:
    return {
        "name": line.name,
        "units": line.units,
        # JSON has no NaN, and a rate that never changes need not be repeated.
        "rate": [None if np.isnan(rate) else float(rate) for rate in line.learning_rate],
        **{kind: packed(getattr(line, kind)) for kind in ("dead", "nonfinite", "died", "revived")},
        "states": None if line.states is None else packed(line.states),
    }


def _marks(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Step and name of each mark, or of evenly chosen ones if there are many."""
    marks = diagnosis.marks[diagnosis.marks["mark"].notna()]
    chosen = marks.iloc[:: max(1, -(-len(marks) // MOST_MARKS))]
    return [
        {"step": int(row["step"]), "name": str(row["mark"])} for row in chosen.to_dict("records")
    ]


def _metrics(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Of each metric the mean and the last value of each window, at the step of the last value.

    If there are more windows than a picture has room for, evenly chosen ones.
    """
    lines = []
    for name, rows in list(diagnosis.metrics.groupby("metric", sort=False))[:MOST_METRICS]:
        chosen = rows.iloc[:: -(-len(rows) // MOST_POINTS)]
        lines.append(
            {
                "name": str(name),
                "steps": chosen["step"].astype(int).tolist(),
                "mean": finite(chosen["mean"].tolist()),
                "last": finite(chosen["last"].tolist()),
            }
        )
    return lines


def _firing(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """For each site, the number of units that never fire, that fire in up to 5 %, 10 %, ...

    of samples.
    """
    units = diagnosis.units
    units = units[units["firing_rate"].notna() & (units["verdict"] != "nonfinite")]
    rows = []
    for name, rows_there in units.groupby("site", sort=False):
        never = never_fired(rows_there)
        rates = rows_there["firing_rate"].to_numpy(float)[~never]
        # Slightly down, so that 5 % is in the bin that ends there.
        bins = np.clip(np.ceil(rates * _BINS - 1e-9).astype(int), 1, _BINS)
        counts = np.bincount(bins, minlength=_BINS + 1)
        counts[0] = int(never.sum())
        rows.append({"name": str(name), "counts": counts.tolist()})
    return rows


def packed(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """An integer array in the smallest dtype that holds it."""
    if array.dtype != np.uint8:
        array = array.astype(np.min_scalar_type(int(array.max(initial=0))))
    if array.dtype.itemsize == 8:
        array = array.astype(np.uint32)
    return {
        "dtype": f"u{array.dtype.itemsize}",
        "shape": list(array.shape),
        "bdata": base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode(),
    }

"""Reads a recording, also while it is being written or after its run was killed."""

import contextlib
import datetime
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from reludiag.errors import RecordingError
from reludiag.measure.structure import InputScale
from reludiag.measure.unit_counts import UnitCounts
from reludiag.recording.observations import (
    Baseline,
    Death,
    Drift,
    Edit,
    GradientNorm,
    History,
    InitialLayer,
    InputStatistics,
    Jump,
    Observations,
    OutputGradient,
    TrainingInput,
    Update,
)
from reludiag.recording.records import (
    Mark,
    Metric,
    RecordedRun,
    RecordedSite,
    RecordingProgress,
)
from reludiag.recording.schema import (
    APPLICATION_ID,
    OLDEST_READ,
    SCHEMA_VERSION,
    Mask,
    mask_of,
    unpacked,
)
from reludiag.sites.consumers import Consumer
from reludiag.sites.site import Rectifier, Site


def read_recording(path: str | Path) -> RecordedRun:
    """Read a recording, also while it is being written or after its run was killed.

    Raises RecordingError if the file is missing, damaged, not a recording, or of a newer version.
    """
    with _opened(path) as db:
        problems = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise RecordingError(f"{path} is damaged: {problems[0]}. The copy may be incomplete")
        return read_run(db)


def read_progress(path: str | Path) -> RecordingProgress:
    """Read the progress of a recording, which is cheap also for large ones.

    Raises RecordingError as `read_recording` does.
    """
    with _opened(path) as db:
        db.execute("BEGIN")
        facts = {key: json.loads(value) for key, value in db.execute("SELECT * FROM run")}
        rows = db.execute("SELECT step, taken FROM snapshot ORDER BY step").fetchall()
    times = (datetime.datetime.fromisoformat(time).timestamp() for _, time in rows)
    return RecordingProgress(facts, tuple(step for step, _ in rows), tuple(times))


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[sqlite3.Connection]:
    """Open a recording for reading; raises RecordingError for an unsupported version."""
    path = Path(path)
    if not path.is_file():
        raise RecordingError(f"{path} does not exist")
    with path.open("rb") as file:
        head = file.read(16)
    if not head.startswith(b"SQLite format 3"):
        raise RecordingError(
            f"{path} is not a recording: it begins with {head[:12]!r}, so it is not an SQLite "
            "file. Expected a file written by reludiag.Monitor(..., path=...); for a checkpoint "
            "use `reludiag scan MODEL CHECKPOINT`"
        )
    try:
        db = _open(path)
        try:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if application != APPLICATION_ID:
                raise RecordingError(f"{path} is an SQLite file, but not a recording of reludiag")
            if version < OLDEST_READ:
                raise RecordingError(
                    f"{path} has schema version {version}, of a development version: this "
                    f"reludiag reads {OLDEST_READ} to {SCHEMA_VERSION}. Record the run again"
                )
            if version > SCHEMA_VERSION:
                raise RecordingError(
                    f"{path} has schema version {version}; this reludiag reads up to "
                    f"{SCHEMA_VERSION}. Upgrade it: pip install -U reludiag"
                )
            yield db
        finally:
            db.close()
    except sqlite3.Error as error:
        raise RecordingError(
            f"{path} cannot be read: {error}. The copy may be incomplete"
        ) from error


def _open(path: Path) -> sqlite3.Connection:
    uri = path.resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True)
    try:
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # In a read-only folder the log cannot be shared, and nobody else writes there.
        db.close()
        db = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True)
    return db


def read_run(db: sqlite3.Connection) -> RecordedRun:
    """The whole content of an open database."""
    # One transaction, so that all tables are from the same moment.
    db.execute("BEGIN")
    try:
        facts = {key: json.loads(value) for key, value in db.execute("SELECT * FROM run")}
        snapshots = db.execute("SELECT step, first_step FROM snapshot ORDER BY step").fetchall()
        steps = tuple(step for step, _ in snapshots)
        rates = tuple(
            db.execute("SELECT step, param_group, learning_rate FROM learning_rate ORDER BY step")
        )
        version = db.execute("PRAGMA user_version").fetchone()[0]
        consumers = "consumers" if version > 3 else "NULL"
        names = "key, alias" if version > 4 else "name, ''"
        upper = "upper" if version > 6 else "NULL"
        selects_from = "selects_from" if version > 8 else "''"
        rows = db.execute(
            "SELECT id, name, module, operator, activation, can_die, signed, unit_axis, units,"
            f" producer, norm, param_group, {consumers}, {names}, {upper}, {selects_from}"
            " FROM site ORDER BY id"
        ).fetchall()
        sites = tuple(_read_site(db, row, steps, version) for row in rows)
        observations = _read_observations(db, version)
        metrics, marks = _read_logged(db) if version > 7 else ((), ())
    finally:
        db.execute("COMMIT")
    first_steps = tuple(first_step for _, first_step in snapshots)
    return RecordedRun(facts, steps, sites, rates, observations, first_steps, metrics, marks)


def _read_logged(db: sqlite3.Connection) -> tuple[tuple[Metric, ...], tuple[Mark, ...]]:
    rows = db.execute(
        "SELECT window, name, step, last, mean, count FROM metric ORDER BY window, name"
    )
    metrics = tuple(
        Metric(window, name, step, _nan_if_null(last), _nan_if_null(mean), count)
        for window, name, step, last, mean, count in rows
    )
    return metrics, tuple(
        Mark(*row) for row in db.execute("SELECT step, name FROM mark ORDER BY step, id")
    )


def _read_observations(db: sqlite3.Connection, version: int) -> Observations:
    scale = "scale" if version > 4 else "NULL"
    examined = "examined" if version > 5 else "1"
    events = _read_events(db) if version > 9 else {}
    # Sites are identified by name here, because keys are not stored.
    names = dict(db.execute("SELECT id, name FROM site"))
    return Observations(
        initial_layers=tuple(
            InitialLayer(module, json.loads(layer))
            for module, layer in db.execute("SELECT * FROM initialization ORDER BY rowid")
        ),
        inputs=tuple(
            InputStatistics(
                module,
                samples,
                bool(is_first),
                _nan_if_null(gamma),
                _nan_if_null(cosine),
                None if scale is None else InputScale.from_json(json.loads(scale)),
            )
            for module, samples, is_first, gamma, cosine, scale in db.execute(
                f"SELECT module, samples, is_first, gamma, cosine, {scale} FROM input"
                " ORDER BY rowid"
            )
        ),
        baselines=tuple(
            Baseline(names[site], born_dead, draws)
            for site, born_dead, draws in db.execute("SELECT * FROM baseline ORDER BY site")
        ),
        updates=tuple(
            Update(*row) for row in db.execute('SELECT * FROM "update" ORDER BY step, module')
        ),
        training_inputs=tuple(
            TrainingInput(step, _nan_if_null(mean), _nan_if_null(std))
            for step, mean, std in (
                db.execute("SELECT step, mean, std FROM training_input ORDER BY step")
                if version > 10
                else ()
            )
        ),
        output_gradients=tuple(
            OutputGradient(*row)
            for row in (
                db.execute("SELECT * FROM output_gradient ORDER BY output, step")
                if version > 12
                else ()
            )
        ),
        deaths=tuple(
            Death(
                names[site],
                unit,
                step,
                previous,
                _nan_if_null(fraction),
                None if drift[0] is None else Drift(*drift),
                bool(examined),
            )
            for site, unit, step, previous, fraction, *drift, examined in db.execute(
                "SELECT site, unit, step, previous, critical_fraction, before, after, by_weights,"
                f" by_input, by_bias, {examined} FROM death ORDER BY step, site, unit"
            )
        ),
        **events,
        histories=tuple(
            History(names[site], unit, step, *map(_nan_if_null, numbers))
            for site, unit, step, *numbers in (
                db.execute("SELECT * FROM history ORDER BY step, site, unit")
                if version > 11
                else ()
            )
        ),
    )


def _read_events(db: sqlite3.Connection) -> dict[str, Any]:
    """What single steps did to the weights."""
    return {
        "jumps": tuple(Jump(*row) for row in db.execute("SELECT * FROM jump ORDER BY step")),
        "edits": tuple(
            Edit(step, times, size, _nan_if_null(update), tuple(json.loads(modules)))
            for step, times, size, update, modules in db.execute("SELECT * FROM edit ORDER BY step")
        ),
        "gradient_norms": tuple(
            GradientNorm(*row) for row in db.execute("SELECT * FROM gradient ORDER BY step")
        ),
    }


def _nan_if_null(value: float | None) -> float:
    """SQLite stores NaN as null."""
    return float("nan") if value is None else value


def _read_site(
    db: sqlite3.Connection, row: Any, steps: tuple[int, ...], version: int
) -> RecordedSite:
    site_id, name, module, operator, activation, can_die, signed, axis, units, *rest = row
    producer, norm, group, consumers, key, alias, upper, selects_from = rest
    rectifier = Rectifier(activation, bool(can_die), bool(signed), upper=upper)
    read_by = None
    if consumers is not None:
        read_by = tuple(Consumer.from_json(content) for content in json.loads(consumers))
    site = Site(
        *(key, name, module, operator, rectifier, axis, units, producer, norm, read_by, alias),
        selects_from=selects_from,
    )
    width = units or 0
    position = {step: index for index, step in enumerate(steps)}
    sample_counts = np.zeros(len(steps), dtype=np.int64)
    dead, nonfinite, was_called = (np.zeros((len(steps), width), dtype=bool) for _ in range(3))
    rare, dormant = (np.full(len(steps), np.nan) for _ in range(2))
    numbers = "rare, dormant" if version > 5 else "NULL, NULL"
    for step, samples, dead_bits, nonfinite_bits, *known in db.execute(
        f"SELECT step, samples, dead, nonfinite, {numbers} FROM state WHERE site = ?", (site_id,)
    ):
        index = position[step]
        dead[index] = mask_of(dead_bits, width)
        nonfinite[index] = mask_of(nonfinite_bits, width)
        was_called[index] = samples > 0
        sample_counts[index] = samples
        rare[index], dormant[index] = (_nan_if_null(number) for number in known)
    statistics = db.execute("SELECT * FROM statistics WHERE site = ?", (site_id,)).fetchone()
    counts = UnitCounts.nothing(width)
    if statistics is not None:
        counts = UnitCounts(
            **{
                f.name: unpacked(f.name, value, width)
                # An older version has fewer.
                for f, value in zip(fields(UnitCounts), statistics[1:], strict=version > 8)
            }
        )
    has_state = was_called & ~nonfinite
    on_batch: dict[int, Mask] = {}
    if version > 10:
        query = "SELECT step, fires FROM on_batch WHERE site = ? ORDER BY step"
        on_batch = {
            position[step]: mask_of(bits, width) for step, bits in db.execute(query, (site_id,))
        }
    return RecordedSite(
        *(site, group, counts, sample_counts, dead, has_state, nonfinite, rare, dormant),
        on_batch=on_batch,
    )

"""The recording: the one SQLite file that a training run leaves behind.

Write-ahead log and one transaction a snapshot: whatever was acknowledged before a crash is there
after it, and a reader can follow a run that is still being written. On closing, the log is
folded in, so that a finished recording is a single file.
"""

import contextlib
import datetime
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from reludiag.errors import RecordingError
from reludiag.observations import Baseline, Death, Drift, Given, Observations, Start, Update
from reludiag.rectifiers import Rectifier
from reludiag.sites import Site
from reludiag.stats import UnitCounts

APPLICATION_ID = 0x52654C55  # "ReLU"

SCHEMA_VERSION = 3
# What each version changed:
#   1  the first
#   2  site: operator, norm; statistics: counted, silent, total_square, before_maximum. Version 1
#      was never released, and is not read.
#   3  initialization, input, baseline, update, death: what the causes are weighed by. Version 2
#      was never released either.

SCHEMA = """
CREATE TABLE run (                  -- what is known of the run as a whole
    key TEXT PRIMARY KEY,           -- model, optimizers, every, probe_samples, process, status, ...
    value TEXT NOT NULL             -- as JSON
);
CREATE TABLE site (                 -- the places where rectifiers run, in forward order
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,      -- layer1.0.relu#1
    module TEXT NOT NULL,           -- path of the rectifier module, or of a function's caller
    operator TEXT NOT NULL,         -- name of the function, empty for a module
    activation TEXT NOT NULL,       -- ReLU
    can_die INTEGER NOT NULL,       -- 0 for a leaky activation
    signed INTEGER NOT NULL,        -- 1 if it also fires where it is negative
    unit_axis TEXT NOT NULL,        -- 1, 1//49, unknown; empty if never called
    units INTEGER,                  -- null if never called
    producer TEXT,                  -- path of the module whose weights feed it
    norm TEXT,                      -- path of the BatchNorm in between
    param_group TEXT                -- "optimizer/group" that trains the producer, if one does
);
CREATE TABLE learning_rate (        -- a row when it changes, so that every step's can be told
    step INTEGER NOT NULL,          -- the first step taken with it; steps count from 1
    param_group TEXT NOT NULL,      -- "optimizer/group", both counted from 0
    learning_rate REAL NOT NULL,
    PRIMARY KEY (step, param_group)
);
CREATE TABLE snapshot (             -- one row each time the state was taken
    step INTEGER PRIMARY KEY,       -- optimizer steps taken so far; 0 is the initial state
    first_step INTEGER NOT NULL,    -- without a probe: it covers the training batches from
                                    -- after this step up to step; with one: equal to step
    taken TEXT NOT NULL             -- time, ISO 8601 in UTC
);
CREATE TABLE state (                -- which units were dead at a snapshot
    step INTEGER NOT NULL REFERENCES snapshot(step),
    site INTEGER NOT NULL REFERENCES site(id),
    samples INTEGER NOT NULL,       -- seen in the window, 0 if the site was not called
    dead BLOB NOT NULL,             -- a bit per unit, first unit in the highest bit
    nonfinite BLOB NOT NULL,        -- likewise: a NaN or an infinity was seen
    PRIMARY KEY (step, site)
) WITHOUT ROWID;
CREATE TABLE statistics (           -- the last snapshot's statistics, replaced by each
    site INTEGER PRIMARY KEY REFERENCES site(id),
    samples INTEGER NOT NULL,       -- of which it is known whether a unit fired in one of them
    counted INTEGER NOT NULL,       -- of these, what all but silent and nonfinite is of
    positions INTEGER NOT NULL,     -- per unit, over all counted samples
    calls INTEGER NOT NULL,
    silent BLOB NOT NULL,           -- a bit per unit, first unit in the highest bit
    nonfinite BLOB NOT NULL,        -- likewise: a NaN or an infinity was seen
    fired BLOB NOT NULL,            -- little-endian int64 per unit, as the next
    active BLOB NOT NULL,
    total BLOB NOT NULL,            -- little-endian float64 per unit, as all that follow
    total_absolute BLOB NOT NULL,
    total_square BLOB NOT NULL,
    maximum BLOB NOT NULL,
    minimum BLOB NOT NULL,
    before_maximum BLOB NOT NULL    -- of the pre-activations; -inf where none was read
);
CREATE TABLE initialization (       -- each layer that feeds a rectifier, before the first step
    module TEXT PRIMARY KEY,
    layer TEXT NOT NULL             -- scheme, bias, what is wrong with it: LayerInit as JSON
);
CREATE TABLE input (                -- what each linear layer or convolution was given at step 0
    module TEXT PRIMARY KEY,
    samples INTEGER NOT NULL,       -- of the probe, or of the first batch
    is_first INTEGER NOT NULL,      -- 1 if it is fed by the model's input and by no other layer
    gamma REAL,                     -- |mean| / |standard deviation|, of first layers; 9e999: no
                                    -- deviation
    cosine REAL                     -- mean cosine of two samples, where a sample is one vector
);
CREATE TABLE baseline (             -- the same model, its weights drawn anew, on the same samples
    site INTEGER PRIMARY KEY REFERENCES site(id),
    born_dead REAL NOT NULL,        -- share of its units, in the mean over the draws
    draws INTEGER NOT NULL
);
CREATE TABLE "update" (             -- how far single steps moved the weights: the first, and the
    step INTEGER NOT NULL,          -- last before each snapshot
    module TEXT NOT NULL,
    ratio REAL NOT NULL,            -- |change| / |weights before|
    PRIMARY KEY (step, module)
) WITHOUT ROWID;
CREATE TABLE death (                -- each unit that died between two snapshots on a probe
    site INTEGER NOT NULL REFERENCES site(id),
    unit INTEGER NOT NULL,
    step INTEGER NOT NULL REFERENCES snapshot(step),
    previous INTEGER NOT NULL,      -- the snapshot at which it was alive
    critical_fraction REAL,         -- of the window's update, that it would have survived
    before REAL,                    -- mean pre-activation on the probe at the previous snapshot
    after REAL,                     -- at this one; after - before = the sum of the three parts
    by_weights REAL,                -- the part of the change that came through the weights,
    by_input REAL,                  -- through the layer's input, and
    by_bias REAL,                   -- through its bias; all null where they could not be had
    PRIMARY KEY (site, unit, step)
) WITHOUT ROWID;
"""

_SCALARS = frozenset({"samples", "counted", "positions", "calls"})
_MASKS = frozenset({"silent", "nonfinite"})
_INTEGERS = frozenset({"fired", "active"})

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class SiteState:
    """One site at one snapshot, as it is written."""

    site: Site
    counts: UnitCounts
    dead: Mask


@dataclass(frozen=True)
class RecordedSite:
    """One site of a recording, with its units' states at every snapshot."""

    site: Site
    param_group: str | None
    counts: UnitCounts
    """Of the last snapshot."""
    samples: np.ndarray[Any, np.dtype[np.int64]]
    """`[snapshot]`: seen in each window."""
    dead: Mask
    """`[snapshot, unit]`."""
    known: Mask
    """`[snapshot, unit]`: it was called, and the unit was finite."""
    nonfinite: Mask
    """`[snapshot, unit]`."""


@dataclass(frozen=True)
class RecordedRun:
    """All that a recording holds."""

    facts: Mapping[str, Any]
    steps: tuple[int, ...]
    sites: tuple[RecordedSite, ...]
    learning_rates: tuple[tuple[int, str, float], ...]
    """(first step taken with it, parameter group, learning rate), in order of steps."""
    observations: Observations = field(default_factory=Observations)
    """What the causes of deaths are weighed by."""


@dataclass(frozen=True)
class Pulse:
    """How far a recording is."""

    facts: Mapping[str, Any]
    steps: tuple[int, ...]
    """Of the snapshots."""
    times: tuple[float, ...]
    """When each was taken, in Unix time."""


class RecordingWriter:
    """Writes a recording; to memory alone where `path` is None."""

    def __init__(self, path: Path | None, overwrite: bool = False) -> None:
        self.path = path
        if path is not None:
            _make_way(path, overwrite)
        try:
            # The optimizer may step in another thread than the one that opened the file.
            self._db = sqlite3.connect(
                ":memory:" if path is None else path, check_same_thread=False, isolation_level=None
            )
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        except sqlite3.Error as error:
            raise RecordingError(f"{path} cannot be written: {error}") from error
        self._site_ids: dict[str, int] = {}
        self._site_rows: dict[int, tuple[Any, ...]] = {}

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Add to or replace what is known of the run."""
        rows = [(key, json.dumps(value)) for key, value in facts.items()]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", rows)

    def write_snapshot(
        self,
        step: int,
        first_step: int,
        states: Sequence[SiteState],
        param_groups: Mapping[str, str],
        learning_rates: Sequence[tuple[int, str, float]],
        facts: Mapping[str, Any],
        observations: Observations | None = None,
    ) -> None:
        """Write one snapshot, and what is new since the last, in one transaction.

        `param_groups` names the group that trains each producer.
        """
        taken = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", (step, first_step, taken)
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO learning_rate VALUES (?, ?, ?)", learning_rates
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO run VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in facts.items()],
            )
            self._drop_sites({state.site.key for state in states})
            for state in states:
                site = self._site_id(state.site, param_groups)
                if state.site.units is None:
                    continue
                counts = state.counts
                self._db.execute(
                    "INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?, ?)",
                    (
                        step,
                        site,
                        counts.samples,
                        np.packbits(state.dead).tobytes(),
                        np.packbits(counts.nonfinite).tobytes(),
                    ),
                )
                self._db.execute(
                    f"INSERT OR REPLACE INTO statistics VALUES ({'?, ' * 14}?)",
                    (site, *(_packed(f.name, getattr(counts, f.name)) for f in fields(counts))),
                )
            if observations is not None:
                self._write_observations(observations)

    def _write_observations(self, seen: Observations) -> None:
        rows: dict[str, list[tuple[Any, ...]]] = {
            "initialization": [(s.module, json.dumps(dict(s.layer))) for s in seen.starts],
            "input": [(g.module, g.samples, g.is_first, g.gamma, g.cosine) for g in seen.given],
            "baseline": [
                (self._site_ids[b.site], b.born_dead, b.draws)
                for b in seen.baselines
                if b.site in self._site_ids
            ],
            '"update"': [(u.step, u.module, u.ratio) for u in seen.updates],
            "death": [
                (
                    *(self._site_ids[death.site], death.unit, death.step, death.previous),
                    death.critical_fraction,
                    *(vars(death.drift).values() if death.drift else [None] * 5),
                )
                for death in seen.deaths
                if death.site in self._site_ids
            ],
        }
        for table, values in rows.items():
            for row in values:
                places = ", ".join("?" * len(row))
                self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({places})", row)

    def read(self) -> RecordedRun:
        """What has been written so far."""
        return _read(self._db)

    def close(self) -> None:
        """Fold the log into the file. A recording that was not closed is readable all the same."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.execute("PRAGMA journal_mode = DELETE")
        if self.path is not None:
            self._db.close()

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._db)

    def _drop_sites(self, kept: set[str]) -> None:
        """Remove sites that are no more: a module that was not called is one, until it is."""
        for key in self._site_ids.keys() - kept:
            site = self._site_ids.pop(key)
            del self._site_rows[site]
            for table, column in (
                *((table, "site") for table in ("statistics", "state", "baseline", "death")),
                ("site", "id"),
            ):
                self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (site,))

    def _site_id(self, site: Site, param_groups: Mapping[str, str]) -> int:
        """The row of a site; written where it is new, or not what it was."""
        index = self._site_ids.setdefault(site.key, 1 + max(self._site_ids.values(), default=0))
        group = param_groups.get(site.producer) if site.producer is not None else None
        row = (
            site.name,
            site.module,
            site.operator,
            site.rectifier.activation,
            site.rectifier.can_die,
            site.rectifier.signed,
            site.unit_axis,
            site.units,
            site.producer,
            site.norm,
            group,
        )
        if self._site_rows.get(index) != row:
            self._db.execute(
                "INSERT OR REPLACE INTO site (id, name, module, operator, activation, can_die,"
                " signed, unit_axis, units, producer, norm, param_group)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (index, *row),
            )
            self._site_rows[index] = row
        return index


class _Transaction:
    """BEGIN ... COMMIT, or ROLLBACK if anything raised."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:  # a full disk has rolled it back already
            self._db.execute("ROLLBACK")


def read_recording(path: str | Path) -> RecordedRun:
    """Read a recording, also one that is still being written or whose run was killed.

    Raises RecordingError if the file is missing, damaged, something else, or of a newer version.
    """
    with _opened(path) as db:
        problems = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise RecordingError(
                f"{path} is damaged: {problems[0]}. It may have been cut short in copying"
            )
        return _read(db)


def read_pulse(path: str | Path) -> Pulse:
    """Read how far a recording is, which is cheap however large it is.

    Raises RecordingError as `read_recording` does.
    """
    with _opened(path) as db:
        db.execute("BEGIN")
        facts = {key: json.loads(value) for key, value in db.execute("SELECT * FROM run")}
        rows = db.execute("SELECT step, taken FROM snapshot ORDER BY step").fetchall()
    times = (datetime.datetime.fromisoformat(taken).timestamp() for _, taken in rows)
    return Pulse(facts, tuple(step for step, _ in rows), tuple(times))


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[sqlite3.Connection]:
    """A recording of a version that can be read, open for reading."""
    path = Path(path)
    if not path.is_file():
        raise RecordingError(f"{path} does not exist")
    with path.open("rb") as file:
        head = file.read(16)
    if not head.startswith(b"SQLite format 3"):
        raise RecordingError(
            f"{path} is no recording: it begins with {head[:12]!r}, not as an SQLite file does. "
            "Expected the file that reludiag.Monitor(..., path=...) wrote"
        )
    try:
        db = _open(path)
        try:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if application != APPLICATION_ID:
                raise RecordingError(f"{path} is an SQLite file, but no recording of reludiag")
            if version < SCHEMA_VERSION:
                raise RecordingError(
                    f"{path} has schema version {version}, of a development version: this "
                    f"reludiag reads {SCHEMA_VERSION}. Record the run again"
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
            f"{path} cannot be read: {error}. It may have been cut short in copying"
        ) from error


def _open(path: Path) -> sqlite3.Connection:
    uri = path.resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True)
    try:
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # A log cannot be shared in a folder that cannot be written; nobody else writes there.
        db.close()
        db = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True)
    return db


def _make_way(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise RecordingError(f"{path.parent} is no folder; make it first, or choose another path")
    if path.exists() and not overwrite:
        raise RecordingError(
            f"{path} exists already. Choose another path, or overwrite=True to replace it"
        )
    if path.exists():
        if not path.is_file():
            raise RecordingError(f"{path} is no file; choose another path")
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _read(db: sqlite3.Connection) -> RecordedRun:
    # One transaction, so that all tables are of the same moment.
    db.execute("BEGIN")
    try:
        facts = {key: json.loads(value) for key, value in db.execute("SELECT * FROM run")}
        steps = tuple(row[0] for row in db.execute("SELECT step FROM snapshot ORDER BY step"))
        rates = tuple(
            db.execute("SELECT step, param_group, learning_rate FROM learning_rate ORDER BY step")
        )
        rows = db.execute(
            "SELECT id, name, module, operator, activation, can_die, signed, unit_axis, units,"
            " producer, norm, param_group FROM site ORDER BY id"
        ).fetchall()
        sites = tuple(_read_site(db, row, steps) for row in rows)
        observations = _read_observations(db)
    finally:
        db.execute("COMMIT")
    return RecordedRun(facts, steps, sites, rates, observations)


def _read_observations(db: sqlite3.Connection) -> Observations:
    # Sites are known by their names here: their keys are not kept.
    names = dict(db.execute("SELECT id, name FROM site"))
    return Observations(
        starts=tuple(
            Start(module, json.loads(layer))
            for module, layer in db.execute("SELECT * FROM initialization ORDER BY rowid")
        ),
        given=tuple(
            Given(module, samples, bool(is_first), _known(gamma), _known(cosine))
            for module, samples, is_first, gamma, cosine in db.execute(
                "SELECT * FROM input ORDER BY rowid"
            )
        ),
        baselines=tuple(
            Baseline(names[site], born_dead, draws)
            for site, born_dead, draws in db.execute("SELECT * FROM baseline ORDER BY site")
        ),
        updates=tuple(
            Update(*row) for row in db.execute('SELECT * FROM "update" ORDER BY step, module')
        ),
        deaths=tuple(
            Death(
                names[site],
                unit,
                step,
                previous,
                _known(fraction),
                None if drift[0] is None else Drift(*drift),
            )
            for site, unit, step, previous, fraction, *drift in db.execute(
                "SELECT * FROM death ORDER BY step, site, unit"
            )
        ),
    )


def _known(value: float | None) -> float:
    """SQLite keeps a NaN as null."""
    return float("nan") if value is None else value


def _read_site(db: sqlite3.Connection, row: Any, steps: tuple[int, ...]) -> RecordedSite:
    site_id, name, module, operator, activation, can_die, signed, axis, units, *rest = row
    producer, norm, group = rest
    rectifier = Rectifier(activation, bool(can_die), bool(signed))
    site = Site(name, name, module, operator, rectifier, axis, units, producer, norm)
    width = units or 0
    position = {step: index for index, step in enumerate(steps)}
    seen = np.zeros(len(steps), dtype=np.int64)
    dead, nonfinite, known = (np.zeros((len(steps), width), dtype=bool) for _ in range(3))
    for step, samples, dead_bits, nonfinite_bits in db.execute(
        "SELECT step, samples, dead, nonfinite FROM state WHERE site = ?", (site_id,)
    ):
        index = position[step]
        dead[index] = _bits(dead_bits, width)
        nonfinite[index] = _bits(nonfinite_bits, width)
        known[index] = samples > 0
        seen[index] = samples
    found = db.execute("SELECT * FROM statistics WHERE site = ?", (site_id,)).fetchone()
    counts = UnitCounts.nothing(width)
    if found is not None:
        counts = UnitCounts(
            **{
                f.name: _unpacked(f.name, value, width)
                for f, value in zip(fields(UnitCounts), found[1:], strict=True)
            }
        )
    return RecordedSite(site, group, counts, seen, dead, known & ~nonfinite, nonfinite)


def _bits(packed: bytes, units: int) -> Mask:
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=units).astype(bool)


def _packed(name: str, value: Any) -> Any:
    if name in _SCALARS:
        return int(value)
    if name in _MASKS:
        return np.packbits(value).tobytes()
    return np.ascontiguousarray(value, "<i8" if name in _INTEGERS else "<f8").tobytes()


def _unpacked(name: str, value: Any, units: int) -> Any:
    if name in _SCALARS:
        return int(value)
    if name in _MASKS:
        return _bits(value, units)
    return np.frombuffer(value, "<i8" if name in _INTEGERS else "<f8")

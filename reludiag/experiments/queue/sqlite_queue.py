"""The queue in one SQLite file, from which workers take cells and in which they store results.

A cell is claimed in one transaction and its result written in another, so a process killed at any
moment leaves a cell that is waiting, that is claimed by a process that no longer exists (`tend`
gives it back), or that has its result. It uses a rollback journal instead of a write-ahead log,
because hosts that share a folder cannot share the index of the latter.
"""

import json
import math
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from reludiag.errors import UsageError
from reludiag.experiments.queue.queue import DEATHS_ALLOWED, RESULT_FIELDS, Cell, Result, crash_of
from reludiag.process import LEASE, ProcessId, is_gone

APPLICATION_ID = 0x52654C53  # "ReLS"

SCHEMA_VERSION = 4
# What each version changed:
#   1  the first
#   2  a result has the samples of the probe, and what the recording warns of
#   3  a result has `undrawn`; a file of version 2 gets the column when it is continued
#   4  a cell has `changes`; a file of version 3 gets the column when it is continued

SCHEMA = """
CREATE TABLE setting (              -- settings of the sweep; continuing with others is refused
    key TEXT PRIMARY KEY,           -- train, lr, init, seeds, shard, ...
    value TEXT NOT NULL             -- as JSON
);
CREATE TABLE cell (                 -- the runs to be made
    trial INTEGER PRIMARY KEY,      -- from 0
    seed INTEGER NOT NULL,
    lr REAL,                        -- replaces the rate that train proposes; null keeps it
    lr_scale REAL NOT NULL,         -- multiplies the rate that train proposes
    init TEXT NOT NULL,             -- name of the scheme; default: as built
    state TEXT NOT NULL,            -- waiting, running, done
    deaths INTEGER NOT NULL,        -- processes known to have died while running it
    host TEXT,                      -- of the process that runs it, as are the next
    pid INTEGER,
    started REAL,                   -- Unix time
    lease REAL,                     -- Unix time until which other hosts regard it as alive
    changes TEXT                    -- all else that it varies, as JSON; null if nothing
);
CREATE TABLE result (               -- one for each cell that is done
    trial INTEGER PRIMARY KEY REFERENCES cell(trial),
    status TEXT NOT NULL,           -- complete, diverged, crashed
    lr REAL,                        -- that was used; null if train never asked
    steps INTEGER,                  -- null, as the next, if nothing was recorded
    units INTEGER,                  -- that can die, as are all that follow
    born INTEGER,                   -- dead at step 0
    new INTEGER,                    -- alive at step 0 and dead at the end
    revived INTEGER,                -- came back at some step
    dead INTEGER,                   -- dead at the end
    nonfinite INTEGER,              -- not finite at the end
    dead_fraction REAL,
    seconds REAL,
    error TEXT NOT NULL,            -- in one line; empty if there was none
    traceback TEXT NOT NULL,        -- of the user's code
    recording TEXT NOT NULL,        -- file name of the recording, beside this file
    probe INTEGER,                  -- samples that the units were judged on; null without a probe
    notes TEXT NOT NULL,            -- warnings of the recording, one per line
    undrawn INTEGER                 -- of the dead, units whose weights the scheme left as they
                                    -- were; null if nothing was to be drawn
);
CREATE TABLE metric (               -- numbers that train returned
    trial INTEGER NOT NULL REFERENCES cell(trial),
    name TEXT NOT NULL,
    value REAL,                     -- null: NaN
    place INTEGER NOT NULL,         -- position in what train returned, from 0
    PRIMARY KEY (trial, name)
) WITHOUT ROWID;
"""

_PATIENCE = 60.0  # seconds to wait for another process's transaction
_NUMBERS = frozenset({"lr", "dead_fraction", "seconds"})  # NaN where SQLite has null


class SqliteQueue:
    """A queue in a file, which any number of processes may open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
        except sqlite3.Error as error:
            raise UsageError(f"{path} cannot be opened: {error}") from error

    @classmethod
    def prepare(cls, path: Path, settings: Mapping[str, Any], cells: Sequence[Cell]) -> Self:
        """Create the file, or open an existing one to continue, with cells that it has not yet.

        Raises UsageError if it has other settings, or is another kind of file.
        """
        store = cls(path)
        try:
            with store._writing():
                if store._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                    store._fill(settings, cells)
                else:
                    store._check(settings)
                    store._add(cells)
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{path} cannot be used as the file of a sweep: {error}") from error
        return store

    def claim(self, owner: ProcessId) -> Cell | None:
        """As in `Queue`."""
        waiting = "SELECT trial FROM cell WHERE state = 'waiting' ORDER BY trial LIMIT 1"
        if self._db.execute(waiting).fetchone() is None:  # without blocking writers
            return None
        with self._writing():
            row = self._db.execute(
                "UPDATE cell SET state = 'running', host = ?, pid = ?, started = ?, lease = ?"
                f" WHERE trial = ({waiting}) RETURNING {_CELL}",
                (owner.host, owner.pid, owner.started, time.time() + LEASE),
            ).fetchone()
        return None if row is None else _cell(row)

    def renew(self, owner: ProcessId) -> None:
        """As in `Queue`."""
        with self._writing():
            self._db.execute(
                f"UPDATE cell SET lease = ? WHERE {_OWNED}", (time.time() + LEASE, *_key(owner))
            )

    def finish(self, cell: Cell, owner: ProcessId, result: Result) -> bool:
        """As in `Queue`."""
        with self._writing():
            done = self._db.execute(
                "UPDATE cell SET state = 'done', host = NULL, pid = NULL, started = NULL,"
                f" lease = NULL WHERE trial = ? AND {_OWNED}",
                (cell.trial, *_key(owner)),
            )
            if done.rowcount == 0:
                return False
            self._write(cell.trial, result)
        return True

    def release(self, owner: ProcessId) -> None:
        """As in `Queue`."""
        with self._writing():
            self._db.execute(f"{_GIVE_BACK} WHERE {_OWNED}", _key(owner))

    def bury(self, owner: ProcessId, how: str) -> None:
        """As in `Queue`."""
        with self._writing():
            rows = self._db.execute(
                f"UPDATE cell SET deaths = deaths + 1 WHERE {_OWNED} RETURNING {_CELL}, deaths",
                _key(owner),
            ).fetchall()
            for *of_cell, deaths in rows:
                cell = _cell(of_cell)
                self._db.execute(f"{_GIVE_BACK} WHERE trial = ?", (cell.trial,))
                if deaths > DEATHS_ALLOWED:
                    self._db.execute(
                        "UPDATE cell SET state = 'done' WHERE trial = ?", (cell.trial,)
                    )
                    self._write(cell.trial, crash_of(cell, how))

    def tend(self, spared: Collection[ProcessId]) -> None:
        """As in `Queue`."""
        running = self._db.execute(
            "SELECT DISTINCT host, pid, started, lease FROM cell WHERE state = 'running'"
        ).fetchall()
        for host, pid, started, lease in running:
            owner = ProcessId(host, pid, started)
            if owner not in spared and is_gone(owner, lease):
                self.release(owner)

    def unfinished(self) -> int:
        """As in `Queue`."""
        unfinished = "SELECT count(*) FROM cell WHERE state != 'done'"
        return int(self._db.execute(unfinished).fetchone()[0])

    def results(self) -> list[tuple[Cell, Result]]:
        """As in `Queue`."""
        self._db.execute("BEGIN")
        try:
            metrics: dict[int, dict[str, float]] = {}
            for trial, name, value in self._db.execute(
                "SELECT trial, name, value FROM metric ORDER BY trial, place"
            ):
                metrics.setdefault(trial, {})[name] = math.nan if value is None else value
            rows = self._db.execute(
                f"SELECT trial, seed, cell.lr, lr_scale, init, changes, {_RESULT}"
                " FROM cell JOIN result USING (trial) ORDER BY trial"
            ).fetchall()
        finally:
            self._db.execute("COMMIT")
        return [(_cell(row[:6]), _result(row[6:], metrics.get(row[0], {}))) for row in rows]

    def close(self) -> None:
        """As in `Queue`."""
        self._db.close()

    def _fill(self, settings: Mapping[str, Any], cells: Sequence[Cell]) -> None:
        for statement in SCHEMA.split(";\n"):  # executescript would end the transaction
            self._db.execute(statement)
        self._db.executemany(
            "INSERT INTO setting VALUES (?, ?)",
            [(key, json.dumps(value)) for key, value in settings.items()],
        )
        self._add(cells)
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _add(self, cells: Sequence[Cell]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO cell (trial, seed, lr, lr_scale, init, changes, state, deaths)"
            " VALUES (?, ?, ?, ?, ?, ?, 'waiting', 0)",
            [(c.trial, c.seed, c.lr, c.lr_scale, c.init, json.dumps(c.changes)) for c in cells],
        )

    def _check(self, settings: Mapping[str, Any]) -> None:
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise UsageError(f"{self.path} is an SQLite file, but not the file of a sweep")
        if version == 2:
            self._db.execute("ALTER TABLE result ADD COLUMN undrawn INTEGER")
        if version in (2, 3):
            self._db.execute("ALTER TABLE cell ADD COLUMN changes TEXT")
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            version = SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{self.path} has schema version {version}; this reludiag reads {SCHEMA_VERSION}. "
                "Use the version of reludiag that made it, or another folder"
            )
        stored = {k: json.loads(v) for k, v in self._db.execute("SELECT * FROM setting")}
        check_settings(stored, settings, str(self.path))

    def _write(self, trial: int, result: Result) -> None:
        values = [getattr(result, name) for name in RESULT_FIELDS]
        marks = ", ".join("?" * (1 + len(values)))
        self._db.execute(f"INSERT INTO result VALUES ({marks})", (trial, *values))
        self._db.executemany(
            "INSERT INTO metric VALUES (?, ?, ?, ?)",
            [(trial, *item, place) for place, item in enumerate(result.metrics.items())],
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def check_settings(stored: Mapping[str, Any], requested: Mapping[str, Any], where: str) -> None:
    """Raise UsageError if a sweep would be continued with other settings."""
    for key in dict.fromkeys([*stored, *requested]):
        old, new = stored.get(key), json.loads(json.dumps(requested.get(key)))
        if old != new:
            raise UsageError(
                f"{where} was started with {key} {_as_text(old)}; now {_as_text(new)} was given. "
                "Give the same value to continue it, or another folder to start another experiment"
            )


def _as_text(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


_CELL = "trial, seed, lr, lr_scale, init, changes"
_RESULT = ", ".join(f"result.{name}" for name in RESULT_FIELDS)
_OWNED = "state = 'running' AND host = ? AND pid = ? AND started = ?"
_GIVE_BACK = (
    "UPDATE cell SET state = 'waiting', host = NULL, pid = NULL, started = NULL, lease = NULL"
)


def _cell(row: Sequence[Any]) -> Cell:
    return Cell(*row[:5], **json.loads(row[5] or "{}"))


def _key(owner: ProcessId) -> tuple[str, int, float]:
    return owner.host, owner.pid, owner.started


def _result(row: Sequence[Any], metrics: Mapping[str, float]) -> Result:
    values: dict[str, Any] = {
        name: math.nan if value is None and name in _NUMBERS else value
        for name, value in zip(RESULT_FIELDS, row, strict=True)
    }
    return Result(**values, metrics=metrics)

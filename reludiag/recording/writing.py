"""Writing a recording.

It uses a write-ahead log and one transaction per snapshot: a committed snapshot survives a crash,
and a reader can follow a run that is still being written. On closing, the log is merged, so that a
finished recording is a single file.
"""

import datetime
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np

from reludiag.errors import RecordingError
from reludiag.measure.structure import InputScale
from reludiag.recording.observations import Observations
from reludiag.recording.reading import read_run
from reludiag.recording.records import Mark, Metric, RecordedRun, SiteState
from reludiag.recording.schema import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, packed
from reludiag.sites.site import Site


class RecordingWriter:
    """Writes a recording; in memory if `path` is None."""

    def __init__(
        self, path: Path | None, overwrite: bool = False, resume_at: int | None = None
    ) -> None:
        """With `resume_at`, a recording is gone on with that is there: what is in it of later
        steps is dropped.

        Raises RecordingError if the file is in the way, cannot be written, or was written by
        another version.
        """
        self.path = path
        if path is not None and resume_at is None:
            _make_way(path, overwrite)
        try:
            # The optimizer may step in another thread than the one that opened the file.
            self._db = sqlite3.connect(
                ":memory:" if path is None else path, check_same_thread=False, isolation_level=None
            )
            if resume_at is None:
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            else:
                _require_this_version(self._db, path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            if resume_at is None:
                self._db.executescript(
                    f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;"
                )
        except sqlite3.Error as error:
            raise RecordingError(f"{path} cannot be written: {error}") from error
        self._site_ids: dict[str, int] = {}
        self._site_rows: dict[int, tuple[Any, ...]] = {}
        self._modules_before: dict[str, str] = {}
        """Of the sites that a resumed run called before: key -> path. They are never dropped."""
        self._drop_after = resume_at
        """The step after which a resumed run drops what is recorded, when it first writes."""
        if resume_at is not None:
            rows = self._db.execute("SELECT key, id, module, units FROM site").fetchall()
            self._site_ids = {key: site for key, site, _, _ in rows}
            self._modules_before = {key: module for key, _, module, units in rows if units}

    def _drop_later(self) -> None:
        step, self._drop_after = self._drop_after, None
        if step is None:
            return
        later = self._db.execute("SELECT 1 FROM snapshot WHERE step > ?", (step,)).fetchone()
        measured = (
            "update",
            "gradient",
            "jump",
            "edit",
            "death",
            "history",
            "training_input",
            "output_gradient",
            "on_batch",
        )
        for table in ("learning_rate", "state", *measured, "metric", "mark", "snapshot"):
            self._db.execute(f'DELETE FROM "{table}" WHERE step > ?', (step,))
        if later:  # they are of the last snapshot
            self._db.execute("DELETE FROM statistics")

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Add or replace facts about the run."""
        rows = [(key, json.dumps(value)) for key, value in facts.items()]
        with self._transaction():
            self._drop_later()
            self._db.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", rows)

    def write_metrics(self, metrics: Sequence[Metric]) -> None:
        """Write what was logged; a window that grew since replaces itself."""
        if not metrics:
            return
        rows = [(m.window, m.name, m.step, m.last, m.mean, m.count) for m in metrics]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO metric VALUES (?, ?, ?, ?, ?, ?)", rows)

    def write_mark(self, mark: Mark) -> None:
        """Write one mark of the user's own."""
        with self._transaction():
            row = (mark.step, mark.name)
            self._db.execute("INSERT INTO mark (step, name) VALUES (?, ?)", row)

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
        """Write one snapshot, and everything new since the last one, in one transaction.

        `param_groups` maps each producer to the parameter group that trains it.
        """
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with self._transaction():
            self._drop_later()
            self._db.execute(
                "INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", (step, first_step, time)
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
                if not state.site.units and state.site.module in self._modules_before.values():
                    continue  # it was called before the run was resumed
                site = self._site_id(state.site, param_groups)
                if state.site.units is None:
                    continue
                counts = state.counts
                self._db.execute(
                    "INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        step,
                        site,
                        counts.samples,
                        np.packbits(state.dead).tobytes(),
                        np.packbits(counts.nonfinite).tobytes(),
                        None if state.rare is None else int(state.rare.sum()),
                        None if state.dormant is None else int(state.dormant.sum()),
                    ),
                )
                self._db.execute(
                    f"INSERT OR REPLACE INTO statistics VALUES ({'?, ' * 15}?)",
                    (site, *(packed(f.name, getattr(counts, f.name)) for f in fields(counts))),
                )
            if observations is not None:
                self._write_observations(observations)

    def _write_observations(self, observations: Observations) -> None:
        rows: dict[str, list[tuple[Any, ...]]] = {
            "initialization": [
                (s.module, json.dumps(dict(s.layer))) for s in observations.initial_layers
            ],
            "input": [
                (g.module, g.samples, g.is_first, g.gamma, _scale(g.scale), g.cosine)
                for g in observations.inputs
            ],
            "baseline": [
                (self._site_ids[b.site], b.born_dead, b.draws)
                for b in observations.baselines
                if b.site in self._site_ids
            ],
            '"update"': [(u.step, u.module, u.ratio) for u in observations.updates],
            "jump": [(j.step, j.ratio, j.before, j.size) for j in observations.jumps],
            "edit": [
                (e.step, e.times, e.size, e.update, json.dumps(e.modules))
                for e in observations.edits
            ],
            "gradient": [(g.step, g.norm) for g in observations.gradient_norms],
            "training_input": [(t.step, t.mean, t.std) for t in observations.training_inputs],
            "output_gradient": [astuple(each) for each in observations.output_gradients],
            "on_batch": [
                (each.step, self._site_ids[each.site], np.packbits(each.fires).tobytes())
                for each in observations.on_batch
                if each.site in self._site_ids
            ],
            "death": [
                (
                    *(self._site_ids[death.site], death.unit, death.step, death.previous),
                    death.critical_fraction,
                    *(vars(death.drift).values() if death.drift else [None] * 5),
                    death.examined,
                )
                for death in observations.deaths
                if death.site in self._site_ids
            ],
            "history": [
                (self._site_ids[each.site], *list(vars(each).values())[1:])
                for each in observations.histories
                if each.site in self._site_ids
            ],
        }
        for table, values in rows.items():
            for row in values:
                places = ", ".join("?" * len(row))
                self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({places})", row)

    def read(self) -> RecordedRun:
        """The content so far."""
        _roll_back(self._db)
        return read_run(self._db)

    def close(self) -> None:
        """Merge the log into the file. A recording that was not closed is also readable."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.execute("PRAGMA journal_mode = DELETE")
        if self.path is not None:
            self._db.close()

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._db)

    def _drop_sites(self, keys: set[str]) -> None:
        """Remove sites that no longer exist: the placeholder of an uncalled module, once it is
        called.
        """
        for key in self._site_ids.keys() - keys - self._modules_before.keys():
            site = self._site_ids.pop(key)
            del self._site_rows[site]
            for table, column in (
                *(
                    (table, "site")
                    for table in (
                        *("statistics", "state", "on_batch", "baseline", "death", "history"),
                    )
                ),
                ("site", "id"),
            ):
                self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (site,))

    def _site_id(self, site: Site, param_groups: Mapping[str, str]) -> int:
        """The row of a site; written if it is new or has changed."""
        index = self._site_ids.setdefault(site.key, 1 + max(self._site_ids.values(), default=0))
        groups = {param_groups.get(producer) for producer in site.producers}
        group = groups.pop() if len(groups) == 1 else None
        row = (
            site.name,
            site.module,
            site.operator,
            site.rectifier.activation,
            site.rectifier.can_die,
            site.rectifier.signed,
            site.rectifier.upper,
            site.unit_axis,
            site.units,
            site.producer,
            site.norm,
            group,
            None
            if site.consumers is None
            else json.dumps([consumer.to_json() for consumer in site.consumers]),
            site.key,
            site.alias,
            site.selects_from,
        )
        if self._site_rows.get(index) != row:
            self._db.execute(
                "INSERT OR REPLACE INTO site (id, name, module, operator, activation, can_die,"
                " signed, upper, unit_axis, units, producer, norm, param_group, consumers, key,"
                " alias, selects_from)"
                f" VALUES ({'?, ' * 16}?)",
                (index, *row),
            )
            self._site_rows[index] = row
        return index


def _scale(scale: InputScale | None) -> str | None:
    return None if scale is None else json.dumps(scale.to_json())


class _Transaction:
    """BEGIN ... COMMIT, or ROLLBACK if anything raised."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        _roll_back(self._db)
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        else:
            _roll_back(self._db)


def _roll_back(db: sqlite3.Connection) -> None:
    """Leave a transaction that failed; a full disk has already rolled it back."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def _require_this_version(db: sqlite3.Connection, path: Path | None) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        db.close()
        raise RecordingError(
            f"{path} has schema version {version}, and this reludiag goes on only with version "
            f"{SCHEMA_VERSION}; choose another path for the rest of the run"
        )


def _make_way(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise RecordingError(f"{path.parent} is not a folder; create it, or choose another path")
    if path.exists() and not overwrite:
        raise RecordingError(
            f"{path} already exists. Choose another path, or pass overwrite=True to replace it"
        )
    if path.exists():
        if not path.is_file():
            raise RecordingError(f"{path} is not a regular file; choose another path")
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

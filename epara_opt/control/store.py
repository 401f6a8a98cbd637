"""The planner's memory: one SQLite file. What was intended, what is in force, what was seen.

Crash-safe by order: a plan is `intended` before the first executor is called and `in_force` after the last commit.
A planner that finds an intended plan newer than the one in force knows that a change was under way, and asks the
executors how far it got. One writer at a time, by an advisory lock on a file beside it that the system drops with
the process; readers are welcome (WAL).
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from epara_opt.errors import EparaError, StoreError
from epara_opt.plan import Plan

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY AUTOINCREMENT, started_at REAL NOT NULL);
CREATE TABLE plans (
    generation INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, at REAL NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('intended', 'in_force', 'superseded', 'failed')), plan TEXT NOT NULL);
CREATE TABLE cycles (id INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, event TEXT NOT NULL);
CREATE TABLE observations (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, state TEXT NOT NULL);
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
BUSY_TIMEOUT_S = 5.0
KEPT_ROWS = 20_000  # of events and of observations; older ones are dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleRecord:
    """One planning cycle, as history shows it. Rates are weighted work per second unless said otherwise."""

    started_at: float  # Unix time
    wall_s: float
    reason: str  # schedule | server down | server up | start
    outcome: str  # applied | kept | rerouted | fetching | failed
    generation: int  # of the plan in force afterwards; 0: none
    solver: str = ""
    stop: str = ""
    objective: float | None = None
    dual_bound: float | None = None
    gap: float | None = None
    offered: float = 0.0  # forecast that was planned for
    goodput_seen: float = 0.0  # of those, on time
    offered_seen: float = 0.0  # requests and frames per second that arrived since the last cycle
    num_actions: int = 0
    num_loads: int = 0
    down: tuple[str, ...] = ()
    error: str = ""


class Store:
    """Open for one planner (`writer=True`) or for any number of readers. Close it, or use it as a context."""

    def __init__(self, path: Path, *, writer: bool = True) -> None:
        """Raises StoreError naming the file where it cannot be opened, is corrupt, or another planner writes it."""
        self.path = path
        self._thread = threading.Lock()
        self._lease: int | None = None
        try:
            if writer:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lease = self._take_lease()
            elif not path.exists():
                raise StoreError(f"{path}: expected a planner's store, found nothing")
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as e:
            self._release_lease()
            raise StoreError(f"{path}: cannot be opened: {e}") from e
        try:
            self._prepare(writer)
        except BaseException:
            self.close()
            raise

    def _take_lease(self) -> int:
        """An advisory lock on a file beside the database; the system drops it when the process ends."""
        handle = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise StoreError(f"{self.path}: locked: another planner writes it") from None
        return handle

    def _release_lease(self) -> None:
        if self._lease is not None:
            os.close(self._lease)
            self._lease = None

    def _prepare(self, writer: bool) -> None:
        with self._guard() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0 and writer:
                (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if tables:
                    raise StoreError(f"{self.path}: expected a planner's store, found another SQLite file")
                db.execute("PRAGMA journal_mode=WAL")
                db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise StoreError(f"{self.path}: expected schema version {SCHEMA_VERSION}, got {version}")
            db.execute("PRAGMA synchronous=FULL")

    @contextmanager
    def _guard(self) -> Generator[sqlite3.Connection]:
        """One thread at a time; SQLite's errors become ours."""
        with self._thread:
            try:
                yield self._db
            except sqlite3.Error as e:
                raise StoreError(f"{self.path}: {e}") from e

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._guard() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()
        self._release_lease()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Epochs

    def next_epoch(self, *, at: float, at_least: int = 0) -> int:
        """Take an epoch that nobody had, greater than `at_least` (what executors have seen)."""
        with self._transaction() as db:
            (highest,) = db.execute("SELECT coalesce(max(epoch), 0) FROM epochs").fetchone()
            epoch = max(int(highest), at_least) + 1
            db.execute("INSERT INTO epochs (epoch, started_at) VALUES (?, ?)", (epoch, at))
            return epoch

    # Plans

    def next_generation(self, *, at_least: int = 0) -> int:
        """One more than any generation known here or, by `at_least`, elsewhere."""
        with self._guard() as db:
            (highest,) = db.execute("SELECT coalesce(max(generation), 0) FROM plans").fetchone()
            return max(int(highest), at_least) + 1

    def intend(self, plan: Plan, *, epoch: int, at: float) -> None:
        """Before anybody is called."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO plans (generation, epoch, at, status, plan) VALUES (?, ?, ?, 'intended', ?)",
                (plan.generation, epoch, at, plan.to_json()),
            )

    def put_in_force(self, plan: Plan, *, epoch: int, at: float) -> None:
        """After the last commit."""
        with self._transaction() as db:
            db.execute("UPDATE plans SET status = 'superseded' WHERE status = 'in_force'")
            db.execute(
                "INSERT OR REPLACE INTO plans (generation, epoch, at, status, plan) VALUES (?, ?, ?, 'in_force', ?)",
                (plan.generation, epoch, at, plan.to_json()),
            )

    def mark_failed(self, generation: int) -> None:
        """An intended plan that was taken back."""
        with self._transaction() as db:
            db.execute("UPDATE plans SET status = 'failed' WHERE generation = ? AND status = 'intended'", (generation,))

    def in_force(self) -> Plan | None:
        return self._plan("status = 'in_force'")

    def intended(self) -> Plan | None:
        """A change that was under way when the planner ended, if any."""
        return self._plan(
            "status = 'intended' AND generation > (SELECT coalesce(max(generation), 0) FROM plans "
            "WHERE status = 'in_force')"
        )

    def plan(self, generation: int) -> Plan | None:
        return self._plan("generation = ?", generation)

    def _plan(self, where: str, *values: int) -> Plan | None:
        with self._guard() as db:
            row = db.execute(
                f"SELECT plan FROM plans WHERE {where} ORDER BY generation DESC LIMIT 1", values
            ).fetchone()
        if row is None:
            return None
        try:
            return Plan.from_json(row[0], file=str(self.path))
        except EparaError as e:
            raise StoreError(f"{self.path}: holds what is not a plan: {e}") from e

    # History

    def record_cycle(self, record: CycleRecord, *, epoch: int) -> None:
        with self._transaction() as db:
            db.execute("INSERT INTO cycles (epoch, record) VALUES (?, ?)", (epoch, json.dumps(asdict(record))))

    def history(self, limit: int = 100) -> tuple[CycleRecord, ...]:
        """The last cycles, oldest first."""
        with self._guard() as db:
            rows = db.execute("SELECT record FROM cycles ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
        records: list[CycleRecord] = []
        for (text,) in reversed(rows):
            data = cast("dict[str, Any]", json.loads(text))
            data["down"] = tuple(data.get("down", ()))
            records.append(CycleRecord(**data))
        return tuple(records)

    def record_event(self, kind: str, event: Mapping[str, Any], *, at: float) -> None:
        self._append("events", "(at, kind, event) VALUES (?, ?, ?)", (at, kind, json.dumps(event)))

    def events(self, limit: int = 100) -> tuple[tuple[float, str, dict[str, Any]], ...]:
        """The last events as (at, kind, fields), oldest first."""
        with self._guard() as db:
            rows = db.execute("SELECT at, kind, event FROM events ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
        return tuple((float(at), str(kind), json.loads(text)) for at, kind, text in reversed(rows))

    def record_observation(self, state: Mapping[str, Any], *, at: float) -> None:
        self._append("observations", "(at, state) VALUES (?, ?)", (at, json.dumps(state)))

    def observations(self, limit: int = 100) -> tuple[tuple[float, dict[str, Any]], ...]:
        """The last observations as (at, summary), oldest first."""
        with self._guard() as db:
            rows = db.execute("SELECT at, state FROM observations ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
        return tuple((float(at), json.loads(text)) for at, text in reversed(rows))

    def _append(self, table: str, rest: str, values: tuple[object, ...]) -> None:
        with self._transaction() as db:
            cursor = db.execute(f"INSERT INTO {table} {rest}", values)
            if cursor.lastrowid and cursor.lastrowid % 256 == 0:
                db.execute(f"DELETE FROM {table} WHERE id <= ?", (cursor.lastrowid - KEPT_ROWS,))

    # Named state

    def put_state(self, name: str, value: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO state (name, value) VALUES (?, ?)", (name, value))

    def get_state(self, name: str) -> str | None:
        with self._guard() as db:
            row = db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

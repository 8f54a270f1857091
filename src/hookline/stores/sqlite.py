"""Records in SQLite: the ledger of one machine.

Lives here: `SqliteRecords`, its one writer thread and its queue. Elsewhere: the tables (tables.py), how an older file becomes
this schema (migration.py), what a row means (builtins/budget.py).
Idea: `book` appends to a queue and nothing more; one thread owns the connection and commits what has come within COMMIT_EVERY_S as one transaction. The
loop never waits for the disk, and a row costs the writer 2 µs where a transaction of its own would cost 500.

The writer's rules
- WAL with `synchronous = NORMAL`: what is committed survives `kill -9`; losing power can cost the last commits, never the database.
- What can't be committed waits and is tried again; `readiness` says so meanwhile. A row that no database takes (an integer beyond 64 bits) is logged and
  left out, so that it can't hold back the others.
- Reads run in the same thread after the rows that came before them, so they see what was booked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import orjson

from hookline.errors import StartupError, Unavailable
from hookline.stores import sqlite_statements as sql
from hookline.stores.ledger import end_of, quarter_of, row_of, sums_of, tell_lost
from hookline.stores.protocols import LedgerEntry
from hookline.stores.schema import REVISION, SCHEMA_VERSION, migrate_in_child, refuse_newer
from hookline.stores.sqlite_keys import SqliteKeys
from hookline.stores.sqlite_owners import SqliteOwners

COMMIT_EVERY_S = 0.05
RETRY_EVERY_S = 0.5
QUEUE_MAX = 100_000
BATCH_MAX = 5_000
CLOSE_WAIT_S = 10.0
BUSY_TIMEOUT_S = 5.0

T = TypeVar("T")
log = logging.getLogger("hookline.records")


class SqliteRecords:
    """A `RecordStore` in one file. Opens it and starts the writer; raises StartupError when the file can't be used."""

    def __init__(self, path: str | os.PathLike[str], *, queue_max: int = QUEUE_MAX) -> None:
        self._path = os.fspath(path)
        self._connection = _open(self._path)
        self.keys = SqliteKeys(self._connection, self._ask)
        self.owners = SqliteOwners(self._connection, self._ask)
        self._queue: deque[LedgerEntry] = deque()
        self._queue_max = queue_max
        self._questions: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._has_work = threading.Event()
        self._is_urgent = threading.Event()
        self._is_woken = False
        self._is_closing = False
        self._problem: str | None = None
        self.lost_rows = 0
        """Rows that were not kept, since start."""
        self._writer = threading.Thread(target=self._run, name="hookline-records", daemon=True)
        self._writer.start()

    @property
    def readiness(self) -> str | None:
        if self._problem is not None:
            return f"records: {self._path} can't be written: {self._problem}; {len(self._queue)} ledger rows wait"
        if len(self._queue) >= self._queue_max:
            return f"records: {len(self._queue)} ledger rows wait for {self._path}, which is as many as may"
        return None

    def book(self, entry: LedgerEntry) -> None:
        if len(self._queue) >= self._queue_max or self._is_closing:
            self._lose(entry, "the queue is full")
            return
        self._queue.append(entry)
        if not self._is_woken:
            self._is_woken = True
            self._has_work.set()

    async def flush(self) -> None:
        await self._ask(self._check_written)

    async def spent_by_scope(self, *, since: float = 0.0, until: float = float("inf")) -> Mapping[str, int]:
        bounds = (quarter_of(since), quarter_of(until))
        return await self._ask(lambda: dict(self._connection.execute(sql.SUM_SPEND, bounds).fetchall()))

    async def spent_in(self, scope: str, *, since: float = 0.0, until: float = float("inf")) -> int:
        bounds = (scope, quarter_of(since), quarter_of(until))
        return await self._ask(lambda: self._connection.execute(sql.SUM_SCOPE, bounds).fetchone()[0] or 0)

    async def charges_in(self, scope: str, *, since: float = 0.0) -> Sequence[tuple[float, int]]:
        bounds = (scope, quarter_of(since))
        rows = await self._ask(lambda: self._connection.execute(sql.LIST_QUARTERS, bounds).fetchall())
        return [(end_of(quarter), nanousd) for quarter, nanousd in rows]

    async def aclose(self) -> None:
        self._is_closing = True
        self._is_urgent.set()
        self._has_work.set()
        await asyncio.to_thread(self._writer.join, CLOSE_WAIT_S)

    async def _ask(self, question: Callable[[], T]) -> T:
        """Have the writer run `question` after everything booked so far."""
        if self._is_closing:
            raise Unavailable(f"records: {self._path} is closed")
        answer: Future[T] = Future()
        self._questions.append((question, answer))  # type: ignore[arg-type]
        self._is_urgent.set()
        self._has_work.set()
        return await asyncio.wrap_future(answer)

    def _check_written(self) -> None:
        if self._problem is not None:
            raise Unavailable(self.readiness or "", retry_after_s=RETRY_EVERY_S)

    # What follows runs in the writer's thread.

    def _run(self) -> None:
        while not self._is_closing:
            self._has_work.wait(RETRY_EVERY_S if self._problem is not None else None)
            self._is_urgent.wait(COMMIT_EVERY_S)
            # In this order: a row that comes now is either seen below or finds `_is_woken` False and wakes us again.
            self._is_urgent.clear()
            self._has_work.clear()
            self._is_woken = False
            self._turn()
        self._turn()
        if self._queue:
            log.critical("records: closed with %d ledger rows unwritten: %s", len(self._queue), self._problem)
        self._connection.close()

    def _turn(self) -> None:
        """Commit what waits, then answer what was asked before."""
        questions = [self._questions.popleft() for _ in range(len(self._questions))]
        try:
            while self._queue:
                # By index: iterating over a deque that `book` appends to meanwhile raises.
                self._commit([self._queue[i] for i in range(min(len(self._queue), BATCH_MAX))])
            self._problem = None
        except sqlite3.Error as error:
            if self._problem is None:
                log.error("records: %s can't be written: %s; trying again", self._path, error)
            self._problem = str(error)
        for question, answer in questions:
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(question())
            except sqlite3.Error as error:
                answer.set_exception(Unavailable(f"records: {self._path} can't be read: {error}"))
            except Exception as error:
                answer.set_exception(error)

    def _commit(self, batch: Sequence[LedgerEntry]) -> None:
        """Write the first rows of the queue, and take them off it. Raises sqlite3.Error, and then they still wait."""
        try:
            self._write(batch)
        except Exception as error:
            if _is_storage_failure(error):
                raise
            for entry in batch:
                self._write_alone(entry)
                self._queue.popleft()
            return
        for _ in batch:
            self._queue.popleft()

    def _write_alone(self, entry: LedgerEntry) -> None:
        try:
            self._write([entry])
        except Exception as error:
            if _is_storage_failure(error):
                raise
            self._lose(entry, f"it can't be written: {error}")

    def _write(self, batch: Sequence[LedgerEntry]) -> None:
        execute = self._connection.execute
        entries = {entry.id: entry for entry in batch}
        execute("BEGIN IMMEDIATE")
        try:
            for (id,) in execute(sql.FIND_BOOKED, (orjson.dumps(list(entries)).decode(),)).fetchall():
                del entries[id]
            self._connection.executemany(sql.BOOK, [row_of(entry) for entry in entries.values()])
            self._connection.executemany(sql.ADD_SPEND, sums_of(entries.values()))
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise

    def _lose(self, entry: LedgerEntry, why: str) -> None:
        self.lost_rows += 1
        tell_lost(entry, why, self.lost_rows)


def may_hold_keys(path: str) -> bool:
    """Whether a virtual key was ever kept in this file, which need not exist; True where that can't be told. Changes nothing."""
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is not None
    except sqlite3.Error as error:
        return Path(path).exists() and "no such table" not in str(error)


def _is_storage_failure(error: Exception) -> bool:
    """The disk, the file or a lock, and not the row."""
    return type(error) in (sqlite3.OperationalError, sqlite3.InternalError, sqlite3.DatabaseError)


def _open(path: str) -> sqlite3.Connection:
    try:
        if path != ":memory:":
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # names and spend are nobody else's
        connection = _connect(path)
        version = _version_of(connection)
        if 0 < version < SCHEMA_VERSION:
            connection.close()
            migrate_in_child(f"sqlite:///{path}")
            log.warning("records: %s was migrated from schema %d to %d", path, version, SCHEMA_VERSION)
            connection = _connect(path)
        try:
            refuse_newer(path, version)
        except StartupError:
            connection.close()
            raise
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if version == 0:
            _create(connection)
    except (OSError, sqlite3.Error) as error:
        raise StartupError([f"[state] records: can't open {path}: {error}"]) from error
    return connection


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _version_of(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _create(connection: sqlite3.Connection) -> None:
    """Make what all migrations together make, in one transaction; another process may just have done so."""
    connection.execute("BEGIN IMMEDIATE")
    if _version_of(connection) == 0:
        for statement in sql.CREATE.split(";"):
            connection.execute(statement)
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (REVISION,))
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION:d}")
    connection.execute("COMMIT")

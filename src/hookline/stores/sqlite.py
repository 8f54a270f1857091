"""Records in SQLite: the ledger of one machine.

Lives here: `SqliteRecords`, its one writer thread. Elsewhere: rows on disk before they are here (ledger_journal.py), what callers meet (ledger_intake.py), the
tables (tables.py), how an older file becomes this schema (migration.py), what a row means (builtins/budget).
Idea: `book` appends to the journal and nothing more; one thread owns the connection and commits what has come within COMMIT_EVERY_S as one transaction. The
loop never waits for the database, and a row costs the writer 4 µs where a transaction of its own would cost 500.

The writer's rules
- WAL with `synchronous = NORMAL`: what is committed survives `kill -9`; for power loss, the WAL is synced before a part of the journal is removed.
- What can't be committed waits in the journal and is tried again. Meanwhile questions are refused at once: old sums would be too low. A row that no database
  takes (an integer beyond 64 bits) is logged and left out, so that it can't hold back the others.
- Reads run in the same thread after the rows that came before them, so they see what was booked."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from hookline.errors import StartupError, Unavailable
from hookline.stores import sqlite_statements as sql
from hookline.stores.ledger import additions_of, end_of, quarter_of
from hookline.stores.ledger_intake import LedgerIntake
from hookline.stores.ledger_journal import FSYNC_MS, MAX_BYTES, LedgerJournal
from hookline.stores.plugin_tables import TableStore
from hookline.stores.protocols import LedgerEntry
from hookline.stores.reports import LedgerPage, LedgerQuery, SpendQuery, SpendSum, check
from hookline.stores.schema import REVISION, SCHEMA_VERSION, migrate_in_child, refuse_newer
from hookline.stores.spend_groups import remember
from hookline.stores.spend_query import (
    Question,
    days_question,
    read_page,
    read_sums,
    rows_question,
    runs_of,
    spend_question,
)
from hookline.stores.sqlite_keys import SqliteKeys
from hookline.stores.sqlite_owners import SqliteOwners

if TYPE_CHECKING:
    from pydantic import BaseModel

COMMIT_EVERY_S = 0.25
RETRY_EVERY_S = 0.5
ADOPT_EVERY_S = 5.0
CLOSE_WAIT_S = 10.0
BUSY_TIMEOUT_S = 0.5
"""How long the writer waits for another process's transaction, before questions are refused and it tries again."""
QUESTION_TIMEOUT_S = 2.0

ADDING = (sql.BOOK, sql.ADD_SPEND, sql.ADD_GROUP, sql.ADD_TAG, sql.ADD_HOUR, sql.ADD_DAY)
"""In the order of `Additions`."""

T = TypeVar("T")
M = TypeVar("M", bound="BaseModel")
log = logging.getLogger("hookline.records")


class SqliteRecords:
    """A `RecordStore` in one file, its journal beside it in `<file>.journal/`. Opens both and starts the writer; raises StartupError when one can't be used."""

    def __init__(
        self, path: str | os.PathLike[str], *, max_journal_bytes: int = MAX_BYTES, fsync_ms: int = FSYNC_MS
    ) -> None:
        self._path = os.fspath(path)
        self._connection = _open(self._path)
        self._scratch = tempfile.TemporaryDirectory() if self._path == ":memory:" else None
        folder = Path(self._scratch.name if self._scratch else f"{self._path}.journal")
        try:
            self._journal = LedgerJournal(
                folder, max_bytes=max_journal_bytes, fsync_ms=fsync_ms, on_segment_done=self._sync_database
            )
        except OSError as error:
            self._connection.close()
            raise StartupError([f"[state] records: can't use the journal {folder}: {error}"]) from error
        self._intake = LedgerIntake(self._journal, self._wake)
        self.keys = SqliteKeys(self._connection, self._ask)
        self.owners = SqliteOwners(self._connection, self._ask)
        self._questions: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._has_work = threading.Event()
        self._is_urgent = threading.Event()
        self._is_closing = False
        self._problem: str | None = None
        self._known_groups: set[int] = set()
        self._adopt_at = 0.0
        self._adopt()
        try:
            self._intake.refuse_unreadable()
        except StartupError:
            self._journal.close()
            self._connection.close()
            raise
        self._wake()
        self._writer = threading.Thread(target=self._run, name="hookline-records", daemon=True)
        self._writer.start()

    @property
    def readiness(self) -> str | None:
        if self._problem is not None:
            return (
                f"records: {self._path} can't be written: {self._problem}; "
                f"{self._journal.waiting_bytes >> 10} KiB of ledger rows wait"
            )
        return self._intake.find_problem(self._path)

    async def ping(self) -> None:
        if self._problem is not None:
            raise Unavailable(self.readiness or "records: can't be used", retry_after_s=1.0)

    @property
    def lost_rows(self) -> int:
        """Rows that were not kept, since start."""
        return self._intake.lost_rows

    def intend(self, entry: LedgerEntry) -> None:
        self._intake.intend(entry)

    def withdraw(self, id: str) -> None:
        self._intake.withdraw(id)

    def book(self, entry: LedgerEntry) -> None:
        self._intake.book(entry)

    async def recovered(self) -> Sequence[tuple[str, int]]:
        return await self._intake.recovered()

    def adopt(self) -> None:
        self._adopt_at = 0.0
        self._is_urgent.set()
        self._has_work.set()

    async def flush(self) -> None:
        await asyncio.wrap_future(self._put(lambda: None))

    async def spent_in(self, scope: str, *, since: float = 0.0, until: float = float("inf")) -> int:
        bounds = (scope, quarter_of(since), quarter_of(until))
        return await self._ask(lambda: self._connection.execute(sql.SUM_SCOPE, bounds).fetchone()[0] or 0)

    async def charges_in(self, scope: str, *, since: float = 0.0) -> Sequence[tuple[float, int]]:
        bounds = (scope, quarter_of(since))
        rows = await self._ask(lambda: self._connection.execute(sql.LIST_QUARTERS, bounds).fetchall())
        return [(end_of(quarter), nanousd) for quarter, nanousd in rows]

    async def report(self, query: SpendQuery) -> Sequence[SpendSum]:
        check(query)
        asked = spend_question(query, "?")
        return read_sums(query, await self._ask(lambda: self._fetch(asked)))

    async def read_ledger(self, query: LedgerQuery) -> LedgerPage:
        check(query)

        def read() -> list[tuple[Any, ...]]:
            runs, rows = [query], list[tuple[Any, ...]]()
            if query.where:
                runs = runs_of([day for (day,) in self._fetch(days_question(query, "?"))], query)
            for run in runs:
                rows += self._fetch(rows_question(run._replace(limit=query.limit - len(rows)), "?"))
                if len(rows) > query.limit:
                    break
            return rows

        return read_page(query, await self._ask(read))

    def table(self, model: type[M]) -> TableStore[M]:
        from hookline.stores.table_migration import (
            ensure_in_sqlite,  # pydantic's fields are looked at: only where a plugin has tables
        )
        from hookline.stores.table_sql import SqlTable

        def execute(text: str, arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
            try:
                return self._connection.execute(text, arguments).fetchall()
            except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError, OverflowError) as error:
                raise ValueError(f"this can't be kept: {error}") from error

        async def run(text: str, arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
            return await self._ask(lambda: execute(text, arguments))

        ensure_in_sqlite(self._path, model)
        return SqlTable(model, run, "?")

    def _fetch(self, asked: Question) -> list[tuple[Any, ...]]:
        return self._connection.execute(asked.text, asked.arguments).fetchall()

    async def aclose(self) -> None:
        self._is_closing = self._intake.is_closed = True
        self._is_urgent.set()
        self._has_work.set()
        await asyncio.to_thread(self._writer.join, CLOSE_WAIT_S)

    def _wake(self) -> None:
        self._has_work.set()

    async def _ask(self, question: Callable[[], T]) -> T:
        """Have the writer run `question` after everything booked so far. Raises Unavailable, at once while rows can't be written."""
        answer = self._put(question)
        try:
            async with asyncio.timeout(QUESTION_TIMEOUT_S):
                return await asyncio.wrap_future(answer)
        except TimeoutError as error:
            raise Unavailable(f"records: {self._path} gave no answer in time", retry_after_s=RETRY_EVERY_S) from error

    def _put(self, question: Callable[[], T]) -> Future[T]:
        if self._is_closing:
            raise Unavailable(f"records: {self._path} is closed")
        if self._problem is not None:
            raise self._unavailable()
        answer: Future[T] = Future()
        self._questions.append((question, answer))  # type: ignore[arg-type]
        self._is_urgent.set()
        self._has_work.set()
        return answer

    def _unavailable(self) -> Unavailable:
        return Unavailable(self.readiness or "records: can't be used", retry_after_s=1.0)

    # What follows runs in the writer's thread.

    def _run(self) -> None:
        while not self._is_closing:
            self._has_work.wait(RETRY_EVERY_S if self._problem is not None else ADOPT_EVERY_S)
            self._is_urgent.wait(COMMIT_EVERY_S)
            # In this order: a row that comes now is either seen below or finds `is_woken` False and wakes us again.
            self._is_urgent.clear()
            self._has_work.clear()
            self._intake.is_woken = False
            self._turn()
        self._turn()
        if self._problem is not None:
            log.critical("records: closed with ledger rows left in %s: %s", self._journal.folder, self._problem)
        self._journal.close()
        self._connection.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _turn(self) -> None:
        """Commit what waits, then answer what was asked before."""
        questions = [self._questions.popleft() for _ in range(len(self._questions))]
        try:
            self._adopt()
            while (batch := self._journal.read()) is not None:
                self._commit(batch.entries)
                self._intake.done(batch)
            self._problem = None
        except (sqlite3.Error, OSError) as error:
            if self._problem is None:
                log.error("records: %s can't be written: %s; trying again", self._path, error)
            self._problem = str(error)
        for question, answer in questions:
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                if self._problem is not None:
                    raise self._unavailable()
                answer.set_result(question())
            except sqlite3.Error as error:
                answer.set_exception(
                    Unavailable(f"records: {self._path} can't be read: {error}", retry_after_s=RETRY_EVERY_S)
                )
            except Exception as error:
                answer.set_exception(error)

    def _adopt(self) -> None:
        if time.monotonic() < self._adopt_at:
            return
        self._adopt_at = time.monotonic() + ADOPT_EVERY_S
        if count := self._journal.adopt():
            log.warning("records: %d journals were left in %s and are taken over", count, self._journal.folder)

    def _commit(self, entries: Sequence[LedgerEntry]) -> None:
        """Write rows. Raises sqlite3.Error when the file is out of order, and then they still wait."""
        if not entries:
            return
        try:
            self._write(entries)
        except Exception as error:
            if _is_storage_failure(error):
                raise
            for entry in entries:
                self._write_alone(entry)

    def _write_alone(self, entry: LedgerEntry) -> None:
        try:
            self._write([entry])
        except Exception as error:
            if _is_storage_failure(error):
                raise
            self._intake.lose(entry, f"it can't be written: {error}")

    def _write(self, batch: Sequence[LedgerEntry]) -> None:
        execute = self._connection.execute
        entries = {entry.id: entry for entry in batch}
        execute("BEGIN IMMEDIATE")
        try:
            for (id,) in execute(sql.FIND_BOOKED, (orjson.dumps(list(entries)).decode(),)).fetchall():
                del entries[id]
            added = additions_of(entries.values(), self._known_groups)
            parts: tuple[Sequence[Any], ...] = added
            for statement, rows in zip(ADDING, parts, strict=True):
                self._connection.executemany(statement, rows)
            execute("COMMIT")
            remember(self._known_groups, added.groups)
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise

    def _sync_database(self) -> None:
        """Make what is committed survive power loss, before the journal forgets it."""
        with suppress(FileNotFoundError):  # nothing was written since the last checkpoint, which syncs
            fd = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)


def may_hold_keys(path: str) -> bool:
    """Whether a virtual key was ever kept in this file, which need not exist; True where that can't be told. Changes nothing."""
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
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

"""Records in PostgreSQL: one ledger for many processes.

Lives here: `PostgresRecords`, its thread. Elsewhere: connections and the breaker (postgres_server.py), rows on disk (ledger_journal.py, in the folder that the URL calls spool), what
callers meet (ledger_intake.py), what is asked (postgres_statements.py), the tables (migrations/, run by `hookline migrate`).
Idea: `book` writes the row to the journal and returns; a thread with an event loop of its own commits what has come within COMMIT_EVERY_S as one
transaction (COPY, and the sums), so an outage is nothing but a commit that takes longer.

The writer's rules
- Exactly once by ledger id: a batch whose commit may or may not have arrived is sent again, without the rows that are there.
- After a failure it tries again every RETRY_EVERY_S.
- A row that no database takes (a NUL in a name) is logged and left out, so that it can't hold back the others."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hookline.errors import StartupError, Unavailable
from hookline.stores import postgres_statements as sql
from hookline.stores.ledger import additions_of, end_of, quarter_of
from hookline.stores.ledger_intake import LedgerIntake
from hookline.stores.ledger_journal import MAX_BYTES, LedgerJournal, Mark
from hookline.stores.plugin_tables import TableStore, check_table
from hookline.stores.postgres_keys import PostgresKeys
from hookline.stores.postgres_owners import PostgresOwners
from hookline.stores.postgres_server import QUESTION_TIMEOUT_S, RETRY_EVERY_S, PostgresServer, said_of
from hookline.stores.protocols import LedgerEntry
from hookline.stores.records_url import split_url
from hookline.stores.reports import LedgerPage, LedgerQuery, SpendQuery, SpendSum, check
from hookline.stores.spend_groups import remember
from hookline.stores.spend_query import days_question, read_page, read_sums, rows_question, runs_of, spend_question

if TYPE_CHECKING:
    from pydantic import BaseModel

PING_EVERY_S = 1.0
COMMIT_EVERY_S = 0.25
CLOSE_COMMIT_S = 2.0
CLOSE_WAIT_S = 10.0
ADOPT_EVERY_S = 5.0
LEDGER_COLUMNS = (*LedgerEntry._fields[:15], "price_version", "corrects", "group_id")

ADDING = (sql.ADD_SPEND, sql.ADD_GROUP, sql.ADD_TAG, sql.ADD_HOUR, sql.ADD_DAY)
"""In the order of `Additions`, after the rows."""

T = TypeVar("T")
M = TypeVar("M", bound="BaseModel")
log = logging.getLogger("hookline.records")


class PostgresRecords:
    """A `RecordStore` in a PostgreSQL database. Where that can't be reached now, it starts with the spool alone.

    `url` may name the spool's folder: `?spool=/var/spool/hookline`. Raises StartupError when the database says no, or is not migrated."""

    def __init__(self, url: str, *, max_spool_bytes: int = MAX_BYTES) -> None:
        dsn, spool, fsync_ms = split_url(url)
        folder = Path(spool or "hookline-spool")
        self._server = server = PostgresServer(dsn, folder)
        try:
            self._journal = LedgerJournal(folder, max_bytes=max_spool_bytes, fsync_ms=fsync_ms)
        except OSError as error:
            raise StartupError([f"[state] records: can't use the spool {folder}: {error}"]) from error
        self._intake = LedgerIntake(self._journal, self._wake)
        self._is_closing = False
        self._adopt_at = 0.0
        self._known_groups: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._answered_at = 0.0
        """When `ping` was answered."""
        self._work = asyncio.Event()
        self._urgent = asyncio.Event()
        self._turning = asyncio.Lock()
        self.keys = PostgresKeys(lambda job: self._ask(server.connected(job)))
        self.owners = PostgresOwners(lambda job: self._ask(server.connected(job)), server.check_breaker)
        self._writer: asyncio.Task[Any] | None = None
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="hookline-records", daemon=True)
        self._thread.start()
        started.result()

    @property
    def readiness(self) -> str | None:
        if self._server.refusal is not None:  # its schema is not ours, which does not mend itself
            return f"records: {self._server.refusal}; rows wait in {self._journal.folder}; see `hookline migrate`"
        return self._intake.find_problem(f"{self._server.shown}: {self._server.problem or 'it does not keep up'}")

    async def ping(self) -> None:
        self._server.check_breaker()
        if time.monotonic() - self._answered_at > PING_EVERY_S:
            await self._ask(self._server.connected(lambda connection: connection.fetchval("SELECT 1")))
            self._answered_at = time.monotonic()

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
        if not self._is_closing:
            self._loop.call_soon_threadsafe(self._work.set)

    async def flush(self) -> None:
        await self._ask(self._flush())

    async def spent_in(self, scope: str, *, since: float = 0.0, until: float = float("inf")) -> int:
        rows = await self._ask(self._fetch(sql.SUM_SCOPE, scope, quarter_of(since), quarter_of(until)))
        return int(rows[0][0] or 0)

    async def charges_in(self, scope: str, *, since: float = 0.0) -> Sequence[tuple[float, int]]:
        rows = await self._ask(self._fetch(sql.LIST_QUARTERS, scope, quarter_of(since)))
        return [(end_of(quarter), int(nanousd)) for quarter, nanousd in rows]

    async def report(self, query: SpendQuery) -> Sequence[SpendSum]:
        check(query)
        asked = spend_question(query, "$")
        return read_sums(query, await self._ask(self._fetch(asked.text, *asked.arguments)))

    async def read_ledger(self, query: LedgerQuery) -> LedgerPage:
        check(query)
        runs, rows = [query], list[Any]()
        if query.where:
            asked = days_question(query, "$")
            days = await self._ask(self._fetch(asked.text, *asked.arguments))
            runs = runs_of([day for (day,) in days], query)
        for run in runs:
            asked = rows_question(run._replace(limit=query.limit - len(rows)), "$")
            rows += await self._ask(self._fetch(asked.text, *asked.arguments))
            if len(rows) > query.limit:
                break
        return read_page(query, rows)

    def table(self, model: type[M]) -> TableStore[M]:
        from hookline.stores.table_sql import SqlTable

        check_table(model)
        with suppress(Unavailable):  # then it is found out when the table is used
            asyncio.run_coroutine_threadsafe(self._check_table(model), self._loop).result()

        async def run(text: str, arguments: Sequence[Any]) -> list[Any]:
            return await self._ask(self._server.execute(text, arguments))

        return SqlTable(model, run, "$")

    async def aclose(self) -> None:
        if not self._is_closing:
            self._is_closing = self._intake.is_closed = True
            self._loop.call_soon_threadsafe(self._begin_to_close)
        await asyncio.to_thread(self._thread.join, CLOSE_WAIT_S)

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Have the thread's loop answer."""
        if self._is_closing:
            question.close()
            raise Unavailable(f"records: {self._server.shown} is closed")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(question, self._loop))

    # What follows runs in the thread.

    def _run(self, started: Future[None]) -> None:
        try:
            self._loop.run_until_complete(self._main(started))
        except asyncio.CancelledError:
            log.error("records: closed with rows left in %s for the next process", self._journal.folder)
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            else:
                log.exception("records: the writer for %s ended", self._server.shown)
        finally:
            self._is_closing = self._intake.is_closed = True
            self._journal.close()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _begin_to_close(self) -> None:
        """Have the writer do its last turn now, and end without it if the database takes too long: the rows are on disk."""
        self._work.set()
        self._urgent.set()
        if self._writer is not None:
            self._loop.call_later(CLOSE_COMMIT_S, self._writer.cancel)

    async def _main(self, started: Future[None]) -> None:
        self._writer = asyncio.current_task()
        await self._server.open()
        try:
            await self._server.try_step(self._server.probe())
            self._adopt()
            self._intake.refuse_unreadable()
            started.set_result(None)
            while not self._is_closing:
                await self._wait()
                self._work.clear()
                self._urgent.clear()
                self._intake.is_woken = False
                self._adopt()
                await self._server.try_step(self._turn())
            await self._server.try_step(self._turn())
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            self._server.close()

    async def _wait(self) -> None:
        """Until there is work, and then as long as rows may gather; with an open breaker until it may be tried."""
        if self._server.problem is not None:
            await _within(RETRY_EVERY_S, self._urgent)
            return
        await _within(ADOPT_EVERY_S, self._work)
        await _within(COMMIT_EVERY_S, self._urgent)

    def _adopt(self) -> None:
        if time.monotonic() < self._adopt_at:
            return
        self._adopt_at = time.monotonic() + ADOPT_EVERY_S
        if count := self._journal.adopt():
            log.warning("records: %d journals were left in %s and are taken over", count, self._journal.folder)

    async def _turn(self, mark: Mark | None = None) -> None:
        """Commit what waits (up to `mark`); where the breaker is open, see first whether it may close."""
        async with self._turning:
            if self._server.problem is not None:
                await self._server.probe()
            while (mark is None or not self._journal.is_done(mark)) and (batch := self._journal.read()):
                if batch.entries:
                    await self._commit(batch.entries)
                self._intake.done(batch)

    async def _flush(self) -> None:
        mark = self._journal.mark()
        if self._server.problem is not None:
            raise self._server.unavailable()
        await self._server.try_step(self._turn(mark))
        if not self._journal.is_done(mark):
            raise self._server.unavailable()

    async def _fetch(self, statement: str, *arguments: object) -> list[Any]:
        """Ask after everything booked so far."""
        try:
            async with asyncio.timeout(QUESTION_TIMEOUT_S):
                await self._flush()
                async with self._server.acquire(QUESTION_TIMEOUT_S) as connection:
                    rows: list[Any] = await connection.fetch(statement, *arguments)
                    return rows
        except Unavailable:
            raise
        except Exception as error:
            self._server.trip(error)
            raise self._server.unavailable() from error

    async def _check_table(self, model: type[BaseModel]) -> None:
        """Raises StartupError for a table that `hookline migrate` has to make or widen."""
        from hookline.stores.table_migration import missing_columns
        from hookline.stores.table_sql import check_indexes, table_name

        check_indexes(model)
        name = table_name(check_table(model).name)
        asked = "SELECT column_name FROM information_schema.columns WHERE table_name = $1"
        existing = [row[0] for row in await self._server.execute(asked, [name])]
        if missing := missing_columns(model, existing):
            what = f"lacks {', '.join(missing)}" if existing else "is not there"
            raise StartupError(
                [f"[state] records: the table {name} in {self._server.shown} {what}; run: hookline migrate"]
            )

    async def _commit(self, entries: Sequence[LedgerEntry]) -> None:
        """Write rows. Raises when the database is out of order, and then they still wait."""
        try:
            try:
                await self._write(entries)
            except (
                self._server.asyncpg.UniqueViolationError
            ):  # another process has just booked one of them: it is found now
                await self._write(entries)
        except Exception as error:
            if not self._server.is_rows_fault(error):
                raise
            if len(entries) == 1:
                self._intake.lose(entries[0], f"it can't be written: {said_of(error)}")
                return
            middle = len(entries) // 2  # halves: one bad row of 4,000 costs 24 tries
            await self._commit(entries[:middle])
            await self._commit(entries[middle:])

    async def _write(self, entries: Sequence[LedgerEntry]) -> None:
        by_id = {entry.id: entry for entry in entries}
        async with self._server.acquire() as connection, connection.transaction():
            for (id,) in await connection.fetch(sql.FIND_BOOKED, list(by_id)):
                del by_id[id]
            if not by_id:
                return
            added = additions_of(by_id.values(), self._known_groups)
            await connection.copy_records_to_table("ledger", records=added.rows, columns=LEDGER_COLUMNS)
            for statement, rows in zip(ADDING, added[1:], strict=True):
                if rows:
                    await connection.executemany(statement, rows)
        remember(self._known_groups, added.groups)

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._work.set)


async def _within(timeout_s: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass

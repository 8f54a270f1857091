"""Records in PostgreSQL: one ledger for many processes.

Lives here: `PostgresRecords`, its thread, its small pool, its breaker. Elsewhere: rows on disk (ledger_journal.py, in the folder that the URL calls spool), what
callers meet (ledger_intake.py), what is asked (postgres_statements.py), the tables (migrations/, run by `hookline migrate`).
Idea: `book` writes the row to the journal and returns; a thread with an event loop of its own commits what has come within COMMIT_EVERY_S as one
transaction (COPY, and the sums), so an outage is nothing but a commit that takes longer.

The writer's rules
- Exactly once by ledger id: a batch whose commit may or may not have arrived is sent again, without the rows that are there.
- The breaker: after a failure only the writer tries again, every RETRY_EVERY_S; all others are refused at once.
- A row that no database takes (a NUL in a name) is logged and left out, so that it can't hold back the others."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from hookline.errors import ApiError, StartupError, Unavailable
from hookline.stores import postgres_statements as sql
from hookline.stores.ledger import additions_of, end_of, quarter_of
from hookline.stores.ledger_intake import LedgerIntake
from hookline.stores.ledger_journal import MAX_BYTES, LedgerJournal, Mark
from hookline.stores.plugin_tables import TableStore, check_table
from hookline.stores.postgres_keys import PostgresKeys
from hookline.stores.postgres_owners import PostgresOwners
from hookline.stores.protocols import LedgerEntry
from hookline.stores.records_url import split_url
from hookline.stores.reports import LedgerPage, LedgerQuery, SpendQuery, SpendSum, check
from hookline.stores.schema import SCHEMA_VERSION, NotMigrated, refuse_newer
from hookline.stores.spend_groups import remember
from hookline.stores.spend_query import days_question, read_page, read_sums, rows_question, runs_of, spend_question

if TYPE_CHECKING:
    from pydantic import BaseModel

COMMIT_EVERY_S = 0.25
RETRY_EVERY_S = 0.5
CONNECT_TIMEOUT_S = 2.0
QUESTION_TIMEOUT_S = 2.0
COMMIT_TIMEOUT_S = 5.0
CLOSE_COMMIT_S = 2.0
CLOSE_WAIT_S = 10.0
ADOPT_EVERY_S = 5.0
CONNECTIONS_MAX = 4
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
        try:
            import asyncpg  # type: ignore[import-untyped]
        except ImportError as error:
            raise StartupError(
                ["[state] records: PostgreSQL needs the extra `postgres`: pip install 'hookline[postgres]'"]
            ) from error
        self._asyncpg: Any = asyncpg
        self._dsn, spool, fsync_ms = split_url(url)
        folder = Path(spool or "hookline-spool")
        self._shown = _without_secrets(self._dsn)
        try:
            self._journal = LedgerJournal(folder, max_bytes=max_spool_bytes, fsync_ms=fsync_ms)
        except OSError as error:
            raise StartupError([f"[state] records: can't use the spool {folder}: {error}"]) from error
        self._intake = LedgerIntake(self._journal, self._wake)
        self._problem: str | None = None
        self._refusal: str | None = None
        self._is_checked = False
        self._is_closing = False
        self._adopt_at = 0.0
        self._known_groups: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._work = asyncio.Event()
        self._urgent = asyncio.Event()
        self._turning = asyncio.Lock()
        self._pool: Any = None
        self.keys = PostgresKeys(lambda job: self._ask(self._connected(job)))
        self.owners = PostgresOwners(lambda job: self._ask(self._connected(job)), self._check_breaker)
        self._writer: asyncio.Task[Any] | None = None
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="hookline-records", daemon=True)
        self._thread.start()
        started.result()

    @property
    def readiness(self) -> str | None:
        if self._refusal is not None:  # its schema is not ours, which does not mend itself
            return f"records: {self._refusal}; rows wait in {self._journal.folder}; see `hookline migrate`"
        return self._intake.find_problem(f"{self._shown}: {self._problem or 'it does not keep up'}")

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
            return await self._ask(self._execute(text, arguments))

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
            raise Unavailable(f"records: {self._shown} is closed")
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
                log.exception("records: the writer for %s ended", self._shown)
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
        self._pool = self._asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=CONNECTIONS_MAX,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMIT_TIMEOUT_S,
            server_settings={"application_name": "hookline"},
        )
        await self._pool
        try:
            await self._try(self._probe())
            self._adopt()
            self._intake.refuse_unreadable()
            started.set_result(None)
            while not self._is_closing:
                await self._wait()
                self._work.clear()
                self._urgent.clear()
                self._intake.is_woken = False
                self._adopt()
                await self._try(self._turn())
            await self._try(self._turn())
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            self._pool.terminate()

    async def _wait(self) -> None:
        """Until there is work, and then as long as rows may gather; with an open breaker until it may be tried."""
        if self._problem is not None:
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

    async def _try(self, step: Coroutine[Any, Any, None]) -> None:
        """One step of the writer: what keeps it from succeeding is remembered, and opens the breaker."""
        try:
            await step
        except Exception as error:
            self._trip(error)
        else:
            if self._problem is not None:
                log.warning("records: %s is back", self._shown)
            self._problem = self._refusal = None

    def _trip(self, error: Exception) -> None:
        """Open the breaker. At start, what only a person can put right is raised as StartupError."""
        is_starting = not self._is_checked and self._problem is None
        if isinstance(error, StartupError):
            if is_starting:
                raise error
            self._refusal = error.problems[0]
            self._fail(self._refusal)
            return
        pg = self._asyncpg
        if is_starting and isinstance(
            error, (pg.InvalidAuthorizationSpecificationError, pg.InvalidCatalogNameError, ValueError)
        ):
            raise StartupError([f"[state] records: {self._shown}: {_said(error)}"]) from error
        if not isinstance(error, (OSError, TimeoutError, pg.PostgresError, pg.InterfaceError)):
            log.error("records: the writer failed", exc_info=error)
        self._fail(_said(error))

    def _fail(self, why: str) -> None:
        if self._problem is None:
            log.error("records: %s can't be used: %s; ledger rows wait in %s", self._shown, why, self._journal.folder)
        self._problem = why

    async def _probe(self) -> None:
        """See whether the database answers and has our schema."""
        async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
            await self._check(connection)

    async def _check(self, connection: Any) -> None:
        try:
            version = int(await connection.fetchval("SELECT version_num FROM alembic_version"))
        except self._asyncpg.UndefinedTableError:
            version = 0
        refuse_newer(self._shown, version)
        if version < SCHEMA_VERSION:
            raise NotMigrated(self._shown, version)
        self._is_checked = True

    async def _turn(self, mark: Mark | None = None) -> None:
        """Commit what waits (up to `mark`); where the breaker is open, see first whether it may close."""
        async with self._turning:
            if self._problem is not None:
                await self._probe()
            while (mark is None or not self._journal.is_done(mark)) and (batch := self._journal.read()):
                if batch.entries:
                    await self._commit(batch.entries)
                self._intake.done(batch)

    async def _flush(self) -> None:
        mark = self._journal.mark()
        if self._problem is not None:
            raise self._unavailable()
        await self._try(self._turn(mark))
        if not self._journal.is_done(mark):
            raise self._unavailable()

    async def _fetch(self, statement: str, *arguments: object) -> list[Any]:
        """Ask after everything booked so far."""
        try:
            async with asyncio.timeout(QUESTION_TIMEOUT_S):
                await self._flush()
                async with self._pool.acquire() as connection:
                    rows: list[Any] = await connection.fetch(statement, *arguments)
                    return rows
        except Unavailable:
            raise
        except Exception as error:
            self._trip(error)
            raise self._unavailable() from error

    async def _check_table(self, model: type[BaseModel]) -> None:
        """Raises StartupError for a table that `hookline migrate` has to make or widen."""
        from hookline.stores.table_migration import missing_columns
        from hookline.stores.table_sql import check_indexes, table_name

        check_indexes(model)
        name = table_name(check_table(model).name)
        asked = "SELECT column_name FROM information_schema.columns WHERE table_name = $1"
        existing = [row[0] for row in await self._execute(asked, [name])]
        if missing := missing_columns(model, existing):
            what = f"lacks {', '.join(missing)}" if existing else "is not there"
            raise StartupError([f"[state] records: the table {name} in {self._shown} {what}; run: hookline migrate"])

    async def _execute(self, text: str, arguments: Sequence[Any]) -> list[Any]:
        """One statement; ledger rows that wait are not waited for. Raises ValueError for what can't be kept."""
        try:
            rows: list[Any] = await self._connected(lambda connection: connection.fetch(text, *arguments))
            return rows
        except Exception as error:
            if self._is_rows_fault(error):
                raise ValueError(f"this can't be kept: {_said(error)}") from error
            raise

    async def _connected(self, job: Callable[[Any], Awaitable[T]]) -> T:
        """Run `job` on a connection; ledger rows that wait are not waited for. Raises what the job raises, ApiErrors unchanged."""
        if self._problem is not None:
            raise self._unavailable()
        try:
            async with asyncio.timeout(QUESTION_TIMEOUT_S), self._pool.acquire() as connection:
                return await job(connection)
        except ApiError:
            raise
        except Exception as error:
            if self._is_rows_fault(error) or isinstance(error, self._asyncpg.IntegrityConstraintViolationError):
                raise
            self._trip(error)
            raise self._unavailable() from error

    def _check_breaker(self) -> None:
        if self._problem is not None:
            raise self._unavailable()

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"records: {self._shown} can't be used: {self._problem}", retry_after_s=RETRY_EVERY_S)

    async def _commit(self, entries: Sequence[LedgerEntry]) -> None:
        """Write rows. Raises when the database is out of order, and then they still wait."""
        try:
            try:
                await self._write(entries)
            except self._asyncpg.UniqueViolationError:  # another process has just booked one of them: it is found now
                await self._write(entries)
        except Exception as error:
            if not self._is_rows_fault(error):
                raise
            if len(entries) == 1:
                self._intake.lose(entries[0], f"it can't be written: {_said(error)}")
                return
            middle = len(entries) // 2  # halves: one bad row of 4,000 costs 24 tries
            await self._commit(entries[:middle])
            await self._commit(entries[middle:])

    def _is_rows_fault(self, error: Exception) -> bool:
        pg = self._asyncpg
        return isinstance(error, (pg.DataError, pg.NotNullViolationError, UnicodeEncodeError, OverflowError, TypeError))

    async def _write(self, entries: Sequence[LedgerEntry]) -> None:
        by_id = {entry.id: entry for entry in entries}
        async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection, connection.transaction():
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


def _without_secrets(dsn: str) -> str:
    parts = urlsplit(dsn)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error).strip().split("\n")[0] or type(error).__name__

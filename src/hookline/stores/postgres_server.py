"""The PostgreSQL server of `records`: a small pool, and the breaker in front of it.

Lives here: connections, what a failure means, when the server is asked again. Elsewhere: what is asked (postgres.py, postgres_keys.py, postgres_owners.py), in whose thread
(postgres.py).
Idea: after a failure only the writer tries again (`try_step`); all others are refused at once. Everything but the constructor and `check_breaker` runs in the thread of
`PostgresRecords`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hookline.errors import ApiError, StartupError, Unavailable
from hookline.stores.schema import SCHEMA_VERSION, NotMigrated, refuse_newer

RETRY_EVERY_S = 0.5
CONNECT_TIMEOUT_S = 2.0
QUESTION_TIMEOUT_S = 2.0
COMMIT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 4

T = TypeVar("T")
log = logging.getLogger("hookline.records")


class PostgresServer:
    """One database on one server. `spool`: where rows wait while it can't be used, for the log."""

    def __init__(self, dsn: str, spool: Path) -> None:
        try:
            import asyncpg  # type: ignore[import-untyped]
        except ImportError as error:
            raise StartupError(
                ["[state] records: PostgreSQL needs the extra `postgres`: pip install 'hookline[postgres]'"]
            ) from error
        self.asyncpg: Any = asyncpg
        self._dsn = dsn
        self._spool = spool
        self.shown = _without_secrets(dsn)
        """Its address, for people."""
        self.problem: str | None = None
        """Why the breaker is open."""
        self.refusal: str | None = None
        """Its schema is not ours, which does not mend itself."""
        self._is_checked = False
        self._pool: Any = None

    async def open(self) -> None:
        """Make the pool; nothing is asked yet."""
        self._pool = self.asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=CONNECTIONS_MAX,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMIT_TIMEOUT_S,
            server_settings={"application_name": "hookline"},
        )
        await self._pool

    def close(self) -> None:
        """Cut what is open."""
        self._pool.terminate()

    @asynccontextmanager
    async def acquire(self, within_s: float | None = None) -> AsyncIterator[Any]:
        """A connection for at most `within_s`: cut then, so that no rollback, reset or cancel request waits for a server that does not answer."""
        loop = asyncio.get_running_loop()
        ends_at = None if within_s is None else loop.time() + within_s
        connection = await self._pool.acquire(timeout=CONNECT_TIMEOUT_S)
        cutting = None if ends_at is None else loop.call_at(ends_at, self._cut, connection)
        try:
            yield connection
        finally:
            try:
                await self._pool.release(connection, timeout=within_s)
            finally:
                if cutting is not None:
                    cutting.cancel()

    def _cut(self, connection: Any) -> None:
        with suppress(self.asyncpg.InterfaceError):  # it has been given up already
            connection.terminate()

    async def try_step(self, step: Coroutine[Any, Any, None]) -> None:
        """One step of the writer: what keeps it from succeeding is remembered, and opens the breaker."""
        try:
            await step
        except Exception as error:
            self.trip(error)
        else:
            if self.problem is not None:
                log.warning("records: %s is back", self.shown)
            self.problem = self.refusal = None

    def trip(self, error: Exception) -> None:
        """Open the breaker. At start, what only a person can put right is raised as StartupError."""
        is_starting = not self._is_checked and self.problem is None
        if isinstance(error, StartupError):
            if is_starting:
                raise error
            self.refusal = error.problems[0]
            self._fail(self.refusal)
            return
        pg = self.asyncpg
        if is_starting and isinstance(
            error, (pg.InvalidAuthorizationSpecificationError, pg.InvalidCatalogNameError, ValueError)
        ):
            raise StartupError([f"[state] records: {self.shown}: {said_of(error)}"]) from error
        if not isinstance(error, (OSError, TimeoutError, pg.PostgresError, pg.InterfaceError)):
            log.error("records: the writer failed", exc_info=error)
        self._fail(said_of(error))

    def _fail(self, why: str) -> None:
        if self.problem is None:
            log.error("records: %s can't be used: %s; ledger rows wait in %s", self.shown, why, self._spool)
        self.problem = why

    async def probe(self) -> None:
        """See whether the database answers and has our schema."""
        async with self.acquire(QUESTION_TIMEOUT_S) as connection:
            await self._check(connection)

    async def _check(self, connection: Any) -> None:
        try:
            version = int(await connection.fetchval("SELECT version_num FROM alembic_version"))
        except self.asyncpg.UndefinedTableError:
            version = 0
        refuse_newer(self.shown, version)
        if version < SCHEMA_VERSION:
            raise NotMigrated(self.shown, version)
        self._is_checked = True

    async def execute(self, text: str, arguments: Sequence[Any]) -> list[Any]:
        """One statement; ledger rows that wait are not waited for. Raises ValueError for what can't be kept."""
        try:
            rows: list[Any] = await self.connected(lambda connection: connection.fetch(text, *arguments))
            return rows
        except Exception as error:
            if self.is_rows_fault(error):
                raise ValueError(f"this can't be kept: {said_of(error)}") from error
            raise

    async def connected(self, job: Callable[[Any], Awaitable[T]]) -> T:
        """Run `job` on a connection; ledger rows that wait are not waited for. Raises what the job raises, ApiErrors unchanged."""
        if self.problem is not None:
            raise self.unavailable()
        try:
            async with asyncio.timeout(QUESTION_TIMEOUT_S), self.acquire(QUESTION_TIMEOUT_S) as connection:
                return await job(connection)
        except ApiError:
            raise
        except Exception as error:
            if self.is_rows_fault(error) or isinstance(error, self.asyncpg.IntegrityConstraintViolationError):
                raise
            self.trip(error)
            raise self.unavailable() from error

    def check_breaker(self) -> None:
        if self.problem is not None:
            raise self.unavailable()

    def unavailable(self) -> Unavailable:
        return Unavailable(f"records: {self.shown} can't be used: {self.problem}", retry_after_s=RETRY_EVERY_S)

    def is_rows_fault(self, error: Exception) -> bool:
        pg = self.asyncpg
        return isinstance(error, (pg.DataError, pg.NotNullViolationError, UnicodeEncodeError, OverflowError, TypeError))


def _without_secrets(dsn: str) -> str:
    parts = urlsplit(dsn)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def said_of(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error).strip().split("\n")[0] or type(error).__name__

"""Owners in SQLite.

Lives here: `SqliteOwners`, over the connection of the store's writer thread. Elsewhere: the thread (sqlite.py), the protocol (owners.py), the text
(sqlite_owner_statements.py).
Idea: every question and every claim is one job of that thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import orjson

from hookline.stores import sqlite_owner_statements as sql
from hookline.stores.owners import Owner, askable

T = TypeVar("T")


class Ask(Protocol):
    """Runs a job in the thread that owns the connection."""

    def __call__(self, job: Callable[[], T], /) -> Awaitable[T]: ...


class SqliteOwners:
    """An `OwnerStore`."""

    def __init__(self, connection: sqlite3.Connection, ask: Ask) -> None:
        self._connection = connection
        self._ask = ask

    async def claim(self, owners: Sequence[Owner]) -> Mapping[str, Owner]:
        if not owners:
            return {}

        def job() -> Mapping[str, Owner]:
            self._connection.executemany(sql.CLAIM, owners)
            return self._find([owner.object_id for owner in owners])

        return await self._ask(lambda: self._in_transaction(job))

    async def find(self, ids: Sequence[str]) -> Mapping[str, Owner]:
        wanted = askable(ids)
        return await self._ask(lambda: self._find(wanted)) if wanted else {}

    async def forget(self, tenant: str, ids: Sequence[str]) -> None:
        wanted = orjson.dumps(list(ids)).decode()
        await self._ask(lambda: self._in_transaction(lambda: self._connection.execute(sql.FORGET, (tenant, wanted))))

    async def tenants(self) -> Sequence[str]:
        def job() -> Sequence[str]:
            ends = (self._connection.execute(asked).fetchone() for asked in (sql.KEY_ENDS, sql.OWNER_ENDS))
            return sorted({name for pair in ends for name in pair if name is not None})

        return await self._ask(job)

    # What follows runs in the writer's thread.

    def _find(self, ids: Sequence[str]) -> Mapping[str, Owner]:
        rows = self._connection.execute(sql.FIND_OWNERS, (orjson.dumps(list(ids)).decode(),)).fetchall()
        return {row[0]: Owner(*row) for row in rows}

    def _in_transaction(self, job: Callable[[], T]) -> T:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            answer = job()
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        return answer

"""Virtual keys in SQLite.

Lives here: `SqliteKeys`, over the connection of the store's writer thread. Elsewhere: the thread (sqlite.py), the protocol (keys.py), the text (sqlite_key_statements.py).
Idea: every question and every change is one job of that thread; a change takes the file's write lock first, so the number it takes is the last."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from hookline.stores import sqlite_key_statements as sql
from hookline.stores.keys import KeyChanges, StoredKey, to_key, to_row

T = TypeVar("T")


class Ask(Protocol):
    """Runs a job in the thread that owns the connection."""

    def __call__(self, job: Callable[[], T], /) -> Awaitable[T]: ...


class SqliteKeys:
    """A `KeyStore`."""

    def __init__(self, connection: sqlite3.Connection, ask: Ask) -> None:
        self._connection = connection
        self._ask = ask

    async def add(self, key: StoredKey) -> StoredKey:
        def job() -> StoredKey:
            kept = key._replace(changed=self._next_change())
            self._connection.execute(sql.INSERT_KEY, to_row(kept))
            return kept

        return await self._ask(lambda: self._in_transaction(job))

    async def change(self, id: str, edit: Callable[[StoredKey], StoredKey]) -> StoredKey | None:
        def job() -> StoredKey | None:
            rows = self._fetch(sql.GET_KEY, id)
            if not rows:
                return None
            edited = edit(rows[0])
            if edited == rows[0]:
                return edited
            kept = edited._replace(id=id, changed=self._next_change())
            self._connection.execute(sql.UPDATE_KEY, (*to_row(kept)[1:], id))
            return kept

        return await self._ask(lambda: self._in_transaction(job))

    async def find(self, hash: str) -> StoredKey | None:
        found = await self._ask(lambda: self._fetch(sql.FIND_KEY, hash, hash))
        return found[0] if found else None

    async def get(self, id: str) -> StoredKey | None:
        found = await self._ask(lambda: self._fetch(sql.GET_KEY, id))
        return found[0] if found else None

    async def page(
        self,
        *,
        after: str = "",
        limit: int,
        name: str | None = None,
        tenant: str | None = None,
        user: str | None = None,
        is_revoked: bool | None = None,
    ) -> Sequence[StoredKey]:
        filters = (name, name, tenant, tenant, user, user, is_revoked, is_revoked)
        return await self._ask(lambda: self._fetch(sql.PAGE_KEYS, after, *filters, limit, 0))

    async def changes(self, after: int, *, limit: int) -> KeyChanges:
        def job() -> KeyChanges:
            latest = self._last_change()
            keys = self._fetch(sql.CHANGED_KEYS, after, limit, 0) if latest > after else []
            return KeyChanges(max(latest, *(key.changed for key in keys)) if keys else latest, keys)

        return await self._ask(job)

    # What follows runs in the writer's thread.

    def _fetch(self, statement: str, *arguments: object) -> list[StoredKey]:
        return [to_key(row) for row in self._connection.execute(statement, arguments).fetchall()]

    def _last_change(self) -> int:
        number: int | None = self._connection.execute(sql.LAST_CHANGE).fetchone()[0]
        return number or 0

    def _next_change(self) -> int:
        return self._last_change() + 1

    def _in_transaction(self, job: Callable[[], T]) -> T:
        execute: Callable[[str], Any] = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            answer = job()
            execute("COMMIT")
            return answer
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise

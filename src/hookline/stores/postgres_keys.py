"""Virtual keys in PostgreSQL.

Lives here: `PostgresKeys`, over the store's pool. Elsewhere: the pool, its breaker and its thread (postgres.py), the protocol (keys.py), the text
(postgres_key_statements.py).
Idea: whoever changes a key locks the table against other writers until the commit, so change numbers are committed in their order; readers never wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from hookline.stores import postgres_key_statements as sql
from hookline.stores.keys import KeyChanges, StoredKey, to_key, to_row

T = TypeVar("T")


class Ask(Protocol):
    """Runs a job with a connection, in the thread of the pool."""

    def __call__(self, job: Callable[[Any], Awaitable[T]], /) -> Awaitable[T]: ...


class PostgresKeys:
    """A `KeyStore`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def add(self, key: StoredKey) -> StoredKey:
        async def job(connection: Any) -> StoredKey:
            async with connection.transaction():
                kept = key._replace(changed=await _next_change(connection))
                await connection.execute(sql.INSERT_KEY, *to_row(kept))
            return kept

        return await self._ask(job)

    async def change(self, id: str, edit: Callable[[StoredKey], StoredKey]) -> StoredKey | None:
        async def job(connection: Any) -> StoredKey | None:
            async with connection.transaction():
                number = await _next_change(connection)
                found = await _fetch(connection, sql.GET_KEY, id)
                if not found:
                    return None
                edited = edit(found[0])
                if edited == found[0]:
                    return edited
                kept = edited._replace(id=id, changed=number)
                await connection.execute(sql.UPDATE_KEY, *to_row(kept)[1:], id)
            return kept

        return await self._ask(job)

    async def find(self, hash: str) -> StoredKey | None:
        return await self._one(sql.FIND_KEY, hash)

    async def get(self, id: str) -> StoredKey | None:
        return await self._one(sql.GET_KEY, id)

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
        arguments = (after, name, tenant, user, is_revoked, limit)
        return await self._ask(lambda connection: _fetch(connection, sql.PAGE_KEYS, *arguments))

    async def changes(self, after: int, *, limit: int) -> KeyChanges:
        async def job(connection: Any) -> KeyChanges:
            latest = await connection.fetchval(sql.LAST_CHANGE) or 0
            keys = await _fetch(connection, sql.CHANGED_KEYS, after, limit) if latest > after else []
            return KeyChanges(max(latest, *(key.changed for key in keys)) if keys else latest, keys)

        return await self._ask(job)

    async def _one(self, statement: str, argument: str) -> StoredKey | None:
        found = await self._ask(lambda connection: _fetch(connection, statement, argument))
        return found[0] if found else None


async def _fetch(connection: Any, statement: str, *arguments: object) -> list[StoredKey]:
    return [to_key(row) for row in await connection.fetch(statement, *arguments)]


async def _next_change(connection: Any) -> int:
    await connection.execute(sql.LOCK_KEYS)
    number: int | None = await connection.fetchval(sql.LAST_CHANGE)
    return (number or 0) + 1

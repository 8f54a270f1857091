"""Owners in PostgreSQL.

Lives here: `PostgresOwners`, over the store's pool. Elsewhere: the pool, its breaker and its thread (postgres.py), the protocol (owners.py), the text
(postgres_owner_statements.py).
Idea: a claim is one transaction; its ids go in their order, so that two claims of the same ids wait for each other and never in a circle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from hookline.stores import postgres_owner_statements as sql
from hookline.stores.owners import Owner, askable

T = TypeVar("T")


class Ask(Protocol):
    """Runs a job with a connection, in the thread of the pool."""

    def __call__(self, job: Callable[[Any], Awaitable[T]], /) -> Awaitable[T]: ...


class PostgresOwners:
    """An `OwnerStore`. `check` raises `Unavailable` while the database is known to be away."""

    def __init__(self, ask: Ask, check: Callable[[], None]) -> None:
        self._ask = ask
        self._check = check

    async def claim(self, owners: Sequence[Owner]) -> Mapping[str, Owner]:
        if not owners:
            return {}

        async def job(connection: Any) -> Mapping[str, Owner]:
            async with connection.transaction():
                await connection.executemany(sql.CLAIM, sorted(owners))
            return await _find(connection, [owner.object_id for owner in owners])

        return await self._ask(job)

    async def find(self, ids: Sequence[str]) -> Mapping[str, Owner]:
        wanted = askable(ids)
        if not wanted:
            self._check()
            return {}
        return await self._ask(lambda connection: _find(connection, wanted))

    async def forget(self, tenant: str, ids: Sequence[str]) -> None:
        await self._ask(lambda connection: connection.execute(sql.FORGET, tenant, list(ids)))

    async def tenants(self) -> Sequence[str]:
        async def job(connection: Any) -> Sequence[str]:
            ends = [await connection.fetchrow(asked) for asked in (sql.KEY_ENDS, sql.OWNER_ENDS)]
            return sorted({name for pair in ends for name in pair if name is not None})

        return await self._ask(job)


async def _find(connection: Any, ids: Sequence[str]) -> Mapping[str, Owner]:
    return {row[0]: Owner(*row) for row in await connection.fetch(sql.FIND_OWNERS, ids)}

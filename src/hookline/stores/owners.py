"""The owner store's protocol: which tenant an object at a provider belongs to.

Lives here: what is kept of an object, what a store of owners must do. Elsewhere: implementations (sqlite_owners.py, postgres_owners.py), the suite that both
pass (testing/owner_contract.py), which ids are asked for and claimed (builtins/owners/).
Idea: the first claim of an id wins and is durable when `claim` answers, so that an id is never in a client's hands before it is known whose it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class Owner(NamedTuple):
    """Whose an object is, and where it lives."""

    object_id: str
    tenant: str
    provider: str
    created_at: float
    """Unix seconds."""
    kind: str = ""
    """The collection that it was seen in ("files", "threads/runs")."""
    deployment: str = ""
    """The deployment that made it, where that has an account (a key) of its own; "": the provider's."""


class OwnerStore(Protocol):
    """Owners of objects, shared by every process. Every method raises `Unavailable` when the store can't answer."""

    async def claim(self, owners: Sequence[Owner]) -> Mapping[str, Owner]:
        """Keep those whose ids nobody has, in one transaction, and answer the owner of every id. Durable (survives `kill -9`) when it answers."""

    async def find(self, ids: Sequence[str]) -> Mapping[str, Owner]:
        """The owners of these ids; unknown ones are missing. Without ids nothing is asked, but `Unavailable` is raised where that is known."""

    async def forget(self, tenant: str, ids: Sequence[str]) -> None:
        """Remove these ids of this tenant."""

    async def tenants(self) -> Sequence[str]:
        """Tenants that have or had virtual keys, or own an object: all of them if there are fewer than two, else at least two."""


def askable(ids: Sequence[str]) -> list[str]:
    """Those that a database can hold; all others are nobody's (SQLite's json_each ends a text at a NUL, PostgreSQL refuses it)."""
    return [id for id in ids if id.isprintable()]

"""The key store's protocol: virtual keys, kept by their hashes.

Lives here: what is kept of a key, what a store of keys must do, rows to records and back. Elsewhere: implementations (sqlite_keys.py, postgres_keys.py), the
suite that both pass (testing/key_contract.py), what the fields mean and who is let in (builtins/auth/).
Idea: every write takes the next number of one counter, in the order of commits, so that a process that knows all changes up to N asks for those after N
and misses none. Keys are never deleted: a revoked one says who had it, and that there ever was one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson


class StoredKey(NamedTuple):
    """One virtual key. Moments are Unix seconds; `hash` and `old_hash` are SHA-256 of the secrets, in hex."""

    id: str
    name: str
    hash: str
    prefix: str
    """The first characters of the secret, by which a person knows it."""
    created_at: float
    tenant: str = "default"
    user: str | None = None
    models: tuple[str, ...] = ("*",)
    limits: Mapping[str, Any] = {}
    """Those that are set, as `Limits.from_table` takes them."""
    budget: Mapping[str, Any] | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = {}
    expires_at: float | None = None
    revoked_at: float | None = None
    rotated_at: float | None = None
    disabled_at: float | None = None
    old_hash: str | None = None
    """The secret before the last rotation; valid until `old_until`."""
    old_until: float | None = None
    changed: int = 0
    """The number of the last change to it; given by the store."""


COLUMNS = (
    "id", "name", "hash", "prefix", "tenant", "user", "models", "limits", "budget", "tags", "metadata", "created_at",
    "expires_at", "revoked_at", "rotated_at", "disabled_at", "old_hash", "old_until", "changed",
)  # fmt: skip
"""In the order of the table."""
JSON_COLUMNS = frozenset({"models", "limits", "budget", "tags", "metadata"})


class KeyChanges(NamedTuple):
    """`latest` is the last change of all, 0 if there never was a key; `keys` are what has changed, oldest change first."""

    latest: int
    keys: Sequence[StoredKey]


class KeyStore(Protocol):
    """Virtual keys, shared by every process. Every method raises `Unavailable` when the store can't answer."""

    async def add(self, key: StoredKey) -> StoredKey:
        """Keep a new key; answers it with its `changed`."""

    async def change(self, id: str, edit: Callable[[StoredKey], StoredKey]) -> StoredKey | None:
        """Replace a key by what `edit` makes of it, in one transaction; None if there is none of this id.

        `edit` may run in another thread. What it raises, leaves the key as it was; so does answering the key it was given."""

    async def find(self, hash: str) -> StoredKey | None:
        """The key that has this hash, or had it before its last rotation."""

    async def get(self, id: str) -> StoredKey | None:
        """The key of this id; None if there is none."""

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
        """Keys by id, from the one after `after` on."""

    async def changes(self, after: int, *, limit: int) -> KeyChanges:
        """At most `limit` keys that were changed after change number `after`."""


def to_row(key: StoredKey) -> list[Any]:
    """In the order of COLUMNS; JSON as text."""
    values = key._asdict()
    for name in JSON_COLUMNS:
        if values[name] is not None:
            values[name] = orjson.dumps(values[name]).decode()
    return [values[name] for name in COLUMNS]


def to_key(row: Sequence[Any]) -> StoredKey:
    """What `to_row` made."""
    values = {
        name: orjson.loads(value) if name in JSON_COLUMNS and value is not None else value
        for name, value in zip(COLUMNS, row, strict=True)
    }
    values["models"], values["tags"] = tuple(values["models"] or ()), tuple(values["tags"] or ())
    values["limits"], values["metadata"] = values["limits"] or {}, values["metadata"] or {}
    return StoredKey(**values)

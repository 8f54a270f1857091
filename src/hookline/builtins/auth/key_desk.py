"""What is done with virtual keys: made, rotated, revoked, updated.

Lives here: the rules of each, over any `KeyStore`. Elsewhere: who may ask and how (admin_keys.py, commands.py), what the fields are (key_fields.py), who is let in
with a key (recorded_keys.py).
Idea: the admin API and the command line are two doors of this one desk. A secret is made here, given out once, and kept as its hash."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any

from hookline import ApiError, Clock, Conflict, KeyStore, NotFound, StoredKey
from hookline.builtins.auth.key_fields import KeyFields, NewKey, apply, status_of
from hookline.builtins.auth.recorded_keys import SECRET_PREFIX, hash_secret

SHOWN_CHARS = len(SECRET_PREFIX) + 6


class KeyDesk:
    """Every method raises `Unavailable` when records can't answer, `NotFound` for a key that nobody made."""

    def __init__(self, find_store: Callable[[], KeyStore], clock: Clock, configured: Collection[str] = ()) -> None:
        self._find_store = find_store
        self._clock = clock
        self._configured = configured
        """Names of keys in proxy.toml."""

    def now(self) -> float:
        """Unix seconds."""
        return self._clock.time()

    async def create(self, fields: NewKey) -> tuple[StoredKey, str]:
        """A new key and its secret."""
        now = self._clock.time()
        secret = new_secret()
        blank = StoredKey(new_id(now), fields.name, hash_secret(secret), secret[:SHOWN_CHARS], now)
        return await self._find_store().add(apply(fields, blank, now)), secret

    async def update(self, id: str, fields: KeyFields) -> StoredKey:
        """Raises Conflict for a revoked key."""
        now = self._clock.time()

        def edit(key: StoredKey) -> StoredKey:
            if key.revoked_at is not None:
                raise Conflict(f"key {id} is revoked, and stays so; make a new one", code="key_revoked")
            return apply(fields, key, now)

        return self._existing(id, await self._find_store().change(id, edit))

    async def rotate(self, id: str, overlap_s: float) -> tuple[StoredKey, str]:
        """A new secret; the one before is good for `overlap_s` more. Raises Conflict for a key that is revoked or has expired."""
        now = self._clock.time()
        secret = new_secret()

        def edit(key: StoredKey) -> StoredKey:
            status = status_of(key, now)
            if status in ("revoked", "expired"):
                raise Conflict(f"key {id} {_IS[status]}, so it can't be rotated", code=f"key_{status}")
            return key._replace(
                hash=hash_secret(secret),
                prefix=secret[:SHOWN_CHARS],
                rotated_at=now,
                old_hash=key.hash,  # kept where it ends at once, too: whoever shows it is told why
                old_until=now + overlap_s,
            )

        return self._existing(id, await self._find_store().change(id, edit)), secret

    async def revoke(self, id: str) -> StoredKey:
        """For ever. A key that is revoked stays as it is."""
        now = self._clock.time()

        def edit(key: StoredKey) -> StoredKey:
            return key if key.revoked_at is not None else key._replace(revoked_at=now)

        return self._existing(id, await self._find_store().change(id, edit))

    async def page(self, **about: Any) -> Sequence[StoredKey]:
        """See `KeyStore.page`."""
        return await self._find_store().page(**about)

    async def get(self, id: str) -> StoredKey:
        return self._existing(id, await self._find_store().get(id))

    async def get_named(self, name: str) -> StoredKey:
        """By id, or by a name that one key has; among several, the one that is not revoked. Raises Conflict where that leaves a choice."""
        store = self._find_store()
        if (key := await store.get(name)) is not None:
            return key
        found = await store.page(limit=20, name=name, is_revoked=False) or await store.page(limit=20, name=name)
        if len(found) > 1:
            raise Conflict(f'several keys are named "{name}": say which, {", ".join(key.id for key in found)}')
        return self._existing(name, found[0] if found else None)

    async def warnings(self, key: StoredKey) -> list[str]:
        """What whoever named a key should know: who has the same name. (Two may share one while an old key is replaced, so it is not refused.)"""
        told = []
        if key.name in self._configured:
            told.append(
                f'a key of proxy.toml is named "{key.name}", too; where this name is asked for, that one is meant'
            )
        try:
            named = await self._find_store().page(limit=20, name=key.name, is_revoked=False)
        except ApiError:
            return told  # the key is made: its secret must not be lost for a remark
        if others := [other.id for other in named if other.id != key.id]:
            told.append(f'{", ".join(others)}: named "{key.name}", too; say the id where one of them is meant')
        return told

    def _existing(self, id: str, key: StoredKey | None) -> StoredKey:
        if key is None and id.startswith(SECRET_PREFIX):  # it would stand in a terminal's or a proxy's log
            raise NotFound("a key is named by its id (key_...) or its name, never by its secret")
        if key is None:
            raise NotFound(f'there is no key "{id[:100]}" in records; keys of proxy.toml are not kept there')
        return key


_IS = {"revoked": "is revoked", "expired": "has expired"}


def new_secret() -> str:
    """256 random bits behind our prefix."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def new_id(now: float) -> str:
    """Ids of keys made later sort later."""
    return f"key_{int(now * 1000):012x}{secrets.token_hex(6)}"

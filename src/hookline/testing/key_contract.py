"""What every key store must do, as a pytest class: inherit it, and say in a fixture how your store is opened.

Lives here: `KeyStoreContract`, `stored_key`. Elsewhere: the protocol in words (stores/keys.py), ledger and spend (record_contract.py).
Idea: each test names its keys by itself, so that one server can carry a whole run.

    class TestMyKeys(KeyStoreContract):
        @pytest.fixture
        async def open_records(self): ..."""

from __future__ import annotations

import asyncio
import secrets
from hashlib import sha256
from itertools import count

import pytest

from hookline.errors import Conflict
from hookline.stores.keys import StoredKey
from hookline.testing.record_contract import MakeRecords

_numbers = count(1)


class KeyStoreContract:
    """Fixture `open_records`: a function that opens the same database, each time as a new RecordStore; the fixture closes them."""

    async def test_what_is_added_is_found_by_other_processes(self, open_records: MakeRecords) -> None:
        key = stored_key(
            tenant="acme",
            user="ann",
            models=("gpt-*", "demo/*"),
            limits={"requests_per_minute": 60},
            budget={"daily_usd": 5.0, "rolling": [{"hours": 5.0, "usd": 1.0}]},
            tags=("a", "b"),
            metadata={"cost center": "42"},
            expires_at=2_000_000_000.5,
            old_hash=new_hash(),
            old_until=1_900_000_000.0,
        )
        kept = await open_records().keys.add(key)

        other = open_records().keys

        assert kept == key._replace(changed=kept.changed)
        assert kept.changed > 0
        assert await other.get(key.id) == kept
        assert await other.find(key.hash) == kept
        assert await other.find(key.old_hash or "") == kept

    async def test_what_nobody_has_is_none(self, open_records: MakeRecords) -> None:
        keys = open_records().keys

        assert await keys.get("key_unknown") is None
        assert await keys.find(new_hash()) is None
        assert await keys.change("key_unknown", lambda key: key) is None

    async def test_a_change_is_seen_by_other_processes_and_numbered(self, open_records: MakeRecords) -> None:
        first, other = open_records().keys, open_records().keys
        key = await first.add(stored_key())

        changed = await other.change(key.id, lambda key: key._replace(name="renamed", revoked_at=5.0))

        assert changed is not None
        assert changed == key._replace(name="renamed", revoked_at=5.0, changed=changed.changed)
        assert changed.changed > key.changed
        assert await first.get(key.id) == changed
        assert await first.changes(key.changed, limit=100) == (changed.changed, [changed])

    async def test_a_change_to_the_same_is_none(self, open_records: MakeRecords) -> None:
        keys = open_records().keys
        key = await keys.add(stored_key())

        assert await keys.change(key.id, lambda key: key) == key
        assert (await keys.changes(key.changed, limit=1)).keys == []

    async def test_an_edit_that_raises_changes_nothing_and_is_raised(self, open_records: MakeRecords) -> None:
        keys = open_records().keys
        key = await keys.add(stored_key())

        def refuse(key: StoredKey) -> StoredKey:
            raise Conflict("it is revoked")

        with pytest.raises(Conflict, match="it is revoked"):
            await keys.change(key.id, refuse)

        assert await keys.get(key.id) == key
        assert await keys.change(key.id, lambda key: key._replace(name="works again")) is not None

    async def test_changes_at_once_are_all_kept(self, open_records: MakeRecords) -> None:
        stores = [open_records().keys for _ in range(3)]
        key = await stores[0].add(stored_key())

        def add_tag(key: StoredKey) -> StoredKey:
            return key._replace(tags=(*key.tags, str(len(key.tags))))

        await asyncio.gather(*(stores[n % 3].change(key.id, add_tag) for n in range(12)))

        found = await stores[0].get(key.id)
        assert found is not None
        assert found.tags == tuple(str(n) for n in range(12))

    async def test_who_follows_the_changes_misses_none(self, open_records: MakeRecords) -> None:
        writers, reader = [open_records().keys for _ in range(3)], open_records().keys
        latest, seen = (await reader.changes(0, limit=0)).latest, set[str]()
        added = [stored_key() for _ in range(30)]
        writing = asyncio.gather(*(writers[n % 3].add(key) for n, key in enumerate(added)))

        is_over = False
        while not is_over:
            were_written = writing.done()
            changes = await reader.changes(latest, limit=7)
            seen |= {key.id for key in changes.keys}
            is_over = were_written and not changes.keys
            latest = changes.keys[-1].changed if changes.keys else latest
        await writing

        assert latest == changes.latest
        assert {key.id for key in added} <= seen

    async def test_pages_in_the_order_of_ids(self, open_records: MakeRecords) -> None:
        keys, tenant = open_records().keys, f"tenant-{secrets.token_hex(6)}"
        added = [await keys.add(stored_key(tenant=tenant)) for _ in range(5)]

        first = await keys.page(limit=2, tenant=tenant)
        rest = await keys.page(limit=10, tenant=tenant, after=first[-1].id)

        assert [*first, *rest] == sorted(added, key=lambda key: key.id)

    async def test_pages_of_what_is_asked_for(self, open_records: MakeRecords) -> None:
        keys, tenant = open_records().keys, f"tenant-{secrets.token_hex(6)}"
        ann = await keys.add(stored_key(tenant=tenant, user="ann", name="one"))
        revoked = await keys.add(stored_key(tenant=tenant, user="bob", name="two", revoked_at=1.0))

        assert await keys.page(limit=9, tenant=tenant, user="ann") == [ann]
        assert await keys.page(limit=9, tenant=tenant, name="two") == [revoked]
        assert await keys.page(limit=9, tenant=tenant, is_revoked=True) == [revoked]
        assert await keys.page(limit=9, tenant=tenant, is_revoked=False) == [ann]
        assert await keys.page(limit=9, tenant=tenant, user="carl") == []


def new_hash() -> str:
    """The hash of a secret that nobody has."""
    return sha256(secrets.token_bytes(32)).hexdigest()


def stored_key(**fields: object) -> StoredKey:
    """A key; what is not given is plausible."""
    number = f"{next(_numbers):06d}-{secrets.token_hex(6)}"
    plausible = StoredKey(f"key_{number}", f"name-{number}", new_hash(), "sk-hk-abcdef", 1_700_000_000.25)
    return plausible._replace(**fields)  # type: ignore[arg-type]

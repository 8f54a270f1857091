"""Virtual keys in SQLite and PostgreSQL: one suite, and the text of what is asked."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

from hookline.errors import Unavailable
from hookline.stores import postgres_key_statements, sqlite_key_statements
from hookline.stores.key_statements import key_statements
from hookline.stores.postgres import PostgresRecords
from hookline.stores.sqlite import SqliteRecords, may_hold_keys
from hookline.stores.statements import POSTGRES, SQLITE
from hookline.testing.key_contract import KeyStoreContract, stored_key
from hookline.testing.record_contract import entry


class TestSqliteKeys(KeyStoreContract):
    @pytest.fixture
    async def open_records(self, tmp_path):
        opened = []

        def open_again():
            opened.append(SqliteRecords(tmp_path / "records.db"))
            return opened[-1]

        yield open_again
        for records in opened:
            await records.aclose()


class TestPostgresKeys(KeyStoreContract):
    @pytest.fixture
    async def open_records(self, shared_url, tmp_path):
        opened = []

        def open_again():
            opened.append(PostgresRecords(f"{shared_url}?spool={tmp_path / 'spool'}"))
            return opened[-1]

        yield open_again
        for records in opened:
            await records.aclose()


@pytest.mark.parametrize(("dialect", "text"), [(SQLITE, sqlite_key_statements), (POSTGRES, postgres_key_statements)])
def test_the_statements_are_what_sqlalchemy_makes_of_the_tables(dialect, text):
    for name, made in key_statements(dialect).items():
        if hasattr(text, name) or name != "LOCK_KEYS":
            assert getattr(text, name).split() == made.split(), name


async def test_a_file_tells_whether_it_ever_held_a_key(tmp_path):
    path = tmp_path / "records.db"
    assert not may_hold_keys(str(path))
    assert not path.exists()
    records = SqliteRecords(path)
    assert not may_hold_keys(str(path))

    await records.keys.add(stored_key(revoked_at=1.0))

    assert may_hold_keys(str(path))
    await records.aclose()
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.execute("CREATE TABLE ledger (id)")
    assert not may_hold_keys(str(tmp_path / "old.db"))


async def test_keys_and_ledger_rows_do_not_wait_for_each_other_in_postgresql(postgres_url, tmp_path):
    records = PostgresRecords(f"{postgres_url}?spool={tmp_path}")
    async with asyncio.timeout(20):
        for n in range(50):
            records.book(entry(scopes=(f"key:{n}",), cost_nanousd=1))
            await records.keys.add(stored_key())
        await records.flush()

    assert len(await records.keys.page(limit=100)) == 50
    await records.aclose()


async def test_without_the_server_keys_are_unavailable_at_once_and_come_back(postgres, postgres_url, tmp_path):
    records = PostgresRecords(f"{postgres_url}?spool={tmp_path}")
    key = await records.keys.add(stored_key())
    postgres.stop()
    try:
        with pytest.raises(Unavailable) as caught:
            await records.keys.get(key.id)
        assert caught.value.retry_after_s is not None
    finally:
        postgres.start()

    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(Unavailable):
                assert await records.keys.get(key.id) == key
                break
            await asyncio.sleep(0.05)
    await records.aclose()


async def test_a_text_that_no_database_takes_does_not_open_the_breaker(postgres_url, tmp_path):
    records = PostgresRecords(f"{postgres_url}?spool={tmp_path}")

    with pytest.raises(Exception, match="invalid byte sequence"):
        await records.keys.page(limit=1, after="\0")

    assert await records.keys.page(limit=1) == []
    await records.aclose()

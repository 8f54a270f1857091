"""Owners in SQLite and PostgreSQL: the contract, `kill -9`, an outage."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from hookline.errors import Unavailable
from hookline.stores import postgres_owner_statements, sqlite_owner_statements
from hookline.stores.owner_statements import owner_statements
from hookline.stores.postgres import PostgresRecords
from hookline.stores.sqlite import SqliteRecords
from hookline.stores.statements import POSTGRES, SQLITE
from hookline.testing.owner_contract import OwnerStoreContract, owner


@pytest.fixture
async def opened():
    """Records that are closed at the end."""
    stores = []
    yield stores
    for store in stores:
        await store.aclose()


class TestSqliteOwners(OwnerStoreContract):
    @pytest.fixture
    async def open_records(self, tmp_path, opened):
        def open_again() -> SqliteRecords:
            opened.append(SqliteRecords(tmp_path / "records.db"))
            return opened[-1]

        return open_again


class TestPostgresOwners(OwnerStoreContract):
    @pytest.fixture
    async def open_records(self, shared_url, tmp_path, opened):
        def open_again() -> PostgresRecords:
            opened.append(PostgresRecords(f"{shared_url}?spool={tmp_path / str(len(opened))}"))
            return opened[-1]

        return open_again


@pytest.mark.parametrize(
    ("dialect", "committed"), [(SQLITE, sqlite_owner_statements), (POSTGRES, postgres_owner_statements)]
)
def test_the_statements_are_what_sqlalchemy_makes_of_the_tables(dialect, committed):
    for name, text in owner_statements(dialect).items():
        assert getattr(committed, name).split() == text.split(), name


KILLED = """
import asyncio, os, signal, sys
from hookline.stores.sqlite import SqliteRecords
from hookline.testing.owner_contract import owner

async def main():
    await SqliteRecords(sys.argv[1]).owners.claim([owner("file-1")])
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture
def killed_at(tmp_path):
    """Where a process has claimed an id and was killed at once."""
    path = tmp_path / "records.db"
    done = subprocess.run([sys.executable, "-c", KILLED, os.fspath(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    return path


async def test_a_claim_survives_kill_9(killed_at, opened):
    opened.append(SqliteRecords(killed_at))

    assert "file-1" in await opened[0].owners.find(["file-1"])


async def test_a_file_that_can_not_be_written_is_unavailable(tmp_path, opened, monkeypatch):
    monkeypatch.setattr("hookline.stores.sqlite.BUSY_TIMEOUT_S", 0.01)
    opened.append(SqliteRecords(tmp_path / "records.db"))
    other = sqlite3.connect(tmp_path / "records.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(Unavailable):
        await opened[0].owners.claim([owner("file-1")])
    other.execute("ROLLBACK")
    other.close()

    assert await opened[0].owners.claim([owner("file-1")]) == {"file-1": owner("file-1")}


async def test_a_database_that_is_away_is_unavailable_and_comes_back(postgres, postgres_url, tmp_path, opened):
    records = PostgresRecords(f"{postgres_url}?spool={tmp_path}")
    opened.append(records)
    await records.owners.claim([owner("file-1")])
    postgres.stop()
    try:
        for asked in (
            records.owners.find(["file-1"]),
            records.owners.claim([owner("file-2")]),
            records.owners.find([]),
        ):
            with pytest.raises(Unavailable) as told:
                await asked
            assert told.value.retry_after_s
    finally:
        postgres.start()
    await _back(records)

    assert set(await records.owners.find(["file-1", "file-2"])) == {"file-1"}


async def _back(records: PostgresRecords) -> None:
    while True:
        try:
            await records.flush()
            await records.owners.find([])
            return
        except Unavailable:
            pass

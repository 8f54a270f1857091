"""Records in SQLite: the contract, durability, and what happens when the disk says no."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys

import pytest

from hookline.errors import StartupError, Unavailable
from hookline.stores import sqlite_statements
from hookline.stores.migration import STEPS, migrate
from hookline.stores.schema import REVISION, SCHEMA_VERSION
from hookline.stores.spend_query import days_question, rows_question, spend_question
from hookline.stores.sqlite import SqliteRecords
from hookline.stores.statements import sqlite_statements as compiled_statements
from hookline.testing.record_contract import REPORTS, ROWS, RecordStoreContract, entry


@pytest.fixture
async def open_records(tmp_path):
    opened = []

    def open_again(**options) -> SqliteRecords:
        opened.append(SqliteRecords(tmp_path / "records.db", **options))
        return opened[-1]

    yield open_again
    for records in opened:
        await records.aclose()


class TestSqliteRecords(RecordStoreContract):
    @pytest.fixture
    def open_records(self, open_records):
        return open_records


def test_the_statements_are_what_sqlalchemy_makes_of_the_tables():
    for name, text in compiled_statements().items():
        assert getattr(sqlite_statements, name).split() == text.split(), name


def test_serving_does_not_import_sqlalchemy():
    code = "import sys, hookline.stores.sqlite; print('sqlalchemy' in sys.modules)"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "False"


OLD_SCHEMA = """
CREATE TABLE ledger (id VARCHAR NOT NULL PRIMARY KEY, call_id VARCHAR NOT NULL, at DOUBLE NOT NULL, tenant VARCHAR NOT NULL, key_id VARCHAR NOT NULL,
    user VARCHAR, model VARCHAR NOT NULL, deployment VARCHAR NOT NULL, endpoint VARCHAR NOT NULL, outcome VARCHAR NOT NULL, input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL, cost_nanousd BIGINT, is_estimated BOOLEAN NOT NULL);
CREATE TABLE spend (quarter INTEGER NOT NULL, scope VARCHAR NOT NULL, nanousd BIGINT NOT NULL, PRIMARY KEY (quarter, scope));
INSERT INTO ledger VALUES ('a', 'call', 1700000000.0, 'acme', 'ci', NULL, 'm', 'up/m', 'chat', 'ok', 1, 1, 0, 40, 0);
INSERT INTO ledger VALUES ('b', 'call', 1700000001.0, 'acme', 'ci', NULL, 'm', 'up/m', 'chat', 'ok', 1, 1, 0, NULL, 0);
INSERT INTO spend VALUES (1888888, 'key:ci', 40);
PRAGMA user_version = 1;
"""
"""A file as the first Hookline made it, before Alembic kept count."""


def schema_of(path):
    """What SQLite knows of a file: (table, columns with types, keys), and the indexes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        names = sorted(
            row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        )
        return {
            name: (
                connection.execute(f"PRAGMA table_info({name})").fetchall(),
                sorted(row[1:] for row in connection.execute(f"PRAGMA index_list({name})")),  # their order is history
                connection.execute(f"PRAGMA index_info({name})").fetchall(),
            )
            for name in names
        }


async def test_a_new_file_is_what_the_migrations_make(tmp_path, open_records):
    open_records()
    migrate(f"sqlite:///{tmp_path / 'migrated.db'}")

    created, migrated = schema_of(tmp_path / "records.db"), schema_of(tmp_path / "migrated.db")

    assert {k: v for k, v in created.items() if k != "ledger"} == {k: v for k, v in migrated.items() if k != "ledger"}
    assert created["ledger"][0] == migrated["ledger"][0]
    assert migrate(f"sqlite:///{tmp_path / 'records.db'}").endswith(f"is at schema {SCHEMA_VERSION} already")


def test_the_number_is_that_of_the_last_step():
    assert sorted(path.name[1:5] for path in STEPS.glob("r*.py"))[-1] == REVISION


async def test_an_older_file_is_migrated_when_it_is_opened(tmp_path, open_records):
    with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as old:
        old.executescript(OLD_SCHEMA)

    records = open_records()

    records.book(entry(scopes=("key:ci",), cost_nanousd=2)._replace(price_version="p1"))
    assert [await records.spent_in(scope) for scope in ("key:ci", "model:m")] == [42, 42]
    open_records()
    with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as file:
        assert file.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISION,)]
        assert file.execute("SELECT price_version FROM ledger ORDER BY price_version").fetchall()[-1] == ("p1",)


async def test_an_older_file_has_the_spend_of_users_tenant_by_tenant_afterwards(tmp_path, open_records):
    with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as old:
        old.executescript(OLD_SCHEMA)
        old.execute("INSERT INTO spend VALUES (1888888, 'user:ann', 12)")
        for id, tenant, cost in (("c", "acme", 3), ("d", "acme", 4), ("e", "be/ta", 5)):
            row = (id, "call", 1700000000.0, tenant, "k", "ann", "m", "up/m", "chat", "ok", 1, 1, 0, cost, 0)
            old.execute(f"INSERT INTO ledger VALUES ({', '.join('?' * len(row))})", row)
        old.commit()

    records = open_records()

    scopes = ("key:ci", "user:acme/ann", "user:be%2Fta/ann", "user:ann")
    assert [await records.spent_in(scope) for scope in scopes] == [40, 7, 5, 0]


async def test_an_older_file_that_many_open_at_once_is_migrated_once(tmp_path, open_records):
    with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as old:
        old.executescript(OLD_SCHEMA)
    url = f"sqlite:///{tmp_path / 'records.db'}"

    said = await asyncio.gather(
        *(
            asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "hookline.stores.migration", url],
                capture_output=True,
                text=True,
                check=True,
            )
            for _ in range(3)
        )
    )

    assert sorted("already" in done.stdout for done in said) == [False, True, True]
    records = open_records()
    assert [await records.spent_in(scope) for scope in ("key:ci", "model:m")] == [40, 40]


async def test_spend_of_a_scope_is_read_by_its_index(tmp_path, open_records):
    open_records()
    with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as file:
        plan = file.execute("EXPLAIN QUERY PLAN " + sqlite_statements.SUM_SCOPE, ("key:ci", 0, 1)).fetchall()

    assert "USING INDEX spend_scope (scope=? AND quarter>? AND quarter<?)" in plan[0][3]


async def test_reports_are_read_by_indexes(tmp_path, open_records):
    open_records()
    questions = [spend_question(query, "?") for query in REPORTS]
    questions += [ask(query, "?") for query in ROWS for ask in (days_question, rows_question)]
    with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as file:
        for asked in questions:
            plan = [row[3] for row in file.execute("EXPLAIN QUERY PLAN " + asked.text, asked.arguments)]
            whole = [step for step in plan if step.startswith("SCAN") and step.split()[1] in ("l", "ledger", "f", "g")]
            assert not whole, (asked.text, plan)
            assert not any("TEMP B-TREE FOR ORDER BY" in step for step in plan if "FROM ledger" in asked.text), plan


async def test_what_is_committed_survives_kill_9(tmp_path, open_records):
    code = f"""
import asyncio, os, signal
from hookline.stores.sqlite import SqliteRecords
from hookline.testing.record_contract import entry
async def main():
    records = SqliteRecords({str(tmp_path / "records.db")!r})
    for _ in range(100):
        records.book(entry(scopes=("key:ci",), cost_nanousd=3))
    await records.flush()
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL

    assert await open_records().spent_in("key:ci") == 300


async def test_rows_are_committed_without_being_asked(tmp_path, open_records):
    records = open_records()
    reader = sqlite3.connect(tmp_path / "records.db")
    records.book(entry(id="a", scopes=("key:ci",), cost_nanousd=3))

    while not (rows := reader.execute("SELECT id, is_estimated, cost_nanousd FROM ledger").fetchall()):
        pass

    assert rows == [("a", 0, 3)]
    reader.close()


@pytest.fixture
def lock(tmp_path):
    """Takes the database's write lock, as another process would; gives it back when called again."""
    other = sqlite3.connect(tmp_path / "records.db", isolation_level=None)
    yield lambda: other.execute("ROLLBACK" if other.in_transaction else "BEGIN IMMEDIATE")
    other.close()


async def test_a_locked_database_keeps_the_rows_says_so_and_answers_no_old_sums(open_records, lock, monkeypatch):
    monkeypatch.setattr("hookline.stores.sqlite.BUSY_TIMEOUT_S", 0.01)
    records = open_records()
    records.book(entry(scopes=("key:ci",), cost_nanousd=1))
    await records.flush()
    lock()
    records.book(entry(scopes=("key:ci",), cost_nanousd=3))

    for ask in (records.flush, lambda: records.spent_in("key:ci")):
        with pytest.raises(Unavailable, match="database is locked") as raised:
            await ask()
        assert raised.value.status == 503
        assert raised.value.retry_after_s
    assert "can't be written: database is locked; 0 KiB of ledger rows wait" in (records.readiness or "")
    lock()
    while records.readiness is not None:  # noqa: ASYNC110 - the store has no event to wait for
        await asyncio.sleep(0)

    assert await records.spent_in("key:ci") == 4


async def test_a_question_behind_a_long_transaction_is_answered_by_503(open_records, lock, monkeypatch):
    monkeypatch.setattr("hookline.stores.sqlite.QUESTION_TIMEOUT_S", 0.01)
    records = open_records()
    lock()
    records.book(entry(scopes=("key:ci",), cost_nanousd=3))

    with pytest.raises(Unavailable, match="gave no answer in time"):
        await records.spent_in("key:ci")

    lock()


async def test_intents_are_refused_before_rows_are_lost(open_records, lock, monkeypatch):
    monkeypatch.setattr("hookline.stores.sqlite.BUSY_TIMEOUT_S", 0.01)
    records = open_records(max_journal_bytes=10_000)
    lock()

    with pytest.raises(Unavailable, match="of ledger rows wait in") as raised:
        for number in range(100):
            records.intend(entry(id=str(number), scopes=("key:ci",), cost_nanousd=1))
            records.book(entry(id=str(number), scopes=("key:ci",), cost_nanousd=1))
    assert raised.value.retry_after_s
    assert records.lost_rows == 0
    assert records.readiness is not None
    for _ in range(20):
        records.book(entry(scopes=("key:ci",), cost_nanousd=1))
    assert records.lost_rows > 0
    lock()
    while records.readiness is not None:  # noqa: ASYNC110 - the store has no event to wait for
        await asyncio.sleep(0)

    assert await records.spent_in("key:ci") == number + 20 - records.lost_rows


async def test_a_row_that_no_database_takes_does_not_hold_back_the_others(open_records):
    records = open_records()
    records.book(entry(scopes=("key:ci",), cost_nanousd=1))
    records.book(entry(scopes=("key:ci",), cost_nanousd=2**70))
    records.book(entry(scopes=("key:ci",), cost_nanousd=10)._replace(model="\ud800"))
    records.book(entry(scopes=("key:ci",), cost_nanousd=100))

    await records.flush()

    assert await records.spent_in("key:ci") == 101
    assert records.lost_rows == 2


async def test_questions_after_closing_are_refused(open_records):
    records = open_records()
    await records.aclose()

    with pytest.raises(Unavailable, match="is closed"):
        await records.flush()


async def test_the_file_is_its_owners_alone(tmp_path, open_records):
    open_records()

    assert stat.S_IMODE(os.stat(tmp_path / "records.db").st_mode) == 0o600


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda path: path.write_bytes(b"not a database" * 100), "file is not a database"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 99"), "written by a newer Hookline"),
    ],
    ids=["garbage", "directory", "newer"],
)
def test_a_file_that_cannot_be_used_is_refused_at_start(tmp_path, prepare, problem):
    prepare(tmp_path / "records.db")

    with pytest.raises(StartupError, match=problem):
        SqliteRecords(tmp_path / "records.db")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StartupError, match="No such file or directory"):
        SqliteRecords(tmp_path / "nowhere" / "records.db")

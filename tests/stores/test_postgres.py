"""Records in PostgreSQL: the contract, outages, kill -9, several processes. The server is real, and is stopped and started again."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE

import asyncpg
import pytest
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import create_async_engine

from hookline.errors import StartupError, Unavailable
from hookline.stores import postgres_server, postgres_statements
from hookline.stores.migration import migrate
from hookline.stores.postgres import PostgresRecords
from hookline.stores.reports import SpendQuery
from hookline.stores.schema import SCHEMA_VERSION, NotMigrated
from hookline.stores.spend_query import days_question, rows_question, spend_question
from hookline.stores.statements import postgres_statements as compiled_statements
from hookline.stores.tables import METADATA
from hookline.testing.process import ProxyProcess
from hookline.testing.record_contract import REPORTS, ROWS, RecordStoreContract, entry

CONFIG = """
[state]
records = "{url}"
[chain]
plugins = ["budget"]
[providers.demo]
kind = "demo"
default = true
[prices."demo/echo"]
call = 0.001
"""
CALL_NANOUSD = 1_000_000


@pytest.fixture
async def open_at(tmp_path):
    """Opens a URL, with a spool of this test; all are closed at its end."""
    opened = []

    def open_again(url: str, **options) -> PostgresRecords:
        opened.append(PostgresRecords(f"{url}?spool={tmp_path / 'spool'}", **options))
        return opened[-1]

    yield open_again
    for records in opened:
        await records.aclose()


class TestPostgresRecords(RecordStoreContract):
    @pytest.fixture
    def open_records(self, open_at, shared_url):
        return lambda: open_at(shared_url)


def test_the_statements_are_what_sqlalchemy_makes_of_the_tables():
    for name, text in compiled_statements().items():
        assert getattr(postgres_statements, name).split() == text.split(), name


def test_serving_from_it_imports_neither_sqlalchemy_nor_alembic():
    code = "import sys, asyncpg, hookline.stores.postgres; print({'sqlalchemy', 'alembic'} & set(sys.modules))"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "set()"


def test_the_migrations_make_what_the_tables_say(postgres_url):
    def describe(connection):
        seen = inspect(connection)
        return {
            table: (
                [(c["name"], str(c["type"]), c["nullable"]) for c in seen.get_columns(table)],
                sorted((i["name"], tuple(i["column_names"]), i["unique"]) for i in seen.get_indexes(table)),
            )
            for table in seen.get_table_names()
            if table != "alembic_version"
        }

    async def compare():
        engine = create_async_engine(postgres_url.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.begin() as connection:
            migrated = await connection.run_sync(describe)
            await connection.run_sync(METADATA.drop_all)
            await connection.run_sync(METADATA.create_all)
            made = await connection.run_sync(describe)
        await engine.dispose()
        for table, (columns, indexes) in made.items():
            assert sorted(migrated[table][0]) == sorted(columns)
            assert migrated[table][1] == indexes
        assert set(migrated) == set(made)

    asyncio.run(compare())


def test_several_may_migrate_at_once(postgres):
    url = postgres.make_database(is_migrated=False)
    command = [sys.executable, "-m", "hookline.stores.migration", url]

    migrating = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0] for process in migrating]

    assert sorted("already" in line for line in said) == [False, True, True]
    assert f"migrated from schema 0 to {SCHEMA_VERSION}" in "".join(said)


async def test_a_newer_schema_is_refused(postgres_url, open_at):
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("UPDATE alembic_version SET version_num = '0099'")
    await connection.close()

    with pytest.raises(StartupError, match="written by a newer Hookline"):
        open_at(postgres_url)
    with pytest.raises(StartupError, match="written by a newer Hookline"):
        await asyncio.to_thread(migrate, postgres_url)


def test_a_database_without_tables_is_not_migrated_by_serving(postgres, tmp_path):
    url = postgres.make_database(is_migrated=False)

    with pytest.raises(NotMigrated, match="has no tables yet"):
        PostgresRecords(f"{url}?spool={tmp_path / 'spool'}")


def test_a_database_that_is_not_there_is_refused_at_start(postgres, tmp_path):
    with pytest.raises(StartupError, match='database "nowhere" does not exist'):
        PostgresRecords(f"{postgres.dsn.rpartition('/')[0]}/nowhere?spool={tmp_path / 'spool'}")


async def test_a_row_that_no_database_takes_does_not_hold_back_the_others(postgres_url, open_at):
    records = open_at(postgres_url)
    for bad in ({"cost_nanousd": 2**70}, {"cost_nanousd": 2**63}, {"model": "\ud800"}, {"model": "a\0b"}):
        records.book(entry(scopes=("key:ci",), cost_nanousd=1))
        records.book(entry(scopes=("key:ci",), cost_nanousd=1000)._replace(**bad))

    await records.flush()

    assert await records.spent_in("key:ci") == 4
    assert records.lost_rows == 4


async def test_an_outage_loses_nothing_and_questions_are_refused_meanwhile(running, open_at):
    url = await asyncio.to_thread(running.make_database)
    records = open_at(url)
    records.book(entry(scopes=("key:ci",), cost_nanousd=1))
    await records.flush()

    await asyncio.to_thread(running.stop)
    for _ in range(2_000):
        records.book(entry(scopes=("key:ci",), cost_nanousd=1))
    with pytest.raises(Unavailable, match="can't be used"):
        await records.flush()
    with pytest.raises(Unavailable, match="can't be used"):
        await records.spent_in("key:ci")
    assert records.readiness is None, "the spool has room"
    await asyncio.to_thread(running.start)

    assert await eventually(records.spent_in("key:ci"), lambda: records.spent_in("key:ci")) == 2_001
    assert records.lost_rows == 0


async def test_what_was_booked_in_an_outage_survives_kill_9_and_is_there_once(running, open_at, tmp_path):
    url = await asyncio.to_thread(running.make_database)
    code = f"""
import os, signal, sys
from hookline.stores.postgres import PostgresRecords
from hookline.testing.record_contract import entry
records = PostgresRecords("{url}?spool={tmp_path / "spool"}")
print("open", flush=True)
sys.stdin.readline()
for number in range(500):
    records.book(entry(id=str(number), scopes=("key:ci",), cost_nanousd=1))
os.kill(os.getpid(), signal.SIGKILL)
"""
    dying = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=PIPE, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert await dying.stdout.readline() == b"open\n"
    await asyncio.to_thread(running.stop)

    await dying.communicate(b"go\n")
    assert dying.returncode == -signal.SIGKILL
    await asyncio.to_thread(running.start)

    assert await open_at(url).spent_in("key:ci") == 500
    assert await open_at(url).spent_in("key:ci") == 500


async def test_what_was_booked_the_moment_before_kill_9_is_not_lost(postgres_url, open_at, tmp_path):
    """No outage: rows that were booked and not yet committed."""
    code = f"""
import os, signal
from hookline.stores.postgres import PostgresRecords
from hookline.testing.record_contract import entry
records = PostgresRecords("{postgres_url}?spool={tmp_path / "spool"}")
for number in range(5_000):
    records.book(entry(id=str(number), scopes=("key:ci",), cost_nanousd=1))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL

    assert await open_at(postgres_url).spent_in("key:ci") == 5_000


async def test_a_database_that_does_not_answer_is_given_up_and_tried_again(postgres_url, open_at, monkeypatch):
    monkeypatch.setattr("hookline.stores.postgres.QUESTION_TIMEOUT_S", 0.05)
    records = open_at(postgres_url)
    other = await asyncpg.connect(postgres_url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("LOCK TABLE ledger IN EXCLUSIVE MODE")
    records.book(entry(scopes=("key:ci",), cost_nanousd=7))

    with pytest.raises(Unavailable, match="no answer in time"):
        await records.spent_in("key:ci")
    await transaction.rollback()
    await other.close()
    monkeypatch.setattr("hookline.stores.postgres.QUESTION_TIMEOUT_S", 5)

    assert await eventually(records.spent_in("key:ci"), lambda: records.spent_in("key:ci")) == 7


async def test_a_question_ends_in_its_time_where_its_rollback_gets_no_answer_either(running, tmp_path, monkeypatch):
    """The rollback, the reset and the cancel request of a question that was given up would each wait as long as a commit may take."""
    monkeypatch.setattr(postgres_server, "QUESTION_TIMEOUT_S", 0.2)
    monkeypatch.setattr(postgres_server, "COMMIT_TIMEOUT_S", 3600.0)
    url = await asyncio.to_thread(running.make_database)
    server = postgres_server.PostgresServer(url, tmp_path)
    await server.open()

    async def ask(connection) -> None:
        async with connection.transaction():
            running.freeze()
            await connection.fetchval("SELECT 1")

    try:
        async with asyncio.timeout(60):
            with pytest.raises(Unavailable):
                await server.connected(ask)
    finally:
        running.thaw()
        server.close()


async def test_a_ping_finds_out_that_it_is_frozen_and_that_it_is_back(running, open_at, monkeypatch):
    monkeypatch.setattr(postgres_server, "QUESTION_TIMEOUT_S", 0.2)
    monkeypatch.setattr("hookline.stores.postgres.PING_EVERY_S", 0.0)
    records = open_at(await asyncio.to_thread(running.make_database))
    await records.ping()

    running.freeze()
    try:
        with pytest.raises(Unavailable):
            await records.ping()
    finally:
        running.thaw()

    await eventually(records.ping(), records.ping)


async def test_closing_does_not_wait_for_a_database_that_does_not_answer(postgres_url, open_at, monkeypatch):
    monkeypatch.setattr("hookline.stores.postgres.CLOSE_COMMIT_S", 0.05)
    records = open_at(postgres_url)
    other = await asyncpg.connect(postgres_url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("LOCK TABLE ledger IN EXCLUSIVE MODE")
    records.book(entry(scopes=("key:ci",), cost_nanousd=7))

    await records.aclose()
    await transaction.rollback()
    await other.close()

    assert await open_at(postgres_url).spent_in("key:ci") == 7, "the next process found it in the spool"


async def test_starts_without_the_database_and_catches_up(running, open_at):
    url = await asyncio.to_thread(running.make_database)
    await asyncio.to_thread(running.stop)

    records = open_at(url)
    records.book(entry(scopes=("key:ci",), cost_nanousd=7))
    await asyncio.to_thread(running.start)

    assert await eventually(records.spent_in("key:ci"), lambda: records.spent_in("key:ci")) == 7


async def test_a_database_without_tables_that_comes_later_is_waited_for(running, open_at):
    url = await asyncio.to_thread(running.make_database, is_migrated=False)
    await asyncio.to_thread(running.stop)
    records = open_at(url)
    records.book(entry(scopes=("key:ci",), cost_nanousd=7))

    await asyncio.to_thread(running.start)
    while records.readiness is None:  # noqa: ASYNC110 - the store has no event to wait for
        await asyncio.sleep(0)
    assert "has no tables yet" in records.readiness
    await asyncio.to_thread(migrate, url)

    assert await eventually(records.spent_in("key:ci"), lambda: records.spent_in("key:ci")) == 7
    assert records.readiness is None


async def test_a_full_spool_says_so_before_it_is_full(running, open_at):
    url = await asyncio.to_thread(running.make_database)
    records = open_at(url, max_spool_bytes=10_000)
    await asyncio.to_thread(running.stop)

    while records.readiness is None:
        records.book(entry(scopes=("key:ci",), cost_nanousd=1))
    assert records.lost_rows == 0
    assert "of ledger rows wait in" in (records.readiness or "")
    while not records.lost_rows:
        records.book(entry(scopes=("key:ci",), cost_nanousd=1))


async def test_two_stores_that_book_one_id_count_it_once(postgres_url, open_at):
    first, second = open_at(postgres_url), open_at(postgres_url)
    for number in range(300):
        for records in (first, second):
            records.book(entry(id=str(number), scopes=("key:ci",), cost_nanousd=1))

    await asyncio.gather(first.flush(), second.flush())

    assert await first.spent_in("key:ci") == 300


async def test_spend_of_a_scope_is_read_by_its_index(postgres_url, open_at):
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        "INSERT INTO spend SELECT q, 'key:' || k, 1 FROM generate_series(1, 300) q, generate_series(1, 100) k"
    )
    await connection.execute("ANALYZE spend")
    plan = await connection.fetch("EXPLAIN " + postgres_statements.SUM_SCOPE, "key:1", 10, 20)
    await connection.close()

    assert any("spend_scope" in row[0] or "spend_pkey" in row[0] for row in plan), plan
    assert not any("Seq Scan" in row[0] for row in plan), plan


@pytest.mark.parametrize("query", [*REPORTS, *ROWS], ids=str)
async def test_reports_are_read_by_indexes(filled_url, query):
    asks = (spend_question,) if isinstance(query, SpendQuery) else (days_question, rows_question)
    connection = await asyncpg.connect(filled_url)
    try:
        for ask in asks:
            asked = ask(query, "$")
            plan = [row[0] for row in await connection.fetch("EXPLAIN " + asked.text, *asked.arguments)]
            assert not any("Seq Scan on ledger" in step or "Seq Scan on spend_hours" in step for step in plan), plan
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def filled_url(postgres):
    """60,000 rows in as many hours, in 500 groups."""
    url = postgres.make_database()

    async def fill():
        connection = await asyncpg.connect(url)
        await connection.execute(
            """
            INSERT INTO ledger SELECT 'r' || n, 'c', 1700000000 + n * 60, 'acme', 'k' || n % 500, 'ann', 'm', 'up/m', 'chat', 'ok',
                1, 1, 0, 1, false, NULL, NULL, n % 500 FROM generate_series(1, 60000) n;
            INSERT INTO spend_groups SELECT n, 0, 'acme', 'k' || n, 'ann', 'm', 'up/m', '["x"]' FROM generate_series(0, 499) n;
            INSERT INTO spend_groups SELECT 500 + n, 1, 'acme', 'k' || n, '', 'm', 'up/m', '' FROM generate_series(0, 499) n;
            INSERT INTO spend_tags SELECT 'x', n FROM generate_series(0, 499) n;
            INSERT INTO spend_hours SELECT k, h, 500 * k + n, 1, 1, 1, 0, 1, 0, 0
                FROM generate_series(0, 1) k, generate_series(472000, 473200) h, generate_series(0, 49) n;
            INSERT INTO spend_days SELECT k, d, 500 * k + n, 1, 1, 1, 0, 1, 0, 0
                FROM generate_series(0, 1) k, generate_series(19675, 19705) d, generate_series(0, 499) n;
            """
        )
        await connection.execute("ANALYZE")
        await connection.close()

    asyncio.run(fill())
    return url


def test_serve_names_the_command_that_migrates_and_ends(postgres, tmp_path):
    url = postgres.make_database(is_migrated=False)
    (tmp_path / "proxy.toml").write_text(CONFIG.format(url=url))
    hookline = [sys.executable, "-m", "hookline"]

    refused = subprocess.run([*hookline, "serve", "--port", "0"], cwd=tmp_path, capture_output=True, text=True)
    command = re.search(r"run: (hookline migrate.*)", refused.stderr)

    assert refused.returncode == 2
    assert command, refused.stderr
    migrated = subprocess.run(
        [*hookline, *command[1].split()[1:]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert f"migrated from schema 0 to {SCHEMA_VERSION}" in migrated.stdout
    with ProxyProcess(tmp_path, None, "--port", "0"):
        pass


async def test_two_processes_write_one_ledger_through_an_outage(running, tmp_path):
    import aiohttp

    url = await asyncio.to_thread(running.make_database)
    text = CONFIG.format(url=url)
    proxies = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        proxies.append(await asyncio.to_thread(ProxyProcess, tmp_path / name, text, "--port", "0"))

    async def call(session, proxy):
        body = {"model": "demo/echo", "messages": [{"role": "user", "content": "hi"}]}
        async with session.post(f"{proxy.base_url}/v1/chat/completions", json=body) as reply:
            assert reply.status == 200, await reply.text()

    try:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(call(session, proxy) for proxy in proxies for _ in range(20)))
            await asyncio.to_thread(running.stop)
            await asyncio.gather(*(call(session, proxy) for proxy in proxies for _ in range(20)))
            await asyncio.to_thread(proxies[0].kill)
            await asyncio.to_thread(running.start)
            proxies[0] = await asyncio.to_thread(ProxyProcess, tmp_path / "a", text, "--port", "0")
        for proxy in proxies:
            proxy.send(signal.SIGTERM)
            assert await asyncio.to_thread(proxy.wait) == 0
    finally:
        for proxy in proxies:
            proxy.kill()

    connection = await asyncpg.connect(url)
    rows, cost = await connection.fetchrow("SELECT count(*), sum(cost_nanousd) FROM ledger")
    spent = await connection.fetchval("SELECT sum(nanousd) FROM spend WHERE scope = 'global'")
    await connection.close()
    assert (rows, int(cost), int(spent)) == (80, 80 * CALL_NANOUSD, 80 * CALL_NANOUSD)
    assert await asyncio.to_thread(lambda: list(tmp_path.glob("*/hookline-spool/*.rows"))) == []


async def eventually(first, again):
    """The answer, once there is one: the breaker closes at the next try."""
    try:
        return await first
    except Unavailable as error:
        await asyncio.sleep(error.retry_after_s or 0.1)
    return await eventually(again(), again)

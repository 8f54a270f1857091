"""Real servers for the store tests, started once per test process and stopped with it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
from pathlib import Path

import asyncpg
import pytest

from hookline.stores.migration import migrate
from hookline.testing.upstream import ScriptedUpstream

ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count(1)


class PostgresServer:
    """A PostgreSQL of our own. `stop` is the failure of a machine; `start` brings back what was committed."""

    def __init__(self) -> None:
        answer = self._run("install_postgres && start_postgres && echo $SERVICES_DIR $POSTGRES_DSN", None)
        self._folder, self.dsn = answer.split()

    def stop(self) -> None:
        self._run("stop_postgres", self._folder)

    def start(self) -> None:
        self._run("start_postgres", self._folder)

    def freeze(self) -> None:
        """It answers nothing, and its connections stay."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = int((Path(self._folder) / "postgres/data/postmaster.pid").read_text().split()[0])
        for one in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
            os.kill(one, number)

    def end(self) -> None:
        self._run("stop_services", self._folder)

    def make_database(self, *, is_migrated: bool = True) -> str:
        """A new database; its URL."""
        name = f"test_{next(_numbers)}"
        asyncio.run(self._create(name))
        url = f"{self.dsn.rpartition('/')[0]}/{name}"
        if is_migrated:
            migrate(url)
        return url

    async def _create(self, name: str) -> None:
        connection = await asyncpg.connect(self.dsn)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    def _run(self, script: str, folder: str | None) -> str:
        done = subprocess.run(
            ["bash", "-c", f"source {ROOT}/scripts/services.sh; {script}"],
            env={**os.environ, "SERVICES_DIR": folder or ""},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout


@pytest.fixture(scope="session")
def postgres():
    server = PostgresServer()
    yield server
    server.end()


@pytest.fixture
def running(postgres):
    """The server, which runs again when the test has ended."""
    yield postgres
    postgres.start()


@pytest.fixture
def postgres_url(postgres):
    return postgres.make_database()


@pytest.fixture(scope="module")
def shared_url(postgres):
    """One database for a whole suite whose tests keep to scopes of their own."""
    return postgres.make_database()


@pytest.fixture
async def upstream():
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def read_ledger():
    """Nano-dollars by call, corrections summed: `await read_ledger(url)`."""

    async def read(url: str) -> dict[str, int]:
        connection = await asyncpg.connect(url)
        rows = await connection.fetch("SELECT call_id, sum(cost_nanousd)::bigint AS cost FROM ledger GROUP BY call_id")
        await connection.close()
        return {row["call_id"]: row["cost"] or 0 for row in rows}

    return read

"""Migrations: a database of `records`, from nothing or any older schema to this one.

Lives here: running the steps by Alembic, one process at a time. Elsewhere: the steps (migrations/), the tables as they are now (tables.py), when it is
needed (schema.py), the command (cli.py).
Idea: whoever comes second waits for the first and then finds nothing to do: PostgreSQL by an advisory lock, SQLite by the write lock of the one
transaction in which all steps run; so half a migration is never seen.

    python -m hookline.stores.migration sqlite:////var/lib/hookline/hookline.db"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from hookline.errors import StartupError
from hookline.stores.records_url import split_url
from hookline.stores.schema import REVISION, SCHEMA_VERSION, refuse_newer

STEPS = Path(__file__).parent / "migrations"
LOCK = 0x686F6F6B
"""The advisory lock's number in PostgreSQL ("hook")."""
WAIT_S = 60
"""How long SQLite waits for another process that migrates or writes."""


def migrate(url: str) -> str:
    """Run what is missing; answers a sentence. Raises StartupError."""
    url = split_url(url).plain
    shown = make_url(url).set(query={}).render_as_string(hide_password=True)
    try:
        if url.startswith("sqlite:"):
            before = _migrate_sqlite(url, shown)
        elif url.startswith("postgresql:"):
            before = _migrate_postgres(url, shown)
        else:
            raise StartupError([f"[state] records: only SQLite and PostgreSQL are migrated, not {shown}"])
    except (SQLAlchemyError, OSError) as error:
        raise StartupError([f"[state] records: can't migrate {shown}: {_said(error)}"]) from error
    if before == SCHEMA_VERSION:
        return f"{shown} is at schema {SCHEMA_VERSION} already"
    return f"{shown} migrated from schema {before} to {SCHEMA_VERSION}"


def _migrate_sqlite(url: str, shown: str) -> int:
    engine = create_engine(url, connect_args={"timeout": WAIT_S, "isolation_level": None})
    # Python's own BEGIN comes late and is deferred: this one takes the write lock before anything is looked at.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.begin() as connection:
            return _run_steps(connection, shown)
    finally:
        engine.dispose()


def _migrate_postgres(url: str, shown: str) -> int:
    import asyncio

    from sqlalchemy.ext.asyncio import create_async_engine

    async def run() -> int:
        engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
        try:
            async with engine.begin() as connection:
                await connection.run_sync(take_lock)
                return await connection.run_sync(_run_steps, shown)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def take_lock(connection: Connection) -> None:
    """Wait for others that migrate, until the transaction ends; SQLite's own lock is taken at its beginning or first write."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})


def _run_steps(connection: Connection, shown: str) -> int:
    """Inside one transaction. Answers the schema that was there before: 0 for none."""
    found = MigrationContext.configure(connection).get_current_revision()
    is_sqlite = connection.dialect.name == "sqlite"
    tables = inspect(connection).get_table_names()
    if found is None and "ledger" in tables:
        found = "0001"  # a SQLite file from before Alembic kept count
        is_stamped = False
    else:
        is_stamped = True
    before = int(found or 0)
    if is_sqlite:
        before = max(before, int(connection.exec_driver_sql("PRAGMA user_version").scalar_one()))
    refuse_newer(shown, before)
    config = Config()
    script = ScriptDirectory(str(STEPS), version_locations=[str(STEPS)])

    def upgrade(revision: Any, context: MigrationContext) -> Any:
        return script._upgrade_revs(REVISION, revision)  # Alembic's own commands call it so

    with EnvironmentContext(config, script, fn=upgrade, destination_rev=REVISION) as environment:
        environment.configure(connection=connection)
        if not is_stamped:
            environment.get_context().stamp(script, "0001")
        environment.run_migrations()
    if is_sqlite:
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION:d}")
    return before


def _said(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]


if __name__ == "__main__":
    try:
        print(migrate(sys.argv[1]))
    except StartupError as error:
        print(f"hookline: {error.problems[0]}", file=sys.stderr)
        raise SystemExit(2) from None

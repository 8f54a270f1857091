"""Plugins' tables, made and widened.

Lives here: the difference between what a model says and what a database has, for SQLite at start and for both by `hookline migrate`. Elsewhere: the statements
(table_sql.py), Hookline's own tables (migration.py).
Idea: a table only ever grows: a field that is new comes with its default, one that is gone keeps its column, so an older process goes on beside a newer one."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from hookline.errors import StartupError
from hookline.stores.plugin_tables import check_table
from hookline.stores.table_sql import check_indexes, columns_of, creations, table_name

if TYPE_CHECKING:
    from pydantic import BaseModel

WAIT_S = 5.0


def ensure_in_sqlite(path: str, model: type[BaseModel]) -> None:
    """Make or widen a table. Raises StartupError."""
    name = table_name(check_table(model).name)
    check_indexes(model)
    try:
        with closing(sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            existing = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            for statement in creations(model, dialect=0, existing=existing or None):
                connection.execute(statement)
            connection.execute("COMMIT")
    except (sqlite3.Error, ValueError) as error:
        raise StartupError([f"[state] records: {path}: {error}"]) from error


def missing_columns(model: type[BaseModel], existing: Sequence[str]) -> list[str]:
    """What the database lacks; all of them if the table is not there."""
    return [column.name for column in columns_of(model) if column.name not in existing]


def migrate_tables(url: str, models: Sequence[type[Any]]) -> list[str]:
    """Make or widen the tables of these models; answers a sentence for each that was changed. Raises StartupError."""
    for model in models:
        check_table(model)
        check_indexes(model)
    if url.startswith("sqlite:"):
        from sqlalchemy import create_engine

        engine = create_engine(url)
        try:
            with engine.begin() as connection:
                return _migrate(connection, models)
        finally:
            engine.dispose()
    import asyncio

    from sqlalchemy import make_url
    from sqlalchemy.ext.asyncio import create_async_engine

    async def run() -> list[str]:
        engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(_migrate, models)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def _migrate(connection: Any, models: Sequence[type[Any]]) -> list[str]:
    from sqlalchemy import inspect

    from hookline.stores.migration import take_lock

    take_lock(connection)
    done = []
    for model in models:
        name = table_name(check_table(model).name)
        seen = inspect(connection)
        existing = [column["name"] for column in seen.get_columns(name)] if seen.has_table(name) else None
        dialect = 0 if connection.dialect.name == "sqlite" else 1
        try:
            statements = creations(model, dialect=dialect, existing=existing)
        except ValueError as error:
            raise StartupError([str(error)]) from error
        for statement in statements:
            connection.exec_driver_sql(statement)
        added = missing_columns(model, existing or ())
        if added:
            what = "made" if existing is None else f"has new columns: {', '.join(added)}"
            done.append(f"table {name} {what}")
    return done

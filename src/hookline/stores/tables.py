"""The tables of `records`, as SQLAlchemy Core metadata, and what SQLite is told to make and fill them.

Lives here: the one definition of every column. Elsewhere: the text compiled from it (sqlite_statements.py), who runs it (sqlite.py).
Idea: SQLAlchemy costs 15 MiB and up to 0.7 s of import, and 4 µs more per row than sqlite3 itself, so nothing that serves imports this module: the few
statements of the embedded store are compiled beforehand, and a test compares the two."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    func,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql import ClauseElement

METADATA = MetaData()

LEDGER = Table(
    "ledger",
    METADATA,
    Column("id", String, primary_key=True),
    Column("call_id", String, nullable=False),
    Column("at", Double, nullable=False),
    Column("tenant", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("user", String),
    Column("model", String, nullable=False),
    Column("deployment", String, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cost_nanousd", BigInteger),
    Column("is_estimated", Boolean, nullable=False),
)
"""One row per paid attempt, written once and never changed."""

SPEND = Table(
    "spend",
    METADATA,
    Column("quarter", Integer, primary_key=True, autoincrement=False),
    Column("scope", String, primary_key=True),
    Column("nanousd", BigInteger, nullable=False),
)
"""The ledger summed per scope and quarter of an hour, which is the grain of all time zones: what has been spent is read here, whatever the ledger's size."""


def sqlite_statements() -> Mapping[str, str]:
    """The constants of sqlite_statements.py, by name."""
    wanted = func.json_each(bindparam("ids")).table_valued("value")
    filled, added = sqlite.insert(LEDGER), sqlite.insert(SPEND)
    within = (SPEND.c.quarter >= bindparam("since")) & (SPEND.c.quarter < bindparam("until"))
    return {
        "CREATE_LEDGER": _compiled(CreateTable(LEDGER, if_not_exists=True)),
        "CREATE_SPEND": _compiled(CreateTable(SPEND, if_not_exists=True)),
        "FIND_BOOKED": _compiled(select(LEDGER.c.id).where(LEDGER.c.id.in_(select(wanted.c.value)))),
        "BOOK": _compiled(filled),
        "ADD_SPEND": _compiled(
            added.on_conflict_do_update(
                index_elements=[SPEND.c.quarter, SPEND.c.scope],
                set_={"nanousd": SPEND.c.nanousd + added.excluded.nanousd},
            )
        ),
        "SUM_SPEND": _compiled(select(SPEND.c.scope, func.sum(SPEND.c.nanousd)).where(within).group_by(SPEND.c.scope)),
    }


def _compiled(statement: ClauseElement) -> str:
    text = str(statement.compile(dialect=sqlite.dialect(paramstyle="qmark")))
    return "\n".join(line.rstrip() for line in text.strip().splitlines())

"""What is asked of the tables, as SQLAlchemy Core, compiled for SQLite and for PostgreSQL.

Lives here: every statement once. Elsewhere: the tables (tables.py), the text made here (sqlite_statements.py, postgres_statements.py), who runs it.
Idea: one definition, two dialects; a test compares the committed text with what this module makes, so that serving needs no SQLAlchemy (ADR 0009)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import ARRAY, String, Table, any_, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql import ClauseElement

from hookline.stores.tables import LEDGER, METADATA, NUMBERS, SPEND, SPEND_DAYS, SPEND_GROUPS, SPEND_HOURS, SPEND_TAGS

SQLITE: Dialect = sqlite.dialect(paramstyle="qmark")
POSTGRES: Dialect = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


def sqlite_statements() -> Mapping[str, str]:
    """The constants of sqlite_statements.py, by name."""
    wanted = func.json_each(bindparam("ids")).table_valued("value")
    return {
        "CREATE": ";\n".join(_creations()),
        "FIND_BOOKED": _compiled(select(LEDGER.c.id).where(LEDGER.c.id.in_(select(wanted.c.value))), SQLITE),
        "BOOK": _compiled(sqlite.insert(LEDGER), SQLITE),
        "ADD_SPEND": _compiled(_add_spend(sqlite.insert(SPEND)), SQLITE),
        **{name: _compiled(asked, SQLITE) for name, asked in _additions(sqlite.insert).items()},
        **{name: _compiled(asked, SQLITE) for name, asked in _sums().items()},
    }


def postgres_statements() -> Mapping[str, str]:
    """The constants of postgres_statements.py, by name. Ledger rows come by COPY and need none."""
    wanted = bindparam("ids", type_=ARRAY(String))
    return {
        "FIND_BOOKED": _compiled(select(LEDGER.c.id).where(LEDGER.c.id == any_(wanted)), POSTGRES),
        "ADD_SPEND": _compiled(_add_spend(postgresql.insert(SPEND)), POSTGRES),
        **{name: _compiled(asked, POSTGRES) for name, asked in _additions(postgresql.insert).items()},
        **{name: _compiled(asked, POSTGRES) for name, asked in _sums().items()},
    }


def _sums() -> Mapping[str, ClauseElement]:
    within = (SPEND.c.quarter >= bindparam("since")) & (SPEND.c.quarter < bindparam("until"))
    return {
        "SUM_SCOPE": select(func.sum(SPEND.c.nanousd)).where(SPEND.c.scope == bindparam("scope"), within),
        "LIST_QUARTERS": select(SPEND.c.quarter, SPEND.c.nanousd)
        .where(SPEND.c.scope == bindparam("scope"), SPEND.c.quarter >= bindparam("since"))
        .order_by(SPEND.c.quarter),
    }


def _add_spend(added: sqlite.Insert | postgresql.Insert) -> ClauseElement:
    return added.on_conflict_do_update(
        index_elements=[SPEND.c.quarter, SPEND.c.scope],
        set_={"nanousd": SPEND.c.nanousd + added.excluded.nanousd},
    )


def _additions(insert: Callable[[Table], Any]) -> Mapping[str, ClauseElement]:
    """Groups, and their sums."""

    def add(table: Table, bucket: str) -> ClauseElement:
        added = insert(table)
        summed: ClauseElement = added.on_conflict_do_update(
            index_elements=[table.c.kind, table.c[bucket], table.c.group_id],
            set_={name: table.c[name] + added.excluded[name] for name in NUMBERS},
        )
        return summed

    return {
        "ADD_GROUP": insert(SPEND_GROUPS).on_conflict_do_nothing(),
        "ADD_TAG": insert(SPEND_TAGS).on_conflict_do_nothing(),
        "ADD_HOUR": add(SPEND_HOURS, "hour"),
        "ADD_DAY": add(SPEND_DAYS, "day"),
    }


def _creations() -> list[str]:
    made = []
    for table in METADATA.sorted_tables:
        made.append(_compiled(CreateTable(table), SQLITE))
        made += [
            _compiled(CreateIndex(index), SQLITE) for index in sorted(table.indexes, key=lambda index: str(index.name))
        ]
    return made


def _compiled(statement: ClauseElement, dialect: Dialect) -> str:
    text = str(statement.compile(dialect=dialect))
    return "\n".join(line.rstrip().replace("\t", "    ") for line in text.strip().splitlines())

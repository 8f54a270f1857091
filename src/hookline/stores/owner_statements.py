"""What is asked about owners, as SQLAlchemy Core.

Lives here: every statement about owners once. Elsewhere: the text made here (sqlite_owner_statements.py, postgres_owner_statements.py), who runs it
(sqlite_owners.py, postgres_owners.py), everything else that is asked (statements.py).
Idea: as in statements.py: one definition, two dialects, compiled beforehand (ADR 0009). The ends of an index tell whether there is more than one tenant,
whatever the tables' sizes."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import ARRAY, String, any_, bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement, ColumnElement

from hookline.stores.owners import Owner
from hookline.stores.tables import KEYS, OWNERS

_ROW = [OWNERS.c[name] for name in Owner._fields]


def owner_statements(dialect: Dialect) -> Mapping[str, str]:
    """The constants of sqlite_owner_statements.py and postgres_owner_statements.py, by name."""
    statements = _statements(is_sqlite=dialect.name == "sqlite")
    return {name: str(made.compile(dialect=dialect)).strip() for name, made in statements.items()}


def _statements(*, is_sqlite: bool) -> Mapping[str, ClauseElement]:
    insert = sqlite.insert(OWNERS) if is_sqlite else postgresql.insert(OWNERS)
    values = {name: bindparam(f"v_{name}", type_=OWNERS.c[name].type) for name in Owner._fields}
    tenant = OWNERS.c.tenant == bindparam("tenant", type_=String)
    return {
        "CLAIM": insert.values(values).on_conflict_do_nothing(),
        "FIND_OWNERS": select(*_ROW).where(_wanted(is_sqlite=is_sqlite)),
        "FORGET": delete(OWNERS).where(tenant, _wanted(is_sqlite=is_sqlite)),
        "KEY_ENDS": select(func.min(KEYS.c.tenant), func.max(KEYS.c.tenant)),
        "OWNER_ENDS": select(func.min(OWNERS.c.tenant), func.max(OWNERS.c.tenant)),
    }


def _wanted(*, is_sqlite: bool) -> ColumnElement[bool]:
    if is_sqlite:
        return OWNERS.c.object_id.in_(select(func.json_each(bindparam("ids")).table_valued("value").c.value))
    return OWNERS.c.object_id == any_(bindparam("ids", type_=ARRAY(String)))

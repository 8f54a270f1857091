"""What is asked of the table `keys`, as SQLAlchemy Core.

Lives here: every statement about keys once. Elsewhere: the text made here (sqlite_key_statements.py, postgres_key_statements.py), who runs it (sqlite_keys.py,
postgres_keys.py), everything else that is asked (statements.py).
Idea: as in statements.py: one definition, two dialects, compiled beforehand (ADR 0009)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import BigInteger, Boolean, Integer, String, bindparam, cast, func, insert, or_, select, text, update
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement

from hookline.stores.keys import COLUMNS
from hookline.stores.tables import KEYS

_C = KEYS.c
_ROW = [_C[name] for name in COLUMNS]


def key_statements(dialect: Dialect) -> Mapping[str, str]:
    """The constants of sqlite_key_statements.py and postgres_key_statements.py, by name."""
    compiled: dict[str, str] = {}
    for name, statement in _statements().items():
        made = str(statement.compile(dialect=dialect))
        compiled[name] = "\n".join(line.rstrip() for line in made.strip().splitlines())
    return compiled


def _statements() -> Mapping[str, ClauseElement]:
    hash = bindparam("hash", type_=String)
    is_revoked = cast(bindparam("is_revoked"), Boolean)  # a Boolean by itself says nothing of its type to PostgreSQL
    return {
        "INSERT_KEY": insert(KEYS).values({name: bindparam(f"v_{name}", type_=_C[name].type) for name in COLUMNS}),
        "UPDATE_KEY": update(KEYS)
        .where(_C.id == bindparam("key_id", type_=String))
        .ordered_values(*((_C[name], bindparam(f"v_{name}", type_=_C[name].type)) for name in COLUMNS[1:])),
        "FIND_KEY": select(*_ROW).where(or_(_C.hash == hash, _C.old_hash == hash)).order_by(_C.changed.desc()),
        "GET_KEY": select(*_ROW).where(_C.id == bindparam("id", type_=String)),
        "PAGE_KEYS": select(*_ROW)
        .where(
            _C.id > bindparam("after", type_=String),
            _is_any_or("name", String),
            _is_any_or("tenant", String),
            _is_any_or("user", String),
            or_(is_revoked.is_(None), _C.revoked_at.is_not(None) == is_revoked),
        )
        .order_by(_C.id)
        .limit(bindparam("limit", type_=Integer)),
        "LAST_CHANGE": select(func.max(_C.changed)),
        "CHANGED_KEYS": select(*_ROW)
        .where(_C.changed > bindparam("after", type_=BigInteger))
        .order_by(_C.changed)
        .limit(bindparam("limit", type_=Integer)),
        "LOCK_KEYS": text("LOCK TABLE keys IN SHARE ROW EXCLUSIVE MODE"),
    }


def _is_any_or(name: str, type: Any) -> Any:
    wanted = bindparam(name, type_=type)
    return or_(wanted.is_(None), _C[name] == wanted)

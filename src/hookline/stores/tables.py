"""The tables of `records`, as SQLAlchemy Core metadata.

Lives here: the one definition of every column and index, for SQLite and PostgreSQL alike. Elsewhere: what is asked of them (statements.py), the way from an
older schema to this one (migrations/), who runs it (sqlite.py, postgres.py).
Idea: SQLAlchemy costs 15 MiB and up to 0.7 s of import, and 4 µs more per row than sqlite3 itself, so nothing that serves imports this module (ADR 0009)."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
)

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
    Column("price_version", String),
    Column("corrects", String),
    Column("group_id", BigInteger),
    Index("ledger_at", "at"),
)
"""One row per paid attempt, written once and never changed. `price_version` says which price made the cost; None where none was known or told. A correction is
a row of its own that names in `corrects` the row whose cost it changes."""

SPEND = Table(
    "spend",
    METADATA,
    Column("quarter", Integer, primary_key=True, autoincrement=False),
    Column("scope", String, primary_key=True),
    Column("nanousd", BigInteger, nullable=False),
    Index("spend_scope", "scope", "quarter"),
)
"""The ledger summed per scope (those who paid, and `model:NAME`) and quarter of an hour, which is the grain of all time zones: what has been spent is read
here, whatever the ledger's size."""

SPEND_GROUPS = Table(
    "spend_groups",
    METADATA,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Integer, nullable=False),
    *(Column(name, String, nullable=False) for name in ("tenant", "key_id", "user", "model", "deployment", "tags")),
    Index("spend_groups_kind", "kind", "id"),
)
"""Who called what, at each kind of looking at it (spend_groups.py); `tags` is a JSON list."""

SPEND_TAGS = Table(
    "spend_tags",
    METADATA,
    Column("tag", String, nullable=False),
    Column("group_id", BigInteger, nullable=False),
    PrimaryKeyConstraint("group_id", "tag"),
    Index("spend_tags_tag", "tag", "group_id"),
    sqlite_with_rowid=False,
)
"""The tags of each group, one by one."""


def _sums(name: str, bucket: str, *indexes: Index) -> Table:
    return Table(
        name,
        METADATA,
        Column("kind", Integer, nullable=False),
        Column(bucket, Integer, nullable=False),
        Column("group_id", BigInteger, nullable=False),
        *(Column(number, BigInteger, nullable=False) for number in NUMBERS),
        PrimaryKeyConstraint("kind", bucket, "group_id"),
        *indexes,
        sqlite_with_rowid=False,
    )


NUMBERS = ("calls", "input_tokens", "output_tokens", "cached_tokens", "nanousd", "unpriced_calls", "estimated_calls")
SPEND_HOURS = _sums("spend_hours", "hour")
SPEND_DAYS = _sums("spend_days", "day", Index("spend_days_group", "group_id", "day"))
"""The ledger summed per group and hour since 1970 (UTC), and per day, kind by kind: reports are read here, whatever the
ledger's size. New sums come at the end of each table's kind, not everywhere in it. A correction is no call."""

KEYS = Table(
    "keys",
    METADATA,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("hash", String, nullable=False),
    Column("prefix", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("user", String),
    Column("models", JSON),
    Column("limits", JSON),
    Column("budget", JSON),
    Column("tags", JSON),
    Column("metadata", JSON),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("rotated_at", Double),
    Column("disabled_at", Double),
    Column("old_hash", String),
    Column("old_until", Double),
    Column("changed", BigInteger, nullable=False, server_default="0"),
    Index("keys_changed", "changed"),
    Index("keys_hash", "hash", unique=True),
    Index("keys_old_hash", "old_hash"),
    Index("keys_tenant", "tenant", "id"),
)
"""Virtual keys. The key itself is kept nowhere, only its hash and the first characters by which a person knows it. `changed` numbers the writes."""

OWNERS = Table(
    "owners",
    METADATA,
    Column("object_id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("provider", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("kind", String, nullable=False, server_default=""),
    Column("deployment", String, nullable=False, server_default=""),
    Index("owners_tenant", "tenant", "object_id"),
)
"""Who made an object that lives at a provider (a file, a response, a batch), and at which."""

"""Schema 5: spend by group and hour, corrections.

Lives here: one step, never edited after its release. Elsewhere: the tables as they are now (../tables.py), who runs steps (../migration.py)."""

from __future__ import annotations

from hashlib import blake2b

import orjson
import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0002"

NUMBERS = ("calls", "input_tokens", "output_tokens", "cached_tokens", "nanousd", "unpriced_calls", "estimated_calls")
MEMBERS = ("tenant", "key_id", "user", "model", "deployment")


def upgrade() -> None:
    """Add what is new; the sums are made from the ledger as it stands, in which nothing had tags."""
    op.add_column("ledger", sa.Column("corrects", sa.String))
    op.add_column("ledger", sa.Column("group_id", sa.BigInteger))
    op.create_index("ledger_group", "ledger", ["group_id", "at"])
    op.create_table(
        "spend_groups",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.String, nullable=False) for name in (*MEMBERS, "tags")),
    )
    op.create_index("spend_groups_key", "spend_groups", ["key_id"])
    op.create_index("spend_groups_tenant", "spend_groups", ["tenant"])
    op.create_table(
        "spend_tags",
        sa.Column("tag", sa.String, primary_key=True),
        sa.Column("group_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    for table, bucket in (("spend_hours", "hour"), ("spend_days", "day")):
        op.create_table(
            table,
            sa.Column(bucket, sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("group_id", sa.BigInteger, primary_key=True, autoincrement=False),
            *(sa.Column(name, sa.BigInteger, nullable=False) for name in NUMBERS),
            sqlite_with_rowid=False,
        )
        op.create_index(f"{table}_group", table, ["group_id", bucket])
    _fill()


def _fill() -> None:
    connection = op.get_bind()
    ledger = sa.table("ledger", *(sa.column(name) for name in (*MEMBERS, "group_id")))
    groups = sa.table("spend_groups", *(sa.column(name) for name in ("id", *MEMBERS, "tags")))
    for row in connection.execute(sa.select(*(ledger.c[name] for name in MEMBERS)).distinct()).fetchall():
        members = [member or "" for member in row]
        number = int.from_bytes(blake2b(orjson.dumps((*members, "[]")), digest_size=8).digest()) >> 1
        named = dict(zip(MEMBERS, members, strict=True))
        connection.execute(sa.insert(groups).values(id=number, tags="[]", **named))
        same = [sa.func.coalesce(ledger.c[name], "") == member for name, member in named.items()]
        connection.execute(sa.update(ledger).where(*same).values(group_id=number))
    for table, seconds in (("spend_hours", 3_600), ("spend_days", 86_400)):
        op.execute(
            f"INSERT INTO {table} SELECT CAST(FLOOR(at / {seconds}) AS INTEGER), group_id, COUNT(*), SUM(input_tokens), "
            "SUM(output_tokens), SUM(cached_tokens), COALESCE(SUM(cost_nanousd), 0), "
            "SUM(CASE WHEN cost_nanousd IS NULL THEN 1 ELSE 0 END), SUM(CASE WHEN is_estimated THEN 1 ELSE 0 END) "
            "FROM ledger GROUP BY 1, 2"
        )

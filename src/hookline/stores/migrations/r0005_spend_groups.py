"""Schema 5: spend by group and hour, corrections.

Lives here: one step, never edited after its release. Elsewhere: the tables as they are now (../tables.py), who runs steps (../migration.py)."""

from __future__ import annotations

from hashlib import blake2b

import orjson
import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

NUMBERS = ("calls", "input_tokens", "output_tokens", "cached_tokens", "nanousd", "unpriced_calls", "estimated_calls")
MEMBERS = ("tenant", "key_id", "user", "model", "deployment", "tags")
KINDS = (MEMBERS, ("tenant", "key_id", "model", "deployment"), ("tenant", "user", "model"), ("tenant", "tags"), ())
TABLES = {"spend_hours": "hour", "spend_days": "day"}


def upgrade() -> None:
    """Add what is new; the sums are made from the ledger as it stands, in which nothing had tags."""
    op.add_column("ledger", sa.Column("corrects", sa.String))
    op.add_column("ledger", sa.Column("group_id", sa.BigInteger))
    op.create_table(
        "spend_groups",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Integer, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in MEMBERS),
    )
    op.create_index("spend_groups_kind", "spend_groups", ["kind", "id"])
    op.create_table(
        "spend_tags",
        sa.Column("tag", sa.String, nullable=False),
        sa.Column("group_id", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("group_id", "tag"),
        sqlite_with_rowid=False,
    )
    op.create_index("spend_tags_tag", "spend_tags", ["tag", "group_id"])
    for table, bucket in TABLES.items():
        op.create_table(
            table,
            sa.Column("kind", sa.Integer, nullable=False),
            sa.Column(bucket, sa.Integer, nullable=False),
            sa.Column("group_id", sa.BigInteger, nullable=False),
            *(sa.Column(name, sa.BigInteger, nullable=False) for name in NUMBERS),
            sa.PrimaryKeyConstraint("kind", bucket, "group_id"),
            sqlite_with_rowid=False,
        )
    op.create_index("spend_days_group", "spend_days", ["group_id", "day"])
    _fill()


def _fill() -> None:
    connection = op.get_bind()
    ledger = sa.table("ledger", *(sa.column(name) for name in (*MEMBERS, "group_id")))
    groups = sa.table("spend_groups", *(sa.column(name) for name in ("id", "kind", *MEMBERS)))
    narrower: dict[tuple[int, ...], list[int]] = {}
    for row in connection.execute(sa.select(*(ledger.c[name] for name in MEMBERS[:5])).distinct()).fetchall():
        members = dict(zip(MEMBERS, (*(member or "" for member in row), "[]"), strict=True))
        same = [sa.func.coalesce(ledger.c[name], "") == members[name] for name in MEMBERS[:5]]
        number = 0
        for kind, looked_at in enumerate(KINDS):
            kept = {name: value if name in looked_at else "" for name, value in members.items()}
            digest = blake2b(orjson.dumps((kind, *kept.values())), digest_size=8).digest()
            own = int.from_bytes(digest) >> 1
            if kind == 0:
                number = own
                connection.execute(sa.update(ledger).where(*same).values(group_id=number))
            if kind == 0 or (kind, own) not in narrower:
                connection.execute(sa.insert(groups).values(id=own, kind=kind, **kept))
            if kind > 0:
                narrower.setdefault((kind, own), []).append(number)
    sums = ", ".join(f"SUM({name})" for name in NUMBERS)
    for (table, bucket), seconds in zip(TABLES.items(), (3_600, 86_400), strict=True):
        op.execute(
            f"INSERT INTO {table} SELECT 0, CAST(FLOOR(at / {seconds}) AS INTEGER), group_id, COUNT(*), SUM(input_tokens), "
            "SUM(output_tokens), SUM(cached_tokens), COALESCE(SUM(cost_nanousd), 0), "
            "SUM(CASE WHEN cost_nanousd IS NULL THEN 1 ELSE 0 END), SUM(CASE WHEN is_estimated THEN 1 ELSE 0 END) "
            "FROM ledger GROUP BY 2, 3"
        )
        for (kind, own), wider in narrower.items():
            op.execute(
                f"INSERT INTO {table} SELECT {kind}, {bucket}, {own}, {sums} FROM {table} "
                f"WHERE group_id IN ({', '.join(map(str, wider))}) GROUP BY {bucket}"
            )

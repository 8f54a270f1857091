"""Schema 1: the ledger, and what it sums up to.

Lives here: one step, never edited after its release. Elsewhere: the tables as they are now (../tables.py), who runs steps (../migration.py)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first two tables."""
    op.create_table(
        "ledger",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("call_id", sa.String, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("user", sa.String),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("deployment", sa.String, nullable=False),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger),
        sa.Column("is_estimated", sa.Boolean, nullable=False),
    )
    op.create_table(
        "spend",
        sa.Column("quarter", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("scope", sa.String, primary_key=True),
        sa.Column("nanousd", sa.BigInteger, nullable=False),
    )

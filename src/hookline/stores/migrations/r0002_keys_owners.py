"""Schema 2: virtual keys, owners, the price's version in the ledger, spend by model.

Lives here: one step, never edited after its release. Elsewhere: the tables as they are now (../tables.py), who runs steps (../migration.py)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what is new; spend by model is summed from the ledger as it stands."""
    op.add_column("ledger", sa.Column("price_version", sa.String))
    op.create_index("ledger_at", "ledger", ["at"])
    op.create_index("spend_scope", "spend", ["scope", "quarter"])
    op.execute(
        "INSERT INTO spend (quarter, scope, nanousd) "
        "SELECT CAST(FLOOR(at / 900) AS INTEGER), 'model:' || model, SUM(cost_nanousd) FROM ledger "
        "WHERE cost_nanousd <> 0 GROUP BY 1, 2"
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("prefix", sa.String, nullable=False),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("user", sa.String),
        *(sa.Column(name, sa.JSON) for name in ("models", "limits", "budget", "tags", "metadata")),
        sa.Column("created_at", sa.Double, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("expires_at", "revoked_at", "rotated_at")),
    )
    op.create_index("keys_hash", "keys", ["hash"], unique=True)
    op.create_index("keys_tenant", "keys", ["tenant", "id"])
    op.create_table(
        "owners",
        sa.Column("object_id", sa.String, primary_key=True),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("provider", sa.String, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("owners_tenant", "owners", ["tenant", "object_id"])

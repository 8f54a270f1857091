"""Schema 4: what kind of object an owner has, and the deployment that made it.

Lives here: one step, never edited after its release. Elsewhere: the tables as they are now (../tables.py), who runs steps (../migration.py)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add what is new; no owner was kept before."""
    op.add_column("owners", sa.Column("kind", sa.String, nullable=False, server_default=""))
    op.add_column("owners", sa.Column("deployment", sa.String, nullable=False, server_default=""))

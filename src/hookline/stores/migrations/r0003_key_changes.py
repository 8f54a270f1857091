"""Schema 3: virtual keys that can be disabled and rotated with an overlap, and the number of each change.

Lives here: one step, never edited after its release. Elsewhere: the tables as they are now (../tables.py), who runs steps (../migration.py)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what is new; no key was kept before."""
    op.add_column("keys", sa.Column("disabled_at", sa.Double))
    op.add_column("keys", sa.Column("old_hash", sa.String))
    op.add_column("keys", sa.Column("old_until", sa.Double))
    op.add_column("keys", sa.Column("changed", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("keys_changed", "keys", ["changed"])
    op.create_index("keys_old_hash", "keys", ["old_hash"])

"""Schema 6: what users have spent, tenant by tenant.

Lives here: one step, never edited after its release. Elsewhere: who reads these sums (builtins/budget), who runs steps (../migration.py)."""

from __future__ import annotations

from urllib.parse import quote

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

QUARTER_S = 900


def upgrade() -> None:
    """Sums that users of the same name shared become one for each, from the ledger."""
    connection = op.get_bind()
    ledger = sa.table("ledger", *(sa.column(name) for name in ("tenant", "user", "at", "cost_nanousd")))
    spend = sa.table("spend", *(sa.column(name) for name in ("quarter", "scope", "nanousd")))
    quarter = sa.cast(sa.func.floor(ledger.c.at / QUARTER_S), sa.Integer).label("quarter")
    total = sa.func.sum(ledger.c.cost_nanousd)
    summed = (
        sa.select(ledger.c.tenant, ledger.c.user, quarter, total)
        .where(ledger.c.user.is_not(None), ledger.c.cost_nanousd != 0)
        .group_by(ledger.c.tenant, ledger.c.user, quarter)
    )
    rows = [
        {"quarter": at, "scope": f"user:{quote(tenant, safe='')}/{quote(user, safe='')}", "nanousd": int(nanousd)}
        for tenant, user, at, nanousd in connection.execute(summed)
    ]
    connection.execute(sa.delete(spend).where(spend.c.scope.like("user:%")))
    if rows:
        connection.execute(sa.insert(spend), rows)

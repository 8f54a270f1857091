"""Questions about what was spent, and their answers.

Lives here: `SpendQuery`, `LedgerQuery` and what comes back. Elsewhere: how a database answers (spend_query.py), who asks (builtins/spend_report.py).
Idea: a report is a sum over groups of calls (tenant, key, user, model, deployment, tags) and hours, so a question names some of these members and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hookline.stores.protocols import LedgerEntry

REPORT_MEMBERS = ("tenant", "key", "user", "model", "deployment", "tag")
"""By which a report filters and groups. A call with two tags is in both groups of `tag`, one without tags in none."""
REPORT_BUCKETS = ("hour", "day")
"""By which it groups time, in UTC."""


class SpendQuery(NamedTuple):
    """Sums from the hour that holds `since` to the one that holds the moment before `until` (Unix seconds), both whole."""

    since: float = 0.0
    until: float = float("inf")
    where: Mapping[str, Sequence[str]] = {}
    """By member: one of these values. '' as a user is nobody."""
    by: Sequence[str] = ()
    """Members, and `hour` or `day`; nothing: one sum of all."""
    limit: int = 1_000


class SpendSum(NamedTuple):
    """One line of a report."""

    group: tuple[str | int | None, ...]
    """In the order of `by`. Hours and days are their beginnings, in Unix seconds."""
    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_nanousd: int
    unpriced_calls: int
    """Calls whose cost is not known and not in the sum."""
    estimated_calls: int


class LedgerQuery(NamedTuple):
    """Rows with `since <= at < until`, the newest first."""

    since: float = 0.0
    until: float = float("inf")
    where: Mapping[str, Sequence[str]] = {}
    limit: int = 100
    before: tuple[float, str] | None = None
    """Where the page before ended: (at, id)."""


class LedgerPage(NamedTuple):
    """Ledger rows, without their scopes, and where the next page begins; None at the end."""

    rows: Sequence[LedgerEntry]
    next: tuple[float, str] | None


def check(query: SpendQuery | LedgerQuery) -> None:
    """Raises ValueError for a member that there is not: its name would be part of what a database is asked."""
    unknown = set(query.where) - set(REPORT_MEMBERS)
    if isinstance(query, SpendQuery):
        unknown |= set(query.by) - {*REPORT_MEMBERS, *REPORT_BUCKETS}
        if len(set(query.by) & set(REPORT_BUCKETS)) > 1 or len(set(query.by)) != len(query.by):
            raise ValueError(f"group by each once, and by hour or day, not {', '.join(query.by)}")
    if unknown:
        raise ValueError(f"no {', '.join(sorted(unknown))}; there are {', '.join((*REPORT_MEMBERS, *REPORT_BUCKETS))}")

"""Spend groups: who called what, as one number.

Lives here: the kinds of groups, `group_of`, and what a batch adds to the sums per group, hour and day. Elsewhere: the tables (tables.py), questions
(spend_query.py), sums per payer, which budgets read (ledger.py).
Idea: tenant, key, user, model, deployment and tags together are one group, and every report is a sum over groups. There are fewer of them where fewer members
are looked at, so sums are kept for a few sets of members (`KINDS`), and a report reads the smallest that has what it asks for. A group's number is a hash,
so processes agree on it without asking."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b

import orjson

from hookline.stores.protocols import LedgerEntry

HOUR_S = 3600
HOURS_A_DAY = 24
KNOWN_MAX = 20_000

MEMBERS = ("tenant", "key", "user", "model", "deployment", "tag")
KINDS: tuple[frozenset[str], ...] = (
    frozenset(MEMBERS),
    frozenset(("tenant", "key", "model", "deployment")),
    frozenset(("tenant", "user", "model")),
    frozenset(("tenant", "tag")),
    frozenset(),
)
"""What the groups of each kind look at. Kind 0 is that of ledger rows; each narrower one costs a batch as many sums more as it has groups."""

Group = tuple[int, int, str, str, str, str, str, str]
"""A row of `spend_groups`: (number, kind, members, tags as a JSON list). What the kind does not look at, and nobody as a user, is ''."""
Sums = tuple[int, int, int, int, int, int, int, int, int, int]
"""(kind, hour or day, group, calls, input, output and cached tokens, nano-dollars, calls without a price, estimated calls)"""

_known: dict[tuple[object, ...], tuple[Group, ...]] = {}


def groups_of(entry: LedgerEntry) -> tuple[Group, ...]:
    """One group of each kind."""
    key = (entry.tenant, entry.key_id, entry.user, entry.model, entry.deployment, *entry.tags)
    found = _known.get(key)
    if found is None:
        if len(_known) >= KNOWN_MAX:
            _known.clear()
        tags = orjson.dumps(sorted(set(entry.tags))).decode()
        members = (entry.tenant, entry.key_id, entry.user or "", entry.model, entry.deployment, tags)
        found = _known[key] = tuple(_group(kind, members) for kind in range(len(KINDS)))
    return found


def kind_of(members: Collection[str]) -> int:
    """The kind with the fewest members that has these."""
    return max(kind for kind, looked_at in enumerate(KINDS) if looked_at.issuperset(members))


Grouped = Sequence[tuple[LedgerEntry, tuple[Group, ...]]]
"""Entries, each with its groups."""


def new_groups(grouped: Grouped, known: set[int]) -> tuple[list[Group], list[tuple[str, int]]]:
    """Rows of `spend_groups` and of `spend_tags` for groups that are not in `known`, in order. Whoever has committed them adds them to it."""
    found: dict[int, Group] = {}
    for _, groups in grouped:
        if groups[0][0] not in known:
            found.update((group[0], group) for group in groups)
    tags = sorted((tag, number) for number, group in found.items() for tag in orjson.loads(group[7] or "[]"))
    return sorted(found.values()), tags


def remember(known: set[int], groups: Iterable[Group]) -> None:
    """Add committed groups to what is known."""
    if len(known) >= KNOWN_MAX:
        known.clear()
    known.update(group[0] for group in groups)


def sums_by_hour(grouped: Grouped) -> list[Sums]:
    """What to add to `spend_hours`, in order: two processes that lock rows in one order never wait for each other in a circle."""
    sums: dict[tuple[int, int], tuple[list[int], tuple[Group, ...]]] = {}
    for entry, groups in grouped:
        key = (int(entry.at // HOUR_S), groups[0][0])
        known = sums.get(key)
        if known is None:
            known = sums[key] = ([0] * 7, groups)
        found = known[0]
        cost = entry.cost_nanousd
        if entry.corrects is None:
            found[0] += 1
            found[5] += cost is None
            found[6] += entry.is_estimated
        found[1] += entry.input_tokens
        found[2] += entry.output_tokens
        found[3] += entry.cached_tokens
        found[4] += cost or 0
    return _summed((group[1], hour, group[0], added) for (hour, _), (added, groups) in sums.items() for group in groups)


def sums_by_day(hours: Iterable[Sums]) -> list[Sums]:
    """The same for `spend_days`."""
    return _summed((kind, hour // HOURS_A_DAY, group, added) for kind, hour, group, *added in hours)


def _summed(parts: Iterable[tuple[int, int, int, list[int]]]) -> list[Sums]:
    sums: dict[tuple[int, int, int], list[int]] = {}
    for kind, bucket, group, added in parts:
        found = sums.get((kind, bucket, group))
        if found is None:
            sums[kind, bucket, group] = added[:]
        else:
            found[:] = map(int.__add__, found, added)
    return sorted((*key, *found) for key, found in sums.items())  # type: ignore[misc]


def _group(kind: int, members: tuple[str, ...]) -> Group:
    kept = tuple(value if name in KINDS[kind] else "" for name, value in zip(MEMBERS, members, strict=True))
    digest = blake2b(orjson.dumps((kind, *kept)), digest_size=8).digest()
    return (int.from_bytes(digest) >> 1, kind, *kept)  # type: ignore[return-value]

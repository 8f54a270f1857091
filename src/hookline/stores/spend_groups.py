"""Spend groups: who called what, as one number.

Lives here: `group_of`, and what a batch adds to the sums per group and hour. Elsewhere: the tables (tables.py), questions (spend_query.py), sums per payer, which
budgets read (ledger.py).
Idea: tenant, key, user, model, deployment and tags together are one group; there are few of them beside calls, and every report is a sum over groups. Its number
is a hash, so processes agree on it without asking."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import orjson

from hookline.stores.protocols import LedgerEntry

HOUR_S = 3600
HOURS_A_DAY = 24
KNOWN_MAX = 10_000

Sums = tuple[int, int, int, int, int, int, int, int, int]
"""(hour or day, group, calls, input, output and cached tokens, nano-dollars, calls without a price, estimated calls)"""

_numbers: dict[tuple[object, ...], int] = {}


def group_of(entry: LedgerEntry) -> int:
    """The number of its group: 63 bits of a hash."""
    members = (entry.tenant, entry.key_id, entry.user, entry.model, entry.deployment, *entry.tags)
    known = _numbers.get(members)
    if known is None:
        if len(_numbers) >= KNOWN_MAX:
            _numbers.clear()
        known = _numbers[members] = number_of(*_members(entry))
    return known


def number_of(tenant: str, key_id: str, user: str, model: str, deployment: str, tags: str) -> int:
    """`tags` is the JSON list."""
    digest = blake2b(orjson.dumps((tenant, key_id, user, model, deployment, tags)), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _members(entry: LedgerEntry) -> tuple[str, str, str, str, str, str]:
    """Nobody is the user ''."""
    tags = orjson.dumps(sorted(set(entry.tags))).decode()
    return (entry.tenant, entry.key_id, entry.user or "", entry.model, entry.deployment, tags)


def new_groups(
    entries: Iterable[LedgerEntry], known: set[int]
) -> tuple[list[tuple[object, ...]], list[tuple[str, int]]]:
    """Rows of `spend_groups` and of `spend_tags` for groups that are not in `known`, in order. Whoever has committed them adds them to it."""
    found = {number: entry for entry in entries if (number := group_of(entry)) not in known}
    groups: list[tuple[object, ...]] = [(number, *_members(found[number])) for number in sorted(found)]
    tags = sorted({(tag, number) for number, entry in found.items() for tag in entry.tags})
    return groups, tags


def remember(known: set[int], groups: Iterable[tuple[object, ...]]) -> None:
    """Add committed groups to what is known."""
    if len(known) >= KNOWN_MAX:
        known.clear()
    known.update(group[0] for group in groups)  # type: ignore[misc]


def sums_by_hour(entries: Iterable[LedgerEntry]) -> list[Sums]:
    """What to add to `spend_hours`, in order: two processes that lock rows in one order never wait for each other in a circle."""
    sums: dict[tuple[int, int], list[int]] = {}
    for entry in entries:
        key = (int(entry.at // HOUR_S), group_of(entry))
        found = sums.get(key)
        if found is None:
            found = sums[key] = [0] * 7
        cost = entry.cost_nanousd
        if entry.corrects is None:
            found[0] += 1
            found[5] += cost is None
            found[6] += entry.is_estimated
        found[1] += entry.input_tokens
        found[2] += entry.output_tokens
        found[3] += entry.cached_tokens
        found[4] += cost or 0
    return sorted((*key, *found) for key, found in sums.items())  # type: ignore[misc]


def sums_by_day(hours: Iterable[Sums]) -> list[Sums]:
    """The same for `spend_days`."""
    sums: dict[tuple[int, int], list[int]] = {}
    for hour, group, *added in hours:
        found = sums.setdefault((hour // HOURS_A_DAY, group), [0] * 7)
        for i, number in enumerate(added):
            found[i] += number
    return sorted((*key, *found) for key, found in sums.items())  # type: ignore[misc]

"""Ledger rows as they are summed: quarters of an hour, scopes.

Lives here: what one batch adds to each table, and what is said of a row that is lost. Elsewhere: the columns (tables.py), who commits batches (sqlite.py, postgres.py).
Idea: a batch of a thousand rows touches a few dozen sums, so the sums cost a row next to nothing."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from hookline.stores.protocols import LedgerEntry
from hookline.stores.spend_groups import Group, Sums, groups_of, new_groups, sums_by_day, sums_by_hour

log = logging.getLogger("hookline.records")

QUARTER_S = 900
_LAST_QUARTER = 2**31 - 1


def quarter_of(at_unix_s: float) -> int:
    """The quarter of an hour that holds this moment; the last one for infinity."""
    return int(min(at_unix_s / QUARTER_S, _LAST_QUARTER))


def end_of(quarter: int) -> float:
    """When a quarter of an hour ends, in Unix seconds."""
    return float((quarter + 1) * QUARTER_S)


def sums_of(entries: Iterable[LedgerEntry]) -> list[tuple[int, str, int]]:
    """(quarter, scope, nano-dollars) to be added, in order: two processes that lock rows in one order never wait for each other in a circle."""
    sums: dict[tuple[int, str], int] = {}
    by_model: dict[tuple[int, str], int] = {}
    for entry in entries:
        if nanousd := entry.cost_nanousd:
            quarter = quarter_of(entry.at)
            for scope in entry.scopes:
                row = (quarter, scope)
                sums[row] = sums.get(row, 0) + nanousd
            row = (quarter, entry.model)
            by_model[row] = by_model.get(row, 0) + nanousd
    for (quarter, model), nanousd in by_model.items():
        row = (quarter, "model:" + model)
        sums[row] = sums.get(row, 0) + nanousd
    return sorted((*row, nanousd) for row, nanousd in sums.items())


class Additions(NamedTuple):
    """What a batch adds, table by table, each in order."""

    rows: Sequence[tuple[object, ...]]
    spend: list[tuple[int, str, int]]
    groups: list[Group]
    tags: list[tuple[str, int]]
    hours: list[Sums]
    days: list[Sums]


def additions_of(entries: Collection[LedgerEntry], known_groups: set[int]) -> Additions:
    """All that is written for these entries; `remember` the groups when it is committed."""
    grouped = [(entry, groups_of(entry)) for entry in entries]
    # The scopes are in `spend`, the tags in the group.
    rows = [(*entry[:15], entry.price_version, entry.corrects, groups[0][0]) for entry, groups in grouped]
    hours = sums_by_hour(grouped)
    return Additions(rows, sums_of(entries), *new_groups(grouped, known_groups), hours, sums_by_day(hours))


def tell_lost(entry: LedgerEntry, why: str, lost_rows: int) -> None:
    """Log a row that is not kept, the 1st, 2nd, 4th, ... of a process: a full queue must not flood the log."""
    if lost_rows & (lost_rows - 1) == 0:
        told = "records: ledger row %s (%s nano-USD) is lost, %s; %d so far"
        log.critical(told, entry.id, entry.cost_nanousd, why, lost_rows)

"""Ledger rows as they are summed: quarters of an hour, scopes.

Lives here: what one batch adds to `spend`, and what is said of a row that is lost. Elsewhere: the columns (tables.py), who commits batches (sqlite.py, postgres.py).
Idea: a batch of a thousand rows touches a few dozen sums, so the sums cost a row next to nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from hookline.stores.protocols import LedgerEntry
from hookline.stores.spend_groups import group_of

log = logging.getLogger("hookline.records")

QUARTER_S = 900
_LAST_QUARTER = 2**31 - 1


def quarter_of(at_unix_s: float) -> int:
    """The quarter of an hour that holds this moment; the last one for infinity."""
    return int(min(at_unix_s / QUARTER_S, _LAST_QUARTER))


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


def row_of(entry: LedgerEntry) -> tuple[object, ...]:
    """What `ledger` keeps of an entry, in the order of its columns: the scopes are in `spend`, the tags in the group."""
    return (*entry[:15], entry.price_version, entry.corrects, group_of(entry))


def tell_lost(entry: LedgerEntry, why: str, lost_rows: int) -> None:
    """Log a row that is not kept, the 1st, 2nd, 4th, ... of a process: a full queue must not flood the log."""
    if lost_rows & (lost_rows - 1) == 0:
        told = "records: ledger row %s (%s nano-USD) is lost, %s; %d so far"
        log.critical(told, entry.id, entry.cost_nanousd, why, lost_rows)

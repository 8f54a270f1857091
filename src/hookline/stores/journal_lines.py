"""Lines of the ledger's journal: rows, intents, withdrawals.

Lives here: one line as bytes and back, and what is made of one that can't be read. Elsewhere: the files (ledger_journal.py).
Idea: every line carries its checksum, so a line is what was written or is known not to be; an intent and its row stand in different places of a journal, so
that one damaged line is made good by the other.

    R1f2e3d4c ["<id>", "<call id>", ...]      a ledger row
    I5b6a7980 [...]                           an intent: the row to be booked if no other comes
    W0a1b2c3d "<id>"                          an intent withdrawn: the attempt cost nothing"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal
from zlib import crc32

import orjson

from hookline.stores.protocols import LedgerEntry

Kind = Literal["row", "intent", "withdrawal", "damage"]

_SEEDS = {b"R": 1, b"I": 2, b"W": 3}
"""A checksum is that of its kind: a bit that turns an intent into a row is seen."""
_KINDS: dict[bytes, Kind] = {b"R": "row", b"I": "intent", b"W": "withdrawal"}
SHORTEST_ROW_BYTES = 100


def row_line(entry: LedgerEntry) -> bytes:
    """Raises TypeError for what no JSON holds."""
    payload = orjson.dumps(tuple(entry))
    return b"R%08x %b\n" % (crc32(payload, 1), payload)


def intent_line(entry: LedgerEntry) -> bytes:
    """Raises TypeError for what no JSON holds."""
    payload = orjson.dumps(tuple(entry))
    return b"I%08x %b\n" % (crc32(payload, 2), payload)


def withdrawal_line(id: str) -> bytes:
    payload = orjson.dumps(id)
    return b"W%08x %b\n" % (crc32(payload, 3), payload)


def read_lines(chunk: bytes, *, skips_intents: bool) -> Iterator[tuple[Kind, Any]]:
    """Whole lines as (kind, LedgerEntry, id, or how many bytes can't be read). `skips_intents`: only rows are wanted, which saves half of the work."""
    for line in chunk.splitlines():
        kind = line[:1]
        if skips_intents and (kind == b"I" or kind == b"W"):
            continue
        payload = line[10:]
        try:
            if line[1:10] != b"%08x " % crc32(payload, _SEEDS[kind]):
                raise ValueError
            value = orjson.loads(payload)
            yield _KINDS[kind], value if kind == b"W" else LedgerEntry(*value)
        except (KeyError, ValueError, TypeError):
            yield "damage", len(line) + 1


def charge_for_damage(id: str, at: float, damaged_bytes: int, largest_nanousd: int | None) -> LedgerEntry:
    """What is booked for a stretch that can't be read: as many rows as fit into it, each the most expensive one known of that journal, on `global`.

    Whose they were is not known any more, and to charge nothing would be the one answer that is surely too low."""
    rows = max(1, damaged_bytes // SHORTEST_ROW_BYTES)
    cost = None if largest_nanousd is None else rows * largest_nanousd
    return LedgerEntry(id, "", at, "", "", None, "", "", "", "upstream_lost", 0, 0, 0, cost, True, ("global",))

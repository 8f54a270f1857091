"""Recovery: reservations of processes that died.

Lives here: settling them to what the ledger charged. Elsewhere: who finds out and charges (the record store), who reserved (budget).
Idea: a reservation expires into its whole amount after a while; until then windows and ledger would differ."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress

from hookline import LimitStore, RecordStore, Unavailable


async def settle_the_dead(records: RecordStore, limits: LimitStore) -> None:
    """Settle what is recovered, for ever."""
    while True:
        for name, amount_nanousd in await records.recovered():
            with suppress(Unavailable):  # then it expires, into the whole amount
                if isinstance(settling := limits.settle(name, amount_nanousd), Awaitable):
                    await settling

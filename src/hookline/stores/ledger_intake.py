"""The ledger's intake: what callers of a record store meet.

Lives here: booking, intending, withdrawing; what is said where that fails; what dead processes left, on its way to who settles it. Elsewhere: files
(ledger_journal.py), who commits (sqlite.py, postgres.py).
Idea: nothing here waits. A row for which there is no room is lost and said so; an intent for which there is none is refused, a fifth earlier, so that calls on a
budget end in 503 before any row is lost."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from hookline.errors import StartupError, Unavailable
from hookline.stores.ledger import tell_lost
from hookline.stores.ledger_journal import Batch, Full, LedgerJournal
from hookline.stores.protocols import LedgerEntry

RECOVERED_MAX = 10_000
"""Who does not ask for them loses the oldest: their reservations then end by themselves."""
FULL_RETRY_S = 5.0


class LedgerIntake:
    """The part of a `RecordStore` that takes rows. `wake` is called when there is work for the writer, from the caller's thread."""

    def __init__(self, journal: LedgerJournal, wake: Callable[[], None]) -> None:
        self._journal = journal
        self._wake = wake
        self._disk_problem: str | None = None
        self._recovered: deque[tuple[str, int]] = deque(maxlen=RECOVERED_MAX)
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._lock = threading.Lock()
        self.is_closed = False
        self.is_woken = False
        self.lost_rows = 0
        """Rows that were not kept, since start."""

    def find_problem(self, waits_for: str) -> str | None:
        """Why no more rows can be kept, in a sentence; None if they can."""
        journal = self._journal
        if self._disk_problem is not None:
            return f"records: the journal {journal.folder} can't be written: {self._disk_problem}"
        if journal.is_nearly_full:
            return (
                f"records: {journal.waiting_bytes >> 20} MiB of ledger rows wait in {journal.folder}, "
                f"of {journal.max_bytes >> 20} at most, for {waits_for}"
            )
        return None

    def book(self, entry: LedgerEntry) -> None:
        """Keep a row, or lose it and say so."""
        if self.is_closed:
            self.lose(entry, "the store is closed")
            return
        try:
            self._journal.book(entry)
        except OSError as error:
            self._disk_problem = str(error)
            self.lose(entry, f"the journal can't be written: {error}")
        except TypeError as error:
            self.lose(entry, f"it can't be written: {error}")
        except Full:
            self.lose(entry, "the journal is full")
        else:
            self._disk_problem = None
            if not self.is_woken:
                self.is_woken = True
                self._wake()

    def intend(self, entry: LedgerEntry) -> None:
        """Keep an intent. Raises Unavailable where there is no room for more."""
        if self.is_closed:
            raise Unavailable("records: the store is closed", retry_after_s=FULL_RETRY_S)
        try:
            self._journal.intend(entry)
        except OSError as error:
            self._disk_problem = str(error)
            raise Unavailable(self.find_problem("") or "", retry_after_s=FULL_RETRY_S) from error
        except TypeError as error:
            raise Unavailable(f"records: ledger row {entry.id} can't be written: {error}") from error
        except Full as error:
            why = self.find_problem("the database") or f"records: {self._journal.open_intents} calls are in flight"
            raise Unavailable(why, retry_after_s=FULL_RETRY_S) from error

    def withdraw(self, id: str) -> None:
        """Take an intent back. Where the disk says no, it stays, and is charged if the process dies."""
        if self.is_closed:
            return
        try:
            self._journal.withdraw(id)
        except OSError as error:
            self._disk_problem = str(error)

    def lose(self, entry: LedgerEntry, why: str) -> None:
        self.lost_rows += 1
        tell_lost(entry, why, self.lost_rows)

    async def recovered(self) -> Sequence[tuple[str, int]]:
        """Wait for what attempts of dead processes cost."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        while True:
            with self._lock:
                if self._recovered:
                    found = list(self._recovered)
                    self._recovered.clear()
                    return found
                self._waiting.append((loop, event))
            try:
                await event.wait()
            finally:
                with self._lock:
                    self._waiting = [waiting for waiting in self._waiting if waiting[1] is not event]
            event.clear()

    # The writer's thread.

    def done(self, batch: Batch) -> None:
        """What was read is committed."""
        self._journal.done(batch)
        if batch.recovered:
            with self._lock:
                self._recovered += batch.recovered
                for loop, event in self._waiting:
                    with suppress(RuntimeError):  # its loop has ended
                        loop.call_soon_threadsafe(event.set)

    def refuse_unreadable(self) -> None:
        """At start. Raises StartupError when a journal can't be read: what it holds would be charged to nobody."""
        if names := self._journal.unreadable:
            raise StartupError(
                [
                    f"[state] records: the journal {self._journal.folder / name} can't be read (see the log); "
                    "make it readable, or move it away if its calls need not be charged"
                    for name in names
                ]
            )

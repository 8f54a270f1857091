"""The ledger's journal: rows and intents on disk from the moment they are told until a database has them.

Lives here: appending, reading in order, taking over what processes that died left, syncing. Elsewhere: one file (journal_segment.py), what a line is
(journal_lines.py), what callers meet (ledger_intake.py), who commits what is read (sqlite.py, postgres.py).
Idea: the journal IS the queue. An append is one small write into the page cache (1.1 µs with its checksum), which `kill -9` does not undo; live rows, rows of an
outage and those of a process that died are read by the same code, so recovery is no path of its own.

The rules
- A journal is the files `NAME.<number>.journal` of one process, and belongs to whoever holds the flock on `NAME.lock`; the kernel lets go of that when a process
  dies, however it dies. Taken over are all files of a journal or none: a row and its intent may stand in different ones.
- Rows of our own are handed to the reading thread in memory as long as they are few; all others are read from the files.
- One thread appends, one reads, one syncs. A segment that has grown to SEGMENT_BYTES gets a successor. It is removed, the oldest first, when all its rows
  are committed and none of its intents is open; intents that keep an old one are written again into the newest.
- An intent for which a dead journal holds neither row nor withdrawal is read as a row.
- What was committed but not yet removed is read again after a crash: the ledger's ids make that harmless.
- A last line without an end is what was being written when the machine stopped: nobody has acted on it. Any other line that can't be read is charged and
  reported, and its file is kept as `.damaged`."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hookline.stores.journal_lines import charge_for_damage, intent_line, read_lines, row_line, withdrawal_line
from hookline.stores.journal_segment import Segment, discard, lock, read_whole_lines, write_line
from hookline.stores.protocols import LedgerEntry

SEGMENT_BYTES = 1024 * 1024
SEGMENTS_KEPT = 16
"""More segments than this are not kept for the sake of calls that still run."""
MAX_BYTES = 256 * 1024 * 1024
RECENT_MAX = 4_096
"""So many rows are handed over in memory, which saves reading what this process has just written; beyond that (an outage) they are read from the file."""
OPEN_MAX = 100_000
FSYNC_MS = 100

log = logging.getLogger("hookline.records")


class Full(Exception):
    """No room is left."""


class _Journal:
    """The files of one process, alive (`intents` is None) or dead."""

    __slots__ = ("intents", "largest_nanousd", "lock_fd", "name", "segments")

    def __init__(self, name: str, lock_fd: int, segments: list[Segment], *, is_own: bool) -> None:
        self.name, self.lock_fd, self.segments = name, lock_fd, segments
        self.intents: dict[str, LedgerEntry] | None = None if is_own else {}
        self.largest_nanousd: int | None = None


class Batch(NamedTuple):
    """What was read, and up to where it is done once it is committed."""

    entries: list[LedgerEntry]
    recovered: list[tuple[str, int]]
    """What attempts of a dead process cost: (id, nano-dollars)."""
    journal: _Journal
    segment: Segment | None
    """None: the charges for what a dead process left open, after all its segments."""
    end: int


class Mark(NamedTuple):
    """What there was at a moment: the journals taken over, and how far each segment of our own was filled."""

    adopted: list[_Journal]
    filled: list[tuple[Segment, int]]


class LedgerJournal:
    """A folder of journals, one of them our own. Raises OSError where it can't be used.

    `on_segment_done` is called before a segment's file is removed: the database must then be durable."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = MAX_BYTES,
        fsync_ms: int = FSYNC_MS,
        on_segment_done: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._on_segment_done = on_segment_done
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._number = 0
        self._own = _Journal(self._name, self._make_lock(), [], is_own=True)
        self._segments = self._own.segments
        self._active = self._open_segment()
        self._segments.append(self._active)
        # At most so much waits beside the active segment: what did when it was begun, and what was taken over. One writer each, the appending and the reading thread.
        self._former_bytes = self._adopted_bytes = 0
        self._open: dict[str, tuple[Segment, bytes]] = {}
        self._recent: deque[tuple[Segment, int, LedgerEntry]] = deque()
        self._is_recent_whole = True
        self._adopted: list[_Journal] = []
        self._unreadable: set[str] = set()
        self._files = threading.Lock()  # a descriptor must not be closed while it is synced
        self._dirt = threading.Event()
        self._is_closed = False
        self._fsync_s = fsync_ms / 1000
        if fsync_ms:
            threading.Thread(target=self._sync_now_and_then, name="hookline-journal", daemon=True).start()

    @property
    def waiting_bytes(self) -> int:
        return _waiting([*(segment for journal in self._adopted for segment in journal.segments), *self._segments])

    @property
    def is_nearly_full(self) -> bool:
        """Less than a fifth of the room is left: what is in flight still fits."""
        return self.waiting_bytes > self.max_bytes * 0.8

    @property
    def open_intents(self) -> int:
        """Intents without a row yet."""
        return len(self._open)

    # The appending thread.

    def intend(self, entry: LedgerEntry) -> None:
        """Keep an intent. Raises Full, OSError when the disk says no, TypeError for what is no row."""
        if len(self._open) >= OPEN_MAX or self._waits_for(self.max_bytes * 0.8):
            raise Full
        line = intent_line(entry)
        segment = self._append(line)
        self._open[entry.id] = (segment, line)
        segment.open_intents += 1

    def book(self, entry: LedgerEntry) -> None:
        """Keep a row, which closes its intent. Raises as `intend` does."""
        line = row_line(entry)
        if self._waits_for(self.max_bytes - len(line)):
            raise Full
        recent, active = self._recent, self._active
        if self._is_recent_whole:
            self._is_recent_whole = len(recent) < RECENT_MAX
        elif active.done >= active.size and active is self._segments[0] and not recent:
            self._is_recent_whole = True  # all before this row is committed
        self._append(line, entry if self._is_recent_whole else None)
        self._close(entry.id)

    def withdraw(self, id: str) -> None:
        """Close an intent without a row. Raises OSError, and then it is still open."""
        if id in self._open:
            self._append(withdrawal_line(id))
            self._close(id)

    def _close(self, id: str) -> None:
        known = self._open.pop(id, None)
        if known is not None:
            known[0].open_intents -= 1

    def _waits_for(self, room_bytes: float) -> bool:
        """Whether more than that waits."""
        most = self._former_bytes + self._adopted_bytes + self._active.size
        return most > room_bytes and self.waiting_bytes > room_bytes

    def _append(self, line: bytes, row: LedgerEntry | None = None) -> Segment:
        active = self._active
        write_line(active, line)
        if row is not None:  # before `size` says that it is there
            self._recent.append((active, active.size + len(line), row))
        active.size += len(line)
        if not self._dirt.is_set():
            self._dirt.set()
        if active.size >= SEGMENT_BYTES:
            self._rotate()
        return active

    def _rotate(self) -> None:
        former = self._active
        try:
            self._active = self._open_segment()
            self._segments.append(self._active)
            former.is_active = False
            self._former_bytes = _waiting(self._segments)  # the new one is empty
            if len(self._segments) > SEGMENTS_KEPT:
                self._carry_over()
        except OSError as error:
            log.error("records: no new file in %s: %s; the former ones are kept on", self.folder, error)

    def _carry_over(self) -> None:
        """Write the open intents of old segments again, so that those can go."""
        old = set(self._segments[:-SEGMENTS_KEPT])
        active = self._active
        for id, (segment, line) in list(self._open.items()):
            if segment in old:
                write_line(active, line)
                active.size += len(line)
                self._open[id] = (active, line)
                active.open_intents += 1
                segment.open_intents -= 1

    # The reading thread.

    def read(self) -> Batch | None:
        """The oldest lines that are not done; None if all are. A batch may hold no rows."""
        for journal in (*self._adopted, self._own):
            if (batch := self._read_from(journal)) is not None:
                return batch
        return None

    def done(self, batch: Batch) -> None:
        """What was read is in the database."""
        if batch.segment is not None:
            recent = self._recent
            while recent and recent[0][0] is batch.segment and recent[0][1] <= batch.end:
                recent.popleft()
            batch.segment.done = batch.end
        else:
            self._remove(batch.journal)

    def mark(self) -> Mark:
        """What there is up to now, for `is_done`."""
        return Mark(list(self._adopted), [(segment, segment.size) for segment in self._segments])

    def is_done(self, mark: Mark) -> bool:
        return all(segment.done >= size for segment, size in mark.filled) and not any(
            journal in self._adopted for journal in mark.adopted
        )

    def adopt(self) -> int:
        """Take over what processes that are gone have left; answers how many journals."""
        mine = {self._name, *(journal.name for journal in self._adopted)}
        names = {path.name.split(".")[0] for path in self.folder.iterdir() if path.suffix in (".lock", ".journal")}
        before = len(self._adopted)
        for name in sorted(names - mine):
            try:
                journal = self._take_over(name)
            except OSError as error:
                if name not in self._unreadable:
                    self._unreadable.add(name)
                    log.critical("records: the journal %s can't be read: %s", self.folder / name, error)
                continue
            if journal is not None:
                self._adopted.append(journal)
                self._adopted_bytes += _waiting(journal.segments)
        return len(self._adopted) - before

    @property
    def unreadable(self) -> Sequence[str]:
        """Journals of others that could not be opened."""
        return sorted(self._unreadable)

    def close(self) -> None:
        """Let go of everything; what is not done stays for the next process."""
        if self._is_closed:
            return
        self._is_closed = True
        self._dirt.set()
        with self._files:
            for journal in (*self._adopted, self._own):
                is_left = False
                for segment in journal.segments:
                    is_left = is_left or segment.done < segment.size or bool(segment.open_intents)
                    if journal is self._own and not is_left:
                        discard(segment)
                    os.close(segment.fd)
                if journal is self._own and not is_left:
                    self._lock_path(journal.name).unlink(missing_ok=True)
                os.close(journal.lock_fd)
            self._adopted, self._segments = [], []

    def _read_from(self, journal: _Journal) -> Batch | None:
        segments = journal.segments
        for segment in tuple(segments):
            # In this order: a segment that is not active any more does not grow.
            is_active, size, is_whole = segment.is_active, segment.size, self._is_recent_whole
            if journal is self._own and is_whole:
                if (batch := self._read_recent(segment)) is not None:
                    return batch
                segment.done = max(segment.done, size)  # intents, and rows that are done
            elif segment.done < size:
                chunk = read_whole_lines(segment, size)
                if chunk:
                    return self._parse(journal, segment, chunk)
                log.error("records: %s ends in the middle of a line, on which nobody has acted", segment.path)
                segment.done = size
            if not is_active and journal.intents is None and segment is segments[0] and not segment.open_intents:
                self._on_segment_done()
                with self._files:
                    segments.pop(0)
                    discard(segment)
                    os.close(segment.fd)
        if journal.intents is None:
            return None
        left = list(journal.intents.values())
        if left:
            log.warning("records: %d calls that ran in a process which died are charged, estimated", len(left))
        return Batch(left, [(entry.id, entry.cost_nanousd or 0) for entry in left], journal, None, 0)

    def _read_recent(self, segment: Segment) -> Batch | None:
        """Rows of a segment of our own that are still in memory."""
        entries, end, recent = [], 0, self._recent
        for i in range(len(recent)):  # by index: `book` appends meanwhile
            of, until, entry = recent[i]
            if of is not segment:
                break
            entries.append(entry)
            end = until
        return Batch(entries, [], self._own, segment, end) if entries else None

    def _parse(self, journal: _Journal, segment: Segment, chunk: bytes) -> Batch:
        batch = Batch([], [], journal, segment, segment.done + len(chunk))
        entries, intents = batch.entries, journal.intents
        damaged_bytes = 0
        for kind, value in read_lines(chunk, skips_intents=intents is None):
            if kind == "row":
                entries.append(value)
                if intents is not None:
                    intents.pop(value.id, None)
                    batch.recovered.append((value.id, value.cost_nanousd or 0))
            elif kind == "damage":
                damaged_bytes += value
            elif intents is not None and kind == "intent":
                intents[value.id] = value
                journal.largest_nanousd = max(journal.largest_nanousd or 0, value.cost_nanousd or 0) or None
            elif intents is not None:
                intents.pop(value, None)
                batch.recovered.append((value, 0))
        if damaged_bytes:
            entries.append(self._charge(journal, segment, entries, damaged_bytes))
        return batch

    def _charge(
        self, journal: _Journal, segment: Segment, seen: Sequence[LedgerEntry], damaged_bytes: int
    ) -> LedgerEntry:
        costs = [entry.cost_nanousd for entry in seen if entry.cost_nanousd is not None]
        largest = max([*costs, journal.largest_nanousd or 0], default=0) or None
        charged = charge_for_damage(
            f"damaged:{segment.path.stem}:{segment.done}", os.fstat(segment.fd).st_mtime, damaged_bytes, largest
        )
        if not segment.is_damaged:
            segment.is_damaged = True
            log.critical(
                "records: %d bytes of %s can't be read; %s nano-USD are charged for them, estimated; the file is kept as .damaged",
                damaged_bytes,
                segment.path,
                charged.cost_nanousd,
            )
        return charged

    def _take_over(self, name: str) -> _Journal | None:
        """A dead process's journal; None if it is alive, or another has taken it over. Raises OSError."""
        lock_fd = os.open(self._lock_path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        segments: list[Segment] = []
        try:
            if not lock(lock_fd) or os.fstat(lock_fd).st_nlink == 0:
                os.close(lock_fd)
                return None
            for path in sorted(self.folder.glob(f"{name}.*.journal")):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                segments.append(Segment(path, fd, size=os.fstat(fd).st_size, is_active=False))
        except OSError:
            for fd in (lock_fd, *(segment.fd for segment in segments)):
                os.close(fd)
            raise
        self._unreadable.discard(name)
        return _Journal(name, lock_fd, segments, is_own=False)

    def _remove(self, journal: _Journal) -> None:
        """A dead journal whose last row is committed. The lock goes last."""
        self._on_segment_done()
        for segment in journal.segments:
            discard(segment)
            os.close(segment.fd)
        self._lock_path(journal.name).unlink(missing_ok=True)
        os.close(journal.lock_fd)
        self._adopted = [other for other in self._adopted if other is not journal]
        self._adopted_bytes = _waiting([segment for other in self._adopted for segment in other.segments])

    def _make_lock(self) -> int:
        """Locked before it has the name by which others find it."""
        hidden = self.folder / f".{self._name}"
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        lock(fd)
        hidden.rename(self._lock_path(self._name))
        return fd

    def _open_segment(self) -> Segment:
        self._number += 1
        path = self.folder / f"{self._name}.{self._number:08d}.journal"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return Segment(path, fd, size=0, is_active=True)

    def _lock_path(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    # The syncing thread.

    def _sync_now_and_then(self) -> None:
        folder_fd = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        synced_names: list[Path] = []
        pause = threading.Event()
        while not self._is_closed:
            self._dirt.wait()
            pause.wait(self._fsync_s)
            self._dirt.clear()
            try:
                self._sync()
                names = [segment.path for segment in self._segments]
                if names != synced_names:
                    os.fsync(folder_fd)  # a file that power loss takes the name of is lost
                    synced_names = names
            except OSError as error:
                log.error("records: the journal in %s can't be synced: %s", self.folder, error)
        os.close(folder_fd)

    def _sync(self) -> None:
        with self._files:
            for segment in self._segments:
                if segment.synced < (size := segment.size):
                    os.fdatasync(segment.fd)
                    segment.synced = size


def _waiting(segments: Sequence[Segment]) -> int:
    return sum(segment.size - segment.done for segment in tuple(segments))

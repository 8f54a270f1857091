"""The ledger's spool: rows on disk from the moment they are booked until a database has them.

Lives here: segments (append-only files of one process), reading them in order, taking over those of processes that died. Elsewhere: who commits what is read
(postgres.py).
Idea: the spool IS the queue. `append` is one write into the page cache, which `kill -9` does not undo; live rows, rows of an outage and rows that another
process left behind are read by the same code, so recovery is no path of its own.

The rules
- A segment is `<name>.rows`, one JSON line per row, and belongs to whoever holds its flock; the kernel lets go of that when a process dies, however it dies.
- One thread appends, one reads; a segment that has grown to SEGMENT_BYTES gets a successor, and is removed once all its rows are committed.
- What was committed but not yet removed is read again after a crash: the ledger's ids make that harmless.
- A last line without an end is what a dying process was writing: it was never booked."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from pathlib import Path

import orjson

from hookline.stores.protocols import LedgerEntry

SEGMENT_BYTES = 1024 * 1024
CHUNK_BYTES = 1024 * 1024
MAX_BYTES = 256 * 1024 * 1024

log = logging.getLogger("hookline.records")


class Segment:
    """One file. `size` is changed by the appending thread only, `done` by the reading one."""

    __slots__ = ("done", "fd", "is_active", "path", "size")

    def __init__(self, path: Path, fd: int, *, size: int, is_active: bool) -> None:
        self.path, self.fd, self.size, self.is_active = path, fd, size, is_active
        self.done = 0


Mark = list[tuple[Segment, int]]
"""How far each segment was filled at a moment."""


class LedgerSpool:
    """A folder of segments, shared with other processes. Raises OSError where it can't be used."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._adopted: list[Segment] = []
        self._active = self._open_segment()
        self._own = [self._active]

    @property
    def waiting_bytes(self) -> int:
        return sum(segment.size - segment.done for segment in (*self._adopted, *self._own))

    @property
    def is_nearly_full(self) -> bool:
        """Less than a fifth of the room is left: what is in flight still fits."""
        return self.waiting_bytes > self.max_bytes * 0.8

    def append(self, entry: LedgerEntry) -> bool:
        """Keep a row; False if there is no room. Raises OSError when the disk says no, TypeError for what is no row."""
        line = orjson.dumps(tuple(entry)) + b"\n"
        active = self._active
        if self._own[0] is active and not self._adopted:
            waiting = active.size - active.done
        else:
            waiting = self.waiting_bytes
        if waiting + len(line) > self.max_bytes:
            return False
        written = os.write(active.fd, line)
        if written != len(line):
            os.ftruncate(active.fd, active.size)
            raise OSError(f"only {written} of {len(line)} bytes could be written")
        active.size += written
        if active.size >= SEGMENT_BYTES:
            self._rotate()
        return True

    def read(self) -> tuple[Segment, list[LedgerEntry], int] | None:
        """The oldest rows that are not done: (segment, rows, where they end); None if all are. A line that is no row is logged and left out."""
        for segment in (*self._adopted, *self._own):
            # In this order: a segment that is not active any more does not grow.
            is_active, size = segment.is_active, segment.size
            if segment.done < size:
                chunk = self._read_lines(segment, size)
                if chunk:
                    return (
                        segment,
                        [row for line in chunk.splitlines() if (row := _parse(line, segment))],
                        segment.done + len(chunk),
                    )
                log.error("records: %s ends in the middle of a row, which was never booked", segment.path)
                segment.done = size
            if not is_active:
                self._remove(segment)
        return None

    def done(self, segment: Segment, end: int) -> None:
        """The rows before `end` are in the database."""
        segment.done = end

    def mark(self) -> Mark:
        """What has been appended up to now, for `is_done`."""
        return [(segment, segment.size) for segment in (*self._adopted, *self._own)]

    @staticmethod
    def is_done(mark: Mark) -> bool:
        return all(segment.done >= size for segment, size in mark)

    def adopt(self) -> int:
        """Take over what processes that are gone have left; answers how many segments."""
        mine = {segment.path for segment in (*self._adopted, *self._own)}
        before = len(self._adopted)
        for path in sorted(self.folder.glob("*.rows")):
            if path in mine:
                continue
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                if not _lock(fd) or os.fstat(fd).st_nlink == 0:  # another's, or removed by whoever had it
                    os.close(fd)
                    continue
                self._adopted.append(Segment(path, fd, size=os.fstat(fd).st_size, is_active=False))
        return len(self._adopted) - before

    def close(self) -> None:
        """Let go of everything; what is not done stays for the next process."""
        for segment in (*self._adopted, *self._own):
            if segment.done >= segment.size:
                segment.path.unlink(missing_ok=True)
            os.close(segment.fd)
        self._adopted, self._own = [], []

    def _rotate(self) -> None:
        former = self._active
        try:
            self._active = self._open_segment()
        except OSError as error:
            log.error("records: no new file in %s: %s; the former one grows on", self.folder, error)
            return
        self._own.append(self._active)
        former.is_active = False

    def _open_segment(self) -> Segment:
        """Locked before it has the name by which others find it."""
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        hidden, path = self.folder / f".{name}", self.folder / f"{name}.rows"
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _lock(fd)
        hidden.rename(path)
        return Segment(path, fd, size=0, is_active=True)

    def _read_lines(self, segment: Segment, size: int) -> bytes:
        """Whole lines from `done` on, about CHUNK_BYTES of them; empty if there is no whole line."""
        wanted = CHUNK_BYTES
        while True:
            chunk = os.pread(segment.fd, min(wanted, size - segment.done), segment.done)
            end = chunk.rfind(b"\n") + 1
            if end or len(chunk) < wanted:
                return chunk[:end]
            wanted *= 2

    def _remove(self, segment: Segment) -> None:
        with contextlib.suppress(OSError):
            segment.path.unlink(missing_ok=True)
        os.close(segment.fd)
        (self._own if segment in self._own else self._adopted).remove(segment)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _parse(line: bytes, segment: Segment) -> LedgerEntry | None:
    try:
        return LedgerEntry(*orjson.loads(line))
    except (orjson.JSONDecodeError, TypeError):
        log.critical("records: %s holds a line that is no ledger row; it is left out", segment.path)
        return None
